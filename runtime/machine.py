"""This machine, as its system tells: processor, GPU, memory, versions, how busy it is, and where its cache lies.

The GPU is asked for by its driver's library: no CUDA toolkit, no package, no memory of the GPU's is taken. Linux.
"""

import ctypes
import math
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from actvar import __version__
from actvar.bundle.plans import Gpu
from actvar.errors import ActVARError, counted

CACHE_VARIABLE = "ACTVAR_CACHE"

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute in cuda.h
_PACKAGES = (
    *("cuda-bindings", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt-rtx", "torch", "triton"),
)


@dataclass(frozen=True)
class Machine:
    """`system` without its release; `load` is the average number of processes that wanted to run in the last minute."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    gpu: str | None
    load: float
    versions: dict[str, str]

    def in_words(self) -> str:
        """One line, without versions."""
        parts = [self.cpu, counted(self.cores, "core"), f"{self.memory_bytes / 2**30:.0f} GiB"]
        return ", ".join([*parts, *([self.gpu] if self.gpu else []), f"load {self.load:.1f} before"])


def this_machine() -> Machine:
    """As it is now; cores are those that this process may use. Linux."""
    gpu = first_gpu()
    return Machine(
        _cpu(),
        usable_cores(),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        f"{platform.system()} {platform.machine()}",
        gpu.name if gpu else None,
        os.getloadavg()[0],
        {"actvar-trt": __version__, "python": platform.python_version(), **_installed()},
    )


def usable_cores() -> int:
    """Cores that this process may use: of those that it may run on, as many as its quota pays for, one at least."""
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    return min(cores, max(1, math.ceil(quota))) if quota else cores


def has_binding_quota() -> bool:
    """Whether a control group gives this process less time than the cores that it may run on have."""
    quota = cpu_quota()
    return quota is not None and quota < len(os.sched_getaffinity(0))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the control groups of this process allow, as containers set it; None without a limit.

    The least of its own group's and of those above it, in version 2 or 1 of control groups. A group outside of what a
    container sees is looked for at the root, where the container's own stands.
    """
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup"
        if controllers:
            mounted = next((mounted / name for name in ("cpu", "cpu,cpuacct") if (mounted / name).is_dir()), mounted)
        group = mounted / place.lstrip("/")
        while True:
            found.append(_quota_of(group))
            if group == mounted or mounted not in group.parents:
                break
            group = group.parent
    return min((quota for quota in found if quota), default=None)


def _quota_of(group: Path) -> float | None:
    """One group's own limit."""
    if words := " ".join(_lines(group / "cpu.max")).split():
        quota, period = words[0], words[1] if len(words) > 1 else "100000"
    else:
        quota, period = (" ".join(_lines(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _lines(path: Path) -> list[str]:
    """Of a file of the system's; none where there is no such file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def cpu_instructions() -> tuple[str, ...]:
    """The instructions that matter to matrix products, of those that the processor has; none where no file says so."""
    flags = _cpu_fields().get("flags", "").split()
    return tuple(flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags)


def _cpu() -> str:
    """The processor's name, with its `cpu_instructions`."""
    name, known = _cpu_fields().get("model name", platform.machine()), cpu_instructions()
    return f"{name} ({' '.join(known)})" if known else name


def _cpu_fields() -> dict[str, str]:
    """What Linux says of the first core."""
    path, fields = Path("/proc/cpuinfo"), dict[str, str]()
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _installed() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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


def cache_folder() -> Path:
    """Where everything lies that can be made again: $ACTVAR_CACHE, or actvar-trt in the user's own cache folder.

    Raises:
        ActVARError: the user has none, as a container's may not.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actvar-trt"
    except RuntimeError:  # HOME is not set, and the system knows no user of this number
        raise ActVARError(
            f"There is no home folder for a cache. Set {CACHE_VARIABLE} to a folder that can be written."
        ) from None
