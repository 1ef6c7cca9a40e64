"""The graphs of a bundle in OpenVINO, on the CPU: a peer of ONNX Runtime over the same files.

A session here is a compiled graph that is spoken to as to ONNX Runtime's, so that the runtime's own executor binds it.
OpenVINO knows no operators of ours: their bodies stand in their places. It computes in fp32 or in bfloat16.

It takes the graph of each scale, and holds a packed copy of the weights for every one. By the graph of all scales it
gives other tokens than ONNX Runtime does (2026.4).
"""

import ctypes
import math
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import openvino

from actvar.benchmarks.pictures.graph_times import GraphDrawer
from actvar.benchmarks.pictures.products import fastest, product_inputs, product_model
from actvar.bundle.contract import graph_names
from actvar.bundle.manifest import WEIGHTS_FILE, read_manifest
from actvar.errors import ActVARError
from actvar.runtime.backends.buffered import BufferedEngine
from actvar.runtime.backends.memory import HostMemory, keep_blocks
from actvar.runtime.backends.ort import OrtExecutor
from actvar.runtime.pipeline import GraphSource

_TYPES = {"fp32": "f32", "bf16": "bf16"}


def open_openvino(bundle: Path, precision: str, threads: int, batch_size: int) -> GraphDrawer:
    """A bundle in fp32.

    Args:
        bundle: its folder.
        precision: that it is computed in, "fp32" or "bf16".
        threads: of the CPU.
        batch_size: pictures at a time.

    Raises:
        ActVARError: the bundle is not in fp32.
    """
    manifest = read_manifest(bundle)
    if manifest.precision != "fp32":
        raise ActVARError(f"{bundle} is not in fp32, with which OpenVINO is measured. Leave openvino out of --peers.")
    keep_blocks()
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": _TYPES[precision], "INFERENCE_NUM_THREADS": threads}
    sessions: dict[str, Future[Any]] = {name: Future() for name in graph_names(manifest.model)}
    for name, future in sessions.items():
        with TemporaryDirectory(dir=bundle) as scratch:
            future.set_result(_Session(core.compile_model(_adapted(bundle, name, Path(scratch)), "CPU", options)))
    executor = OrtExecutor(sessions, None, _NoSweep(), manifest, "cpu")  # type: ignore[arg-type]
    multiplied: list[Any] = []

    def product() -> float:
        if not multiplied:
            multiplied.append(
                core.compile_model(core.read_model(product_model("fp32"), b""), "CPU", options).create_infer_request()
            )
        return fastest(lambda: multiplied[0].infer([product_inputs("fp32")]))

    return GraphDrawer(GraphSource(BufferedEngine(manifest, executor, HostMemory()), batch_size), product)


def _adapted(bundle: Path, graph: str, scratch: Path) -> Path:
    """A graph's file as OpenVINO takes it: with the bodies of our operators in their places."""
    model = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
    if not model.functions:
        return bundle / f"{graph}.onnx"
    (scratch / WEIGHTS_FILE).hardlink_to(bundle / WEIGHTS_FILE)  # it refuses a link that leads out of the folder
    onnx.save(onnx.inliner.inline_local_functions(model), scratch / f"{graph}.onnx")
    return scratch / f"{graph}.onnx"


class _NoSweep:
    """Weights whose pages are left alone."""

    def let_go(self) -> AbstractContextManager[None]:
        """See `ort`."""
        return nullcontext()


class _Binding:
    """Inputs and outputs by address, as `onnxruntime.IOBinding` is given them."""

    def __init__(self) -> None:
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}

    def bind_input(self, name: str, _: str, __: int, dtype: type, shape: tuple[int, ...], address: int) -> None:
        """A tensor that is read."""
        self.inputs[name] = _at(address, dtype, shape)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        """The same, of a value that holds it."""
        array = value.numpy()
        self.inputs[name] = np.empty(
            array.shape, array.dtype.name
        )  # OpenVINO does not know `long long`, which it may be
        self.inputs[name][...] = array

    def bind_output(self, name: str, _: str, __: int, dtype: type, shape: tuple[int, ...], address: int) -> None:
        """A tensor that is written."""
        self.outputs[name] = _at(address, dtype, shape)


class _Session:
    """A compiled graph; see the module."""

    def __init__(self, compiled: Any):
        self._request = compiled.create_infer_request()
        self._names = {port.any_name for port in (*compiled.inputs, *compiled.outputs)}

    def io_binding(self) -> _Binding:
        """See `onnxruntime.InferenceSession`."""
        return _Binding()

    def run_with_iobinding(self, binding: _Binding) -> None:
        """See `onnxruntime.InferenceSession`."""
        for name, array in (*binding.inputs.items(), *binding.outputs.items()):
            if name in self._names:
                self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._request.infer()


def _at(address: int, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Memory as an array."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    if not count:
        return np.zeros(shape, dtype)
    return np.frombuffer(memoryview((ctypes.c_char * count).from_address(address)), dtype).reshape(shape)
