"""ONNX Runtime on the CPU: the sessions of a bundle's graphs over one copy of its weights.

The weights file is mapped into memory once, and every session is given views of it. Three of ONNX Runtime's habits are
switched off, as they suit one session that runs for ever and not twelve that take turns:

- prepacking, which copies every matrix into a layout of its own, once for each session;
- arenas, in which every session would keep the memory of its largest run (mini model, batch of 4: 674 MB against 415);
- threads that spin while they wait, which steals the cores from the session that works, and from everyone else (mini
  model beside another busy program: four times the processor time).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from actvar.bundle import EXPORT_AGAIN, WEIGHTS_FILE, Manifest
from actvar.errors import BundleError
from actvar.runtime.c_heap import return_large_blocks
from actvar.runtime.graph_file import ExternalTensor, external_tensors
from actvar.runtime.kv_cache import HostKVCache

_PROVIDERS = ["CPUExecutionProvider"]
_UNWANTED = ["GatherSliceToSplitFusion"]  # copies all of past_kv at once, where each block would take its own share
_FATAL_ONLY = 4  # what goes wrong comes back as an exception, too
_MAKERS = 2  # sessions that are made at a time


class OrtEngine:
    """The graphs of one bundle in ONNX Runtime; see `load`. Tensors are `OrtValue`s."""

    def __init__(
        self, manifest: Manifest, sessions: Mapping[str, "Future[onnxruntime.InferenceSession]"], weights: "_Weights"
    ):
        self.manifest = manifest
        self._sessions = sessions
        self._weights = weights  # the sessions only borrow them

    def upload(self, array: np.ndarray) -> onnxruntime.OrtValue:
        """Wrap an array; the memory stays the array's."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    def download(self, tensor: onnxruntime.OrtValue) -> np.ndarray:
        """An array of the tensor's values."""
        return tensor.numpy()

    def run(self, graph: str, inputs: Mapping[str, onnxruntime.OrtValue]) -> dict[str, onnxruntime.OrtValue]:
        """Run one graph to all its outputs.

        Raises:
            BundleError: the graph cannot be loaded or run.
        """
        session = self._sessions[graph].result()
        names = [output.name for output in self.manifest.graphs[graph].outputs]
        try:
            values = session.run_with_ort_values(names, dict(inputs))
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise _refusal(f"the graph {graph} cannot be run", error) from None
        return dict(zip(names, values, strict=True))

    def kv_cache(self, pictures: int) -> "_OrtKVCache":
        """An empty cache for a batch."""
        return _OrtKVCache(self, pictures)


class _OrtKVCache:
    """The host's cache, of tensors of this engine."""

    def __init__(self, engine: OrtEngine, pictures: int):
        self._engine = engine
        dtypes = {t.dtype for graph in engine.manifest.graphs.values() for t in graph.outputs if t.name == "new_kv"}
        self._host = HostKVCache(engine.manifest.model, 2 * pictures, np.dtype(dtypes.pop()))
        self.past = engine.upload(self._host.past_D2RhTd)

    def append(self, new_kv: onnxruntime.OrtValue) -> None:
        self._host.append(self._engine.download(new_kv))


def load(folder: Path, manifest: Manifest, threads: int = 0) -> OrtEngine:
    """Load a bundle whose files have been verified.

    The sessions are made in the background, in the order in which they run, so that the first graphs work while the
    last are still being made. From here on the process gives large blocks back when it frees them (`c_heap`).

    Args:
        folder: the bundle.
        manifest: its manifest.
        threads: that a graph runs on; 0 is one for each core.

    Raises:
        BundleError: a graph would read a file that is not the bundle's, or weights that are not in it.
    """
    return_large_blocks()
    paths = {name: folder / graph.entry.file for name, graph in manifest.graphs.items()}
    tensors = {name: external_tensors(path, WEIGHTS_FILE) for name, path in paths.items()}
    weights = _Weights(folder / WEIGHTS_FILE)
    with_weights = {name: dict(weights.values(paths[name], tensors[name])) for name in paths}
    makers = ThreadPoolExecutor(_MAKERS, thread_name_prefix="actvar-load")
    sessions = {name: makers.submit(_make_session, paths[name], with_weights[name], threads) for name in paths}
    makers.shutdown(wait=False)
    return OrtEngine(manifest, sessions, weights)


class _Weights:
    """The weights file, mapped once; tensors of it as values, each made once."""

    def __init__(self, path: Path):
        empty = path.stat().st_size == 0  # and cannot be mapped
        self._bytes = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
        self._made: dict[ExternalTensor, onnxruntime.OrtValue] = {}

    def values(self, graph: Path, tensors: Sequence[ExternalTensor]) -> Iterator[tuple[str, onnxruntime.OrtValue]]:
        """The weights of a graph by name.

        Raises:
            BundleError: one lies outside the file.
        """
        for tensor in tensors:
            end = tensor.offset + tensor.length
            if end > self._bytes.size:
                raise BundleError(
                    f"{graph}: {tensor.name} ends at byte {end} of the weights, which have {self._bytes.size}. "
                    f"{EXPORT_AGAIN}"
                )
            if tensor not in self._made:
                array = self._bytes[tensor.offset : end].view(tensor.dtype).reshape(tensor.shape)
                self._made[tensor] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            yield tensor.name, self._made[tensor]


def _make_session(
    path: Path, weights: Mapping[str, onnxruntime.OrtValue], threads: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL_ONLY
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in weights.items():
        options.add_initializer(name, value)
    try:
        return onnxruntime.InferenceSession(path, options, providers=_PROVIDERS, disabled_optimizers=_UNWANTED)
    except Exception as error:  # see `run`
        raise _refusal(f"{path} cannot be loaded", error) from None


def _refusal(what: str, error: Exception) -> BundleError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return BundleError(f"With ONNX Runtime {onnxruntime.__version__}, {what}: {reason}. {EXPORT_AGAIN}")
