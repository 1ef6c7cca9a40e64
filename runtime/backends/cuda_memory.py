"""An NVIDIA GPU's memory, its streams, and work that was recorded on them; see `memory.py` for what is asked of them.

Works on the first GPU that the process may use (CUDA_VISIBLE_DEVICES), through cuda-bindings (cuda-python). No PyTorch.
The errors of CUDA leave as ours.
"""

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart

from actvar.bundle.plans import Gpu
from actvar.errors import ActVARError, EngineError
from actvar.runtime.backends.memory import Block, Rows

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceInfo:
    """The GPU at hand.

    Args:
        gpu: its name and compute capability.
        driver: the newest CUDA that its driver knows, such as "13.0".
        memory: of the GPU, in bytes.
    """

    gpu: Gpu
    driver: str
    memory: int


def device_info() -> DeviceInfo:
    """The first GPU that this process may use.

    Raises:
        ActVARError: there is none, or its driver is too old for the CUDA that cuda-bindings brings.
    """
    count = cudart.cudaGetDeviceCount()
    if count[0] in (cudart.cudaError_t.cudaErrorInsufficientDriver, cudart.cudaError_t.cudaErrorNoDevice):
        raise ActVARError(_what_is_missing())
    if _checked(count, "looking for a GPU") == 0:
        raise ActVARError(_what_is_missing())
    properties = _checked(cudart.cudaGetDeviceProperties(0), "asking for the GPU's properties")
    name = bytes(properties.name).split(b"\0")[0].decode(errors="replace")
    gpu = Gpu(name, f"{properties.major}.{properties.minor}")
    return DeviceInfo(gpu, _cuda_of_driver(), int(properties.totalGlobalMem))


class CudaMemory:
    """The memory of the first GPU; see `Memory`. `device_info` says beforehand whether there is one."""

    def allocate(self, count: int) -> Block:
        """See `Memory`."""
        address = int(_checked(cudart.cudaMalloc(max(count, 1)), f"allocating {count} bytes"))
        owner = _Owner()
        _at_end(owner, cudart.cudaFree, address)
        return Block(address, count, owner)

    def stage(self, count: int) -> np.ndarray:
        """See `Memory`. Pages that the GPU reads and writes itself."""
        address = int(
            _checked(cudart.cudaHostAlloc(max(count, 1), cudart.cudaHostAllocDefault), f"pinning {count} bytes")
        )
        pinned = _Pinned(address, count)
        _at_end(pinned, cudart.cudaFreeHost, address)
        return np.asarray(pinned)

    def stream(self) -> "CudaStream":
        """See `Memory`."""
        flags = cudart.cudaStreamNonBlocking
        return CudaStream(_checked(cudart.cudaStreamCreateWithFlags(flags), "making a stream"))


class CudaStream:
    """See `Stream`. Work is done when it is waited for, and not before.

    Args:
        stream: CUDA's; destroyed with this one.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self._records = True
        _at_end(self, cudart.cudaStreamDestroy, stream)

    @property
    def handle(self) -> int:
        """See `Stream`."""
        return int(self._stream)

    def write(self, address: int, staged: np.ndarray) -> None:
        """See `Stream`."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(cudart.cudaMemcpyAsync(address, staged.ctypes.data, staged.nbytes, kind, self._stream), "copying")

    def read(self, staged: np.ndarray, address: int) -> None:
        """See `Stream`."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _checked(cudart.cudaMemcpyAsync(staged.ctypes.data, address, staged.nbytes, kind, self._stream), "copying")

    def copy_rows(self, target: int, target_pitch: int, source: int, width: int, rows: Rows) -> None:
        """See `Stream`. One copy, whether planes lie without a gap or not."""
        count, kind = rows.copied * rows.planes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        if count == 0 or width == 0:
            return
        if rows.copied == rows.of_target:
            copied = cudart.cudaMemcpy2DAsync(target, target_pitch, source, width, width, count, kind, self._stream)
        else:
            planes = cudart.cudaMemcpy3DParms()
            planes.srcPtr = cudart.make_cudaPitchedPtr(source, width, width, rows.copied)
            planes.dstPtr = cudart.make_cudaPitchedPtr(target, target_pitch, width, rows.of_target)
            planes.extent, planes.kind = cudart.make_cudaExtent(width, rows.copied, rows.planes), kind
            copied = cudart.cudaMemcpy3DAsync(planes, self._stream)
        _checked(copied, "copying rows")

    def copy(self, target: int, source: int, count: int) -> None:
        """Copy bytes within the GPU's memory."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        _checked(cudart.cudaMemcpyAsync(target, source, count, kind, self._stream), "copying")

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the GPU is at what `work` puts on this stream, by its own clock. Waits for it."""
        begin, end = (_event() for _ in range(2))
        _checked(cudart.cudaEventRecord(begin.event, self._stream), "marking a time")
        work()
        _checked(cudart.cudaEventRecord(end.event, self._stream), "marking a time")
        _checked(cudart.cudaEventSynchronize(end.event), "the work that was timed")
        return _checked(cudart.cudaEventElapsedTime(begin.event, end.event), "reading a time") / 1e3

    def wait(self) -> None:
        """See `Stream`."""
        _checked(cudart.cudaStreamSynchronize(self._stream), "the work before")

    def record(self, work: Callable[[], object]) -> Callable[[], None] | None:
        """See `Stream`. None also where an engine cannot be recorded: a warning says so once, and none tries again."""
        if not self._records:
            return None
        try:
            return _replay(self._captured(work), self._stream)
        except (ActVARError, MemoryError) as error:  # the second where there is no room for what was recorded
            self._records = False
            _LOG.warning("The chain cannot be recorded, so every graph is launched by itself: %s", error)
            return None

    def _captured(self, work: Callable[[], object]) -> Any:
        """What `work` puts on the stream, as CUDA's graph.

        Raises:
            ActVARError: something in it cannot be captured.
        """
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked(cudart.cudaStreamBeginCapture(self._stream, mode), "beginning a capture")
        collects = gc.isenabled()
        gc.disable()  # memory that a collection frees in between would spoil the capture
        try:
            work()
        except BaseException:
            ended, graph = cudart.cudaStreamEndCapture(self._stream)
            if ended == cudart.cudaError_t.cudaSuccess and int(graph):
                cudart.cudaGraphDestroy(graph)
            cudart.cudaGetLastError()  # or the next call would report it
            raise
        finally:
            if collects:
                gc.enable()
        return _checked(cudart.cudaStreamEndCapture(self._stream), "ending a capture")


@dataclass(frozen=True, eq=False)
class _Event:
    """A place in a stream's work."""

    event: Any


