"""Runs an operator of ours by its bodies alone, in ONNX Runtime: a model of one node, checked before it runs."""

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from actvar.export.operators.lowering import lower
from actvar.export.operators.sparse import DOMAIN, DOMAIN_VERSION, OPERATORS


def run_body(name: str, inputs: list[np.ndarray], **attributes: int) -> np.ndarray:
    """By the body that graphs carry, whatever the sizes."""
    return _run(_one_node(name, inputs, False, attributes), name, inputs)


def run_static_body(name: str, inputs: list[np.ndarray], **attributes: int) -> np.ndarray:
    """By the body that the lowering puts in the node's place, where sizes are known."""
    lowered = lower(_one_node(name, inputs, True, attributes))
    assert lowered.bodies == {name: 1}
    return _run(lowered.model, name, inputs)


def _one_node(name: str, inputs: list[np.ndarray], sized: bool, attributes: dict[str, int]) -> onnx.ModelProto:
    operator = OPERATORS[name]
    names = list(operator.inputs)
    node = operator.node(names, "result", "node", **attributes)
    values = [
        helper.make_tensor_value_info(
            n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape if sized else [None] * x.ndim
        )
        for n, x in zip(names, inputs, strict=True)
    ]
    dtype = np.dtype(np.int64) if name == "ActVarTokenSelect" else inputs[0].dtype
    result = helper.make_tensor_value_info("result", helper.np_dtype_to_tensor_dtype(dtype), [None] * inputs[0].ndim)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    graph = helper.make_graph([node], "one_node", values, [result])
    return helper.make_model(graph, functions=[operator.function()], opset_imports=opsets, ir_version=10)


def _run(model: onnx.ModelProto, name: str, inputs: list[np.ndarray]) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(OPERATORS[name].inputs, inputs, strict=True)))[0]
