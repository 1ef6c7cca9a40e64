"""ONNX Runtime: the sessions of a bundle's graphs over one copy of its weights, on the CPU or on an NVIDIA GPU.

On the CPU the weights file is mapped into memory once, and every session is given views of it. Three of ONNX Runtime's
habits are switched off, as they suit one session that runs for ever and not twelve that take turns:

- prepacking, which copies every matrix into a layout of its own, once for each session;
- arenas, in which every session would keep the memory of its largest run (mini model, batch of 4: 674 MB against 415);
- threads that spin while they wait, which steals the cores from the session that works, and from everyone else (mini
  model beside another busy program: four times the processor time).

On a GPU the weights are brought there once, and every session is given the same tensors. Not yet run on a GPU.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime

from actvar.bundle import EXPORT_AGAIN, WEIGHTS_FILE, Manifest, StoredTensor
from actvar.errors import ActVARError, BundleError
from actvar.runtime.backends.buffered import BufferedEngine, Buffers, Place
from actvar.runtime.backends.memory import Buffer, HostMemory, Memory
from actvar.runtime.backends.protocol import Device
from actvar.runtime.c_heap import return_large_blocks
from actvar.runtime.graph_file import ExternalTensor, external_tensors

Session: TypeAlias = onnxruntime.InferenceSession

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# The first copies all of past_kv at once, where each block would take its own share.
_UNWANTED = ["GatherSliceToSplitFusion"]
_FATAL_ONLY = 4  # what goes wrong comes back as an exception, too
_MAKERS = 2  # sessions that are made at a time


def load(folder: Path, manifest: Manifest, threads: int = 0, device: Device = "cpu") -> BufferedEngine:
    """Load a bundle whose files have been verified.

    The sessions are made in the background, in the order in which they run, so that the first graphs work while the
    last are still being made. On the CPU the process from here on gives large blocks back when it frees them
    (`c_heap`).

    Args:
        folder: the bundle.
        manifest: its manifest.
        threads: of the CPU that a graph runs on; 0 is one for each core.
        device: where the graphs run.

    Raises:
        BundleError: a graph would read a file that is not the bundle's, or weights that are not in it; or the bundle is
            in bf16, of which numpy and so ONNX Runtime's Python know nothing.
        ActVARError: the device cannot be used.
    """
    if manifest.precision == "bf16":
        raise BundleError(
            f"{folder} is in bf16, which ONNX Runtime does not draw with here. "
            "Export it in fp16 or fp32, or take --backend tensorrt."
        )
    paths = {name: folder / graph.entry.file for name, graph in manifest.graphs.items()}
    for name, path in paths.items():
        _check_weights(path, external_tensors(path, WEIGHTS_FILE), manifest, name)
    mapped = _mapped(folder / WEIGHTS_FILE)
    memory: Memory
    if device == "cpu":
        return_large_blocks()
        memory = HostMemory()
    else:
        memory = _cuda_memory()
    weights = _Weights(mapped, manifest, device)
    with_weights = {name: dict(weights.of_graph(name)) for name in paths}
    makers = ThreadPoolExecutor(_MAKERS, thread_name_prefix="actvar-load")
    sessions = {name: makers.submit(_make_session, paths[name], with_weights[name], threads, device) for name in paths}
    makers.shutdown(wait=False)
    return BufferedEngine(manifest, _OrtExecutor(sessions, weights, device), memory)


class _OrtExecutor:
    """Sessions that read and write buffers; see `Executor`."""

    def __init__(self, sessions: Mapping[str, "Future[Session]"], weights: "_Weights", device: Device):
        self._sessions, self._device = sessions, device
        self._weights = weights  # the sessions only borrow them

    @property
    def recordable(self) -> bool:
        """See `Executor`. ONNX Runtime has a stream of its own."""
        return False

    def run(self, graph: str, inputs: Buffers, outputs: Buffers, lane: Place) -> None:
        """See `Executor`. A run starts when the lane's stream is done, and is waited for."""
        session = self._sessions[graph].result()
        lane.stream.wait()
        try:
            binding = session.io_binding()
            for name, buffer in inputs.items():
                binding.bind_input(*self._place(name, buffer))
            for name, buffer in outputs.items():
                binding.bind_output(*self._place(name, buffer))
            session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise _refusal(f"the graph {graph} cannot be run", error) from None

    def forget(self, lane: int) -> None:
        """See `Executor`. Nothing is kept from one run to the next."""

    def _place(self, name: str, buffer: Buffer) -> tuple[str, str, int, type, tuple[int, ...], int]:
        return name, self._device, 0, np.dtype(buffer.dtype).type, buffer.shape, buffer.address


