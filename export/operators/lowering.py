"""From an exported graph to the one that a TensorRT engine is built from.

Works on a graph's form and never looks into the weights file: the weights become inputs, and of our operators those
stay that a plugin stands ready for, some of them fused with what stands around them (`fusion.py`).
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper
from onnx_graphsurgeon.logger import G_LOGGER

from actvar.bundle.manifest import EXPORT_AGAIN
from actvar.errors import BundleError, UsageError
from actvar.export.operators.fused import ALL_OPERATORS
from actvar.export.operators.fusion import fuse
from actvar.export.operators.sparse import DOMAIN


@dataclass(frozen=True)
class Lowered:
    """A graph as an engine's parser takes it.

    Args:
        model: with neither external data nor functions.
        weights: the inputs that are tensors of the weights file, in the order of the graph's own initializers.
        plugins: of each of our operators that stayed a node, how many plugins the parser must make.
        bodies: of each of the others, how many nodes its static body replaced.
    """

    model: onnx.ModelProto
    weights: tuple[str, ...]
    plugins: Mapping[str, int]
    bodies: Mapping[str, int]


def lower(path_or_model: Path | str | onnx.ModelProto, plugins: Collection[str] = ()) -> Lowered:
    """Lower one graph of a bundle. The same graph gives the same bytes.

    Args:
        path_or_model: the graph; a model is not changed.
        plugins: our operators that the engine has a plugin for; a fused one takes the place of the plain one.

    Raises:
        UsageError: a plugin is for none of our operators.
        BundleError: the graph cannot be read, or uses an operator that is not known here.
    """
    unknown = sorted(set(plugins) - set(ALL_OPERATORS))
    if unknown:
        raise UsageError(f"No operator is called {unknown[0]}. A plugin may be for one of {', '.join(ALL_OPERATORS)}.")
    model = path_or_model if isinstance(path_or_model, onnx.ModelProto) else _loaded(Path(path_or_model))
    with G_LOGGER.suppress():  # it would print that numpy has no bfloat16
        graph = gs.import_onnx(model)
        weights = weights_to_inputs(graph, model)
        fold_ranges(graph)
        fuse(graph, plugins)
        bodies = replace_by_bodies(graph, plugins)
        kept = keep_as_plugins(graph)
        lowered = gs.export_onnx(graph)
    return Lowered(lowered, weights, kept, bodies)


def weights_to_inputs(graph: gs.Graph, model: onnx.ModelProto) -> tuple[str, ...]:
    """Make inputs of all tensors that lie in the weights file, however small: a checkpoint brings every one of them.

    The graph's own constants stay. Returns the names.
    """
    tensors = graph.tensors()
    external = (t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    weights = tuple(name for name in external if name in tensors)
    for name in weights:
        weight = tensors[name].to_variable(shape=list(tensors[name].shape))
        weight.type = "tensor_type"  # which to_variable forgets
        graph.inputs.append(weight)
    return weights


def fold_ranges(graph: gs.Graph) -> None:
    """Make constants of numbers that count from a constant to a constant: an engine need not count at run time."""
    ranges = [
        node for node in graph.nodes if node.op == "Range" and all(isinstance(t, gs.Constant) for t in node.inputs)
    ]
    for node in ranges:
        numbers = np.arange(*(tensor.values for tensor in node.inputs), dtype=node.inputs[0].dtype)
        node.inputs.clear()
        result = node.outputs[0]
        node.outputs.clear()
        result.to_constant(numbers)
    folded = {id(node) for node in ranges}
    graph.nodes = [node for node in graph.nodes if id(node) not in folded]


def replace_by_bodies(graph: gs.Graph, plugins: Collection[str]) -> dict[str, int]:
    """Put the static bodies in the place of our operators, but for those of `plugins`; returns how many of each."""
    bodies: Counter[str] = Counter()
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        if node.domain != DOMAIN or node.op in plugins:
            nodes.append(node)
            continue
        try:
            nodes.extend(_body(node))
        except (KeyError, ValueError):  # another operator, or other inputs and attributes
            where = f"In the graph {graph.name}, the node {node.name} is of an operator"
            raise BundleError(f"{where} {node.op} that is not known here. {EXPORT_AGAIN}") from None
        bodies[node.op] += 1
    graph.nodes = nodes
    return dict(bodies)


def keep_as_plugins(graph: gs.Graph) -> dict[str, int]:
    """Take the bodies from what is left of our operators, so that no engine can fall back on them; returns how many.

    The attributes that name the plugin are the exporter's.
    """
    kept = Counter(node.op for node in graph.nodes if node.domain == DOMAIN)
    graph.functions = []
    graph.import_domains = [opset for opset in graph.import_domains if opset.domain != DOMAIN or kept]
    return dict(kept)


def _body(node: gs.Node) -> list[gs.Node]:
    """The nodes of an operator's static body, between the node's own inputs and outputs, named below the node."""
    function = ALL_OPERATORS[node.op].static_function(node.attrs)
    inputs, outputs = list(node.inputs), list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    tensors: dict[str, gs.Tensor] = dict(zip((*function.input, *function.output), (*inputs, *outputs), strict=True))
    for inner in function.node:
        tensors.update({name: gs.Variable(f"{node.name}/{name}") for name in inner.output if name not in tensors})
    return [
        gs.Node(
            inner.op_type,
            name=f"{node.name}/{inner.output[0]}",
            attrs=_attributes(inner),
            inputs=[tensors[name] for name in inner.input],
            outputs=[tensors[name] for name in inner.output],
        )
        for inner in function.node
    ]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _loaded(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        model = onnx.ModelProto()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from None
    if not model.graph.node:  # as in an empty file, too
        raise BundleError(f"{path} is not an ONNX graph. {EXPORT_AGAIN}")
    return model
