"""Graphs that tests lower: small models of many configurations, exported once, and what ONNX Runtime makes of them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from small_models import small_config, vivid_model

from actvar.config import DYNAMIC, FIXED, MINI, STATIC, Activation
from actvar.export.onnx_export import export_bundle

CONFIGS = {
    "mini": replace(MINI, class_names=(), num_classes=5, activation=Activation()),
    "mini, one block": replace(MINI, depth=1, class_names=(), num_classes=5, activation=Activation()),
    "four experts": small_config(activation=Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.25))),
    "eight experts, first scale": small_config(activation=Activation(8, (1, 3), (1.0, 0.4), (0.5, 0.5)), depth=1),
    "32 experts": small_config(activation=Activation(32, (4,), (0.75,), (0.5,))),
    "all scores equal": small_config(activation=Activation(8, (4,), (0.5,), (0.5,))),
    "tokens alone": small_config(activation=Activation(4, (3,), (0.5,), (1.0,))),
    "experts alone": small_config(activation=Activation(4, (3,), (1.0,), (0.5,))),
    "all active": small_config(activation=Activation(4, (3, 4), (1.0, 1.0), (1.0, 1.0))),
    "fixed tokens": small_config(activation=Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.25), FIXED)),
    "fixed tokens, static experts": small_config(
        activation=Activation(8, (2, 4), (0.5, 0.6), (0.75, 0.25), FIXED, STATIC)
    ),
    "static experts": small_config(activation=Activation(8, (2, 4), (0.5, 0.6), (0.75, 0.25), DYNAMIC, STATIC)),
    "shared AdaLN": small_config(activation=Activation(4, (4,), (0.5,), (0.5,)), shared_adaln=True),
}


@dataclass(frozen=True)
class Graph:
    """One graph of a bundle."""

    path: Path

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path, load_external_data=False)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """What the graph reads from the weights file."""
        external = {t.name for t in self.model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
        whole = onnx.load(self.path).graph.initializer
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in whole if tensor.name in external}

    def inputs(self, batch: int) -> dict[str, np.ndarray]:
        """Something for each input, of its type and shape."""
        rng, found = np.random.default_rng(7), {}
        known = {"cfg": 2.0, "top_k": 30, "top_p": 0.9, "class_ids": np.arange(batch), "given": np.array(-1)}
        for value in self.model.graph.input:
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            dims = [batch if d.dim_param == "B" else d.dim_value for d in value.type.tensor_type.shape.dim]
            drawn = rng.random(dims) if value.name == "uniform" else rng.standard_normal(dims)
            if value.name == "past_kv":
                drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)  # keys are of unit length
            found[value.name] = np.array(np.broadcast_to(known.get(value.name, drawn), dims), dtype)
        return found


def run(model: str | bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


class GatherElements(OpRun):
    """Along the last axis, which onnx 1.23's own takes for a different one."""

    def _run(self, x: np.ndarray, indices: np.ndarray, axis: int) -> tuple[np.ndarray]:
        return (np.take_along_axis(x, indices, axis),)


def interpret(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs, by ONNX's own interpreter: slow, but it knows bfloat16, and rounds wherever a graph says so."""
    interpreter = ReferenceEvaluator(model, new_ops=[GatherElements])
    return dict(zip(interpreter.output_names, interpreter.run(None, inputs), strict=True))


class Exported:
    """Bundles by configuration and precision, each made on first use in a folder of its own."""

    def __init__(self, folders: pytest.TempPathFactory):
        self._folders = folders
        self._made: dict[tuple[str, str], dict[str, Graph]] = {}

    def __call__(self, name: str, precision: str = "fp32") -> dict[str, Graph]:
        """The graphs by name."""
        if (name, precision) not in self._made:
            model, folder = vivid_model(CONFIGS[name]), self._folders.mktemp("bundles") / "bundle"
            if name == "all scores equal":
                for parameter, values in model.named_parameters():
                    if "router" in parameter or "selector" in parameter:
                        values.zero_()
            manifest = export_bundle(model, folder, precision, "random weights, seed 0", debug=True)
            self._made[name, precision] = {graph: Graph(folder / f"{graph}.onnx") for graph in manifest.graphs}
        return self._made[name, precision]