class _Weights:
    """The weights of a bundle as ONNX Runtime's values, each made once for each shape that it is read in."""

    def __init__(self, mapped: np.ndarray, manifest: Manifest, device: Device):
        self._mapped, self._manifest, self._device = mapped, manifest, device
        self._made: dict[tuple[str, tuple[int, ...]], onnxruntime.OrtValue] = {}

    def of_graph(self, graph: str) -> Iterator[tuple[str, onnxruntime.OrtValue]]:
        """By name."""
        for name, shape in self._manifest.graphs[graph].weights.items():
            if (name, shape) not in self._made:
                self._made[name, shape] = self._make(self._manifest.weights.tensors[name], shape)
            yield name, self._made[name, shape]

    def _make(self, stored: StoredTensor, shape: tuple[int, ...]) -> onnxruntime.OrtValue:
        array = self._mapped[stored.offset : stored.offset + stored.length].view(stored.dtype).reshape(shape)
        if self._device == "cpu":
            return onnxruntime.OrtValue.ortvalue_from_numpy(array)  # a view: nothing is copied
        return unowned(onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0))


def _check_weights(path: Path, read: list[ExternalTensor], manifest: Manifest, graph: str) -> None:
    """Hold what a graph's file reads of the weights to what the manifest says of it.

    Raises:
        BundleError: they differ, so one of them is not the exporter's.
    """
    stored = manifest.weights.tensors
    said = {
        ExternalTensor(name, stored[name].dtype, shape, stored[name].offset)
        for name, shape in manifest.graphs[graph].weights.items()
    }
    for tensor in said ^ set(read):
        raise BundleError(f"{path}: {tensor.name} is not read as the manifest says it is. {EXPORT_AGAIN}")


def unowned(value: onnxruntime.OrtValue) -> onnxruntime.OrtValue:
    """The same value as a view, which keeps it: a session takes no initializer that owns its memory."""
    return onnxruntime.OrtValue.from_dlpack(value._ortvalue)


def _mapped(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r")


def _cuda_memory() -> Memory:
    """The memory of the first GPU.

    Raises:
        ActVARError: this ONNX Runtime has no CUDA, or there is no GPU.
    """
    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise ActVARError(
            f"This ONNX Runtime {onnxruntime.__version__} is built for the CPU alone, so --device cuda cannot be used. "
            "Replace it: pip uninstall onnxruntime, then pip install 'actvar-trt[gpu]'."
        )
    from actvar.runtime.backends.cuda_memory import CudaMemory, device_info

    device_info()
    return CudaMemory()


def _make_session(path: Path, weights: Mapping[str, onnxruntime.OrtValue], threads: int, device: Device) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if device == "cpu":
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in weights.items():
        options.add_initializer(name, value)
    try:
        return Session(path, options, providers=[_PROVIDERS[device]], disabled_optimizers=_UNWANTED)
    except Exception as error:  # see `run`
        raise _refusal(f"{path} cannot be loaded", error) from None


def _refusal(what: str, error: Exception) -> BundleError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return BundleError(f"With ONNX Runtime {onnxruntime.__version__}, {what}: {reason}. {EXPORT_AGAIN}")
