"""A GPU that is not there: the calls of CUDA and of TensorRT that the runtime makes, done by the host.

Strict where a GPU would only be wrong: work waits on its stream until somebody waits for it, memory that was freed or
is too small is refused, nothing may allocate or wait while a stream is captured, and a recorded context may not change.
Graphs are computed by ONNX Runtime, from the addresses that were bound. Neither speed nor numbers of a GPU show here.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cuda.bindings import runtime as real

from actvar.bundle.contract import ITEM_BYTES
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import PlanManifest, PlanOptions, PlanSpec, PlanTarget, plan_folder, write_plans
from actvar.export.operators.lowering import lower
from actvar.files import hash_file
from actvar.runtime.backends.memory import decode, encode

CAPABILITY = (8, 0)
NAME = "A GPU on the host"
OK = real.cudaError_t.cudaSuccess
IN_CAPTURE = real.cudaError_t.cudaErrorStreamCaptureUnsupported
INVALIDATED = real.cudaError_t.cudaErrorStreamCaptureInvalidated

Work = Callable[[], None]


class HostCuda:
    """cuda.bindings.runtime, as far as the runtime uses it; names that are no calls are its own."""

    def __init__(self, memory: int = 1 << 30):
        self.memory = memory
        self.live: dict[int, np.ndarray] = {}
        self.streams: dict[int, deque[Work]] = {}
        self.recording: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.spoilt: set[int] = set()
        self.launches = 0
        self._next = 1

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(real, name)) and not isinstance(getattr(real, name), type):
            raise AttributeError(f"{name} is not done by the host")
        return getattr(real, name)

    # ---- the device

    def cudaGetDeviceCount(self):
        return OK, 1

    def cudaGetDeviceProperties(self, device):
        name = NAME.encode().ljust(256, b"\0")
        return OK, SimpleNamespace(name=name, major=CAPABILITY[0], minor=CAPABILITY[1], totalGlobalMem=self.memory)

    def cudaDriverGetVersion(self):
        return OK, 13000

    def cudaRuntimeGetVersion(self):
        return OK, 13000

    def cudaGetLastError(self):
        return (OK,)

    def cudaGetErrorString(self, error):
        return real.cudaGetErrorString(error)

    # ---- memory

    def cudaMalloc(self, size):
        if self.recording:
            return self._spoil(), None
        if sum(block.nbytes for block in self.live.values()) + size > self.memory:
            return real.cudaError_t.cudaErrorMemoryAllocation, None
        return OK, self._allocated(size)

    def cudaHostAlloc(self, size, flags):
        if self.recording:
            return self._spoil(), None
        return OK, self._allocated(size)

    def cudaFree(self, address):
        if self.recording:
            return (self._spoil(),)
        for stream in self.streams:
            self._drain(stream)
        del self.live[address]
        return (OK,)

    cudaFreeHost = cudaFree

    def at(self, address: int, count: int) -> np.ndarray:
        """Bytes that somebody holds."""
        for start, block in self.live.items():
            if start <= address and address + count <= start + block.nbytes:
                return block[address - start : address - start + count]
        raise AssertionError(f"{count} bytes at {address:#x} are nobody's")

    def _allocated(self, size: int) -> int:
        whole = np.full(size + 256, 0xAB, np.uint8)
        start = -whole.ctypes.data % 256
        block = whole[start : start + size]
        self.live[block.ctypes.data] = block
        return block.ctypes.data

    # ---- streams

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == real.cudaStreamNonBlocking
        self._next += 1
        self.streams[self._next] = deque()
        return OK, self._next

    def cudaStreamDestroy(self, stream):
        self._drain(stream)
        del self.streams[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        if self.recording:
            return (self._spoil(),)
        self._drain(stream)
        return (OK,)

    def cudaMemcpyAsync(self, target, source, count, kind, stream):
        assert kind in (real.cudaMemcpyKind.cudaMemcpyHostToDevice, real.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        self.put(stream, lambda: np.copyto(self.at(target, count), self.at(source, count)))
        return (OK,)

    def cudaMemcpy2DAsync(self, target, target_pitch, source, source_pitch, width, height, kind, stream):
        assert kind == real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        if width > target_pitch or width > source_pitch:
            return (real.cudaError_t.cudaErrorInvalidPitchValue,)

        def copy() -> None:
            for row in range(height):
                taken = self.at(source + row * source_pitch, width)
                np.copyto(self.at(target + row * target_pitch, width), taken)

        self.put(stream, copy)
        return (OK,)

    make_cudaPitchedPtr, make_cudaExtent = map(staticmethod, (real.make_cudaPitchedPtr, real.make_cudaExtent))

    def cudaMemcpy3DAsync(self, planes, stream):
        assert planes.kind == real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        source, target, extent = planes.srcPtr, planes.dstPtr, planes.extent
        width = int(extent.width)  # as it is now: what `planes` holds is gone by the time that the stream copies
        if width > min(source.pitch, target.pitch) or extent.height > min(source.ysize, target.ysize):
            return (real.cudaError_t.cudaErrorInvalidPitchValue,)
        places = [
            tuple(int(each.ptr) + (plane * each.ysize + row) * each.pitch for each in (target, source))
            for plane in range(extent.depth)
            for row in range(extent.height)
        ]

        def copy() -> None:
            for to, of in places:
                np.copyto(self.at(to, width), self.at(of, width))

        self.put(stream, copy)
        return (OK,)

    def put(self, stream: int, work: Work) -> None:
        """Work that is done when the stream comes to it, or is recorded."""
        if stream in self.recording:
            self.recording[stream].append(work)
        else:
            self.streams[stream].append(work)

    def _drain(self, stream: int) -> None:
        while self.streams[stream]:
            self.streams[stream].popleft()()

    # ---- graphs

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.recording[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        works = self.recording.pop(stream)
        if stream in self.spoilt:
            self.spoilt.remove(stream)
            return INVALIDATED, None
        self._next += 1
        self.graphs[self._next] = works
        return OK, self._next

    def cudaGraphInstantiate(self, graph, flags):
        self._next += 1
        self.graphs[self._next] = self.graphs[graph]
        return OK, self._next

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (OK,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        self.streams[stream].extend(self.graphs[graph])
        return (OK,)

    def _spoil(self) -> Any:
        self.spoilt |= set(self.recording)
        return IN_CAPTURE


# ---- TensorRT

_TYPES = {
    1: ("FLOAT", "float32"),
    6: ("INT32", "int32"),
    7: ("INT64", "int64"),
    9: ("BOOL", "bool"),
    10: ("HALF", "float16"),
}
SCRATCH_PER_PICTURE = 1000


def build_on_host(bundle: Path, target: PlanTarget, options: PlanOptions) -> PlanManifest:
    """As `build_plans`, of all graphs: the plans are the lowered graphs."""
    folder, specs = plan_folder(bundle, target), {}
    folder.mkdir(parents=True, exist_ok=True)
    for graph, spec in read_manifest(bundle).graphs.items():
        path = folder / f"{graph}.plan"
        path.write_bytes(lower(bundle / spec.entry.file).model.SerializeToString())
        path.with_suffix(".log").write_text("")
        entries = hash_file(path), hash_file(path.with_suffix(".log"))
        specs[graph] = PlanSpec(*entries, spec.entry.sha256, {}, {}, {}, 1.0, 1)
    plans = PlanManifest(target, options, "0" * 64, None, {}, specs)
    write_plans(folder, plans)
    return plans


class _Logger:
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, msg):
        raise NotImplementedError


class HostTensorRT:
    """The Python module of TensorRT, or of TensorRT-RTX; a plan is a lowered ONNX graph.

    Args:
        cuda: where it runs.
        rtx: whether it is the second.
    """

    __version__ = "11.0.host"
    ILogger = _Logger
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    TensorLocation = SimpleNamespace(DEVICE="device", HOST="host")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")

    def __init__(self, cuda: HostCuda, rtx: bool):
        self.cuda, self.rtx = cuda, rtx
        self.contexts: list[HostContext] = []
        self.kernels: list[bytes] = []

    def Runtime(self, logger):
        return HostRuntime(self, logger)


class HostRuntime:
    def __init__(self, trt: HostTensorRT, logger: Any):
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, plan):
        assert isinstance(plan, bytes)
        try:
            return HostEngine(self._trt, onnx.load_from_string(plan), plan)
        except Exception:
            self._logger.log(_Logger.Severity.INFO, "Loaded engine size: 0 MiB")
            self._logger.log(_Logger.Severity.ERROR, "the magic tag does not match")
            return None


class HostEngine:
    def __init__(self, trt: HostTensorRT, model: onnx.ModelProto, plan: bytes):
        self._trt = trt
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(plan, options)
        values = [("INPUT", value) for value in model.graph.input] + [("OUTPUT", value) for value in model.graph.output]
        self.tensors = {value.name: (mode, *_described(value)) for mode, value in values}

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=_TYPES[self.tensors[name][1]][0])

    def get_tensor_shape(self, name):
        return tuple(-1 if isinstance(size, str) else size for size in self.tensors[name][2])

    def get_tensor_location(self, name):
        return "device"

    @property
    def num_optimization_profiles(self):
        return 1 if self._trt.rtx else 2  # as `profiles_of` has it

    def create_runtime_config(self):
        assert self._trt.rtx
        return HostConfig(self._trt)

    def create_execution_context(self, how):
        if self._trt.rtx:
            assert how.strategy == "user managed" and how.cuda_graph_strategy == "disabled"
            assert how.dynamic_shapes_kernel_specialization_strategy == "eager"
        else:
            assert how == "user managed"
        context = HostContext(self._trt, self)
        self._trt.contexts.append(context)
        return context


class HostConfig:
    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = strategy = None

    def __init__(self, trt: HostTensorRT):
        self._trt = trt

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return HostRuntimeCache(self._trt)

    def set_runtime_cache(self, cache):
        return True


class HostRuntimeCache:
    def __init__(self, trt: HostTensorRT):
        self._trt = trt

    def deserialize(self, blob):
        self._trt.kernels.append(blob)
        return blob == b"kernels"

    def serialize(self):
        return b"kernels"


class HostContext:
    def __init__(self, trt: HostTensorRT, engine: HostEngine):
        self._trt, self._engine = trt, engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._device_memory = (0, 0)
        self._version = self.profile = 0  # of its bindings
        self.bindings = 0  # changed so often

    @property
    def pictures(self):
        """As its inputs are sized now."""
        sizes = (zip(self._engine.tensors[n][2], shape, strict=True) for n, shape in self._shapes.items())
        return next((size for pairs in sizes for letter, size in pairs if letter == "B"), None)

    def set_optimization_profile_async(self, profile, stream):
        assert not self._shapes and not self._addresses, "a profile comes first"
        self.profile = profile
        return 0 <= profile < self._engine.num_optimization_profiles

    def set_input_shape(self, name, shape):
        mode, _, declared = self._engine.tensors[name]
        self._change()
        self._shapes[name] = shape
        fits = len(shape) == len(declared) and all(
            isinstance(d, str) or d == s for d, s in zip(declared, shape, strict=True)
        )
        return mode == "INPUT" and fits

    def set_tensor_address(self, name, memory):
        self._change()
        self._addresses[name] = memory
        return name in self._engine.tensors and memory % 256 == 0

    def get_tensor_shape(self, name):
        sizes = {}
        for given, shape in self._shapes.items():
            sizes.update(zip(self._engine.tensors[given][2], shape, strict=True))
        return tuple(sizes[size] if isinstance(size, str) else size for size in self._engine.tensors[name][2])

    def update_device_memory_size_for_shapes(self):
        pictures = max((shape[0] for shape in self._shapes.values()), default=1)
        return SCRATCH_PER_PICTURE * pictures * len(self._engine.tensors) % 100_000

    def set_device_memory(self, memory, size):
        assert size >= self.update_device_memory_size_for_shapes() and memory % 256 == 0
        self._change()
        self._device_memory = memory, size

    def execute_async_v3(self, stream):
        version, cuda = self._version, self._trt.cuda
        addresses, (scratch, size) = dict(self._addresses), self._device_memory
        shapes = {name: self.get_tensor_shape(name) for name in self._engine.tensors}

        def run() -> None:
            assert self._version == version, "a context was changed while a run of it was under way, or recorded"
            cuda.at(scratch, size)[:] = 0xCD
            feeds, results = {}, [name for name, (mode, *_) in self._engine.tensors.items() if mode == "OUTPUT"]
            for name, (mode, number, _) in self._engine.tensors.items():
                dtype = _TYPES[number][1]
                count = int(np.prod(shapes[name], dtype=np.int64)) * ITEM_BYTES[dtype]
                if mode == "INPUT":
                    feeds[name] = decode(cuda.at(addresses[name], count).copy(), dtype, shapes[name])
            for name, array in zip(results, self._engine.session.run(results, feeds), strict=True):
                raw = encode(array, array.dtype.name)
                cuda.at(addresses[name], raw.nbytes)[:] = raw

        cuda.put(stream, run)
        return True

    def _change(self) -> None:
        self._version += 1
        self.bindings += 1


def _described(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
