"""The GPU at hand, by asking its driver's library: no CUDA toolkit, no package, no memory of the GPU's is taken."""

import ctypes

from actvar.plans import Gpu

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute in cuda.h


def first_gpu() -> Gpu | None:
    """The first NVIDIA GPU that this process may use (CUDA_VISIBLE_DEVICES), or None."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, number, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device):
        return None
    capability = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
        capability.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(capability))
