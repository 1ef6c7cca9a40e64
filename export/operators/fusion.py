"""Fuses a sparse block's two ends: an engine then reads and writes the kept tokens once where it did twice or more.

Knows the forms in which `transformer.py` writes them, and what each becomes (`fused.py`):

    gather, LayerNorm, * (1 + scale), + shift, cast      ActVarTokenGatherNorm
    cast, * gamma, + kept, scatter                       ActVarTokenScatterGated

What has not this form to the last node, or shows a value between them to anybody else, is left as it is.
"""

from collections.abc import Collection

import onnx_graphsurgeon as gs
from onnx import TensorProto

from actvar.export.operators.sparse import DOMAIN, PLUGIN

_VALUES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def fuse(graph: gs.Graph, plugins: Collection[str]) -> None:
    """Fuse what one of `plugins` stands ready for. The order of the nodes stays one in which they can run."""
    order = {id(node): place for place, node in enumerate(graph.nodes)}
    shown = {tensor.name for tensor in graph.outputs}
    made: dict[int, gs.Node] = {}  # by the node that each takes the place of
    for node in list(graph.nodes):
        if node.op == "ActVarTokenGather" and "ActVarTokenGatherNorm" in plugins:
            made |= _fused_gather(node, order, shown)
        if node.op == "ActVarTokenScatter" and "ActVarTokenScatterGated" in plugins:
            made |= _fused_scatter(node, shown)
    nodes = (made.get(id(node), node) for node in graph.nodes)
    graph.nodes = [node for node in nodes if node.outputs]  # those that were taken apart have none


def _fused_gather(gather: gs.Node, order: dict[int, int], shown: Collection[str]) -> dict[int, gs.Node]:
    kept = gather.outputs[0]
    norm = next((node for node in kept.outputs if _is_plain_norm(node)), None)
    scaled = norm and _next(norm, "Mul", shown)
    shifted = scaled and _next(scaled, "Add", shown)
    factor = scaled and _before(scaled.inputs[1], "Add", shown)
    if not (norm and scaled and shifted and factor and _is_one(factor.inputs[1])):
        return {}
    if any(order[id(node)] < order[id(shifted)] for node in kept.outputs if node is not norm):
        return {}  # somebody needs the tokens before scale and shift are there
    inputs, epsilon = [*gather.inputs, factor.inputs[0], shifted.inputs[1]], _epsilon(norm)
    reshape, normed, to = _next(shifted, "Reshape", shown), shifted.outputs[0], TensorProto.FLOAT
    cast = reshape and _next(reshape, "Cast", shown)
    if reshape and cast and cast.attrs["to"] in _VALUES:
        to, result = cast.attrs["to"], cast.outputs[0]
        _take_apart(cast)
        reshape.outputs = [result]
        normed.dtype = None
    _take_apart(gather, norm, factor, scaled, shifted)
    given = {"to": to, "epsilon": epsilon}
    return {id(shifted): _node("ActVarTokenGatherNorm", gather.name, inputs, [kept, normed], **given)}


def _fused_scatter(scatter: gs.Node, shown: Collection[str]) -> dict[int, gs.Node]:
    x, indices, updated = scatter.inputs
    residual = _before(updated, "Add", shown)
    gated = residual and _before(residual.inputs[1], "Mul", shown)
    reshape = gated and _before(gated.inputs[0], "Reshape", shown)
    if not (residual and gated and reshape):
        return {}
    change, cast = reshape.outputs[0], _before(reshape.inputs[0], "Cast", shown)
    if cast and cast.attrs["to"] == TensorProto.FLOAT:
        reshape.inputs[0] = cast.inputs[0]
        change.dtype = None
        _take_apart(cast)
    inputs, y = [x, indices, residual.inputs[0], gated.inputs[1], change], scatter.outputs[0]
    _take_apart(gated, residual, scatter)
    return {id(scatter): _node("ActVarTokenScatterGated", scatter.name, inputs, [y])}


def _next(node: gs.Node, kind: str, shown: Collection[str]) -> gs.Node | None:
    """The node of this kind that alone reads what `node` gives, as its first input."""
    result = node.outputs[0]
    if result.name in shown or len(result.outputs) != 1:
        return None
    reader = result.outputs[0]
    return reader if reader.op == kind and reader.inputs[0] is result else None


def _before(tensor: gs.Tensor, kind: str, shown: Collection[str]) -> gs.Node | None:
    """The node of this kind that gives a tensor, which has no reader but the one that it was found through."""
    if tensor.name in shown or len(tensor.outputs) != 1 or len(tensor.inputs) != 1:
        return None
    return tensor.inputs[0] if tensor.inputs[0].op == kind else None


def _is_plain_norm(node: gs.Node) -> bool:
    """LayerNorm over the last axis, without a factor or an offset of its own."""
    if node.op != "LayerNormalization" or len(node.inputs) != 2 or len(node.outputs) != 1:
        return False
    return node.attrs.get("axis", -1) == -1 and _is_one(node.inputs[1])


def _epsilon(norm: gs.Node) -> float:
    """As ONNX has it where it is left out."""
    return float(norm.attrs.get("epsilon", 1e-5))


def _is_one(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and bool((tensor.values == 1).all())


def _take_apart(*nodes: gs.Node) -> None:
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()


def _node(kind: str, name: str, inputs: list[gs.Tensor], outputs: list[gs.Tensor], **attributes: float) -> gs.Node:
    attrs = {**attributes, **PLUGIN}
    return gs.Node(kind, name=name, attrs=attrs, inputs=inputs, outputs=outputs, domain=DOMAIN)