def _event() -> _Event:
    event = _Event(_checked(cudart.cudaEventCreate(), "making an event"))
    _at_end(event, cudart.cudaEventDestroy, event.event)
    return event


def _replay(graph: Any, stream: Any) -> Callable[[], None]:
    """What launches a captured graph on its stream; the graph itself is not needed any more."""
    try:
        executable = _checked(cudart.cudaGraphInstantiate(graph, 0), "instantiating a captured graph")
    finally:
        cudart.cudaGraphDestroy(graph)

    def launch() -> None:
        _checked(cudart.cudaGraphLaunch(executable, stream), "launching a recorded chain")

    _at_end(launch, cudart.cudaGraphExecDestroy, executable)
    return launch


class _Owner:
    """Something that a finaliser can watch."""


class _Pinned:
    """Pinned memory, in the form that numpy reads; the array keeps it."""

    def __init__(self, address: int, count: int):
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (count,), "data": (address, False)}


def _at_end(owner: object, free: Callable[[Any], object], handle: Any) -> None:
    """Give something back to CUDA when its owner goes; when the process ends, the driver does so itself."""
    weakref.finalize(owner, free, handle).atexit = False


def _checked(result: tuple[Any, ...], what: str) -> Any:
    """The value of a call of CUDA's.

    Raises:
        MemoryError: the GPU's memory, or the host's that can be pinned, is full.
        EngineError: it failed in any other way, as may any work that was put on a stream before.
    """
    error = result[0]
    if error == cudart.cudaError_t.cudaSuccess:
        return result[1] if len(result) > 1 else None
    cudart.cudaGetLastError()  # or the next call would report it
    if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
        raise MemoryError(f"CUDA has no memory left: {what}")
    said = cudart.cudaGetErrorString(error)[1].decode()
    raise EngineError(
        f"The GPU failed at {what}: {said} ({error.name}). Try again; if it stays, take --backend onnxruntime."
    )


def _what_is_missing() -> str:
    """Why CUDA finds no GPU, and what to do."""
    known, needed = _cuda_of_driver(), _version(cudart.cudaRuntimeGetVersion())
    if known == "0.0":
        return "There is no NVIDIA driver here, so no GPU can be used. Install one, or draw with --backend onnxruntime."
    if int(known.partition(".")[0]) < int(needed.partition(".")[0]):
        return (
            f"The NVIDIA driver knows CUDA {known}, and cuda-bindings brings {needed}. "
            f"Update the driver, or: pip install 'cuda-bindings=={known.partition('.')[0]}.*'."
        )
    return "The NVIDIA driver lists no GPU. See to CUDA_VISIBLE_DEVICES, or draw with --backend onnxruntime."


def _cuda_of_driver() -> str:
    return _version(cudart.cudaDriverGetVersion())


def _version(result: tuple[Any, ...]) -> str:
    """CUDA's version, which it gives as 1000 × major + 10 × minor."""
    number = int(result[1] or 0)
    return f"{number // 1000}.{number % 1000 // 10}"
