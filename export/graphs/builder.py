"""Writes one ONNX graph, node by node.

Knows ONNX's form and nothing of the model: names that stay the same from export to export, constants, weights that
live in a file beside the graph, and where a graph changes precision. A value is named by a string.

`name` of a node says where it stands, as in `blocks.3/attn/qkv`; its output bears the same name, so that a profile or
an engine's log reads like the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from actvar.bundle.contract import TensorSpec
from actvar.bundle.manifest import WEIGHTS_FILE, StoredTensor
from actvar.export.operators.sparse import DOMAIN, DOMAIN_VERSION, OPERATORS

OPSET = 20
IR_VERSION = 10  # that of opset 20's own time: engines refuse what is newer than they are

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""What people call the types."""

Branch: TypeAlias = Callable[[], Sequence[str]]


class GraphBuilder:
    """A graph that grows by `op`, and becomes a model by `build`.

    Args:
        name: of the graph.
        weights: what the weights file holds.
        compute: the type in which matrices are multiplied: "float32", "float16" or "bfloat16".
    """

    def __init__(self, name: str, weights: Mapping[str, StoredTensor], compute: str):
        self.name = name
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self.weights: dict[str, StoredTensor] = {}
        self._stored, self.compute = weights, compute
        self._nodes: list[onnx.NodeProto] = []
        self._ahead: list[onnx.NodeProto] = []
        self._widened: dict[str, str] = {}
        self._initializers: dict[str, TensorProto] = {}
        self._taken: dict[str, int] = {}
        self._scope: tuple[str, ...] = ()
        self._custom: dict[str, None] = {}  # in the order of first use
        self._domains: dict[str, None] = {}  # of others' operators, in the same order

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of the nodes inside."""
        outer, self._scope = self._scope, (*self._scope, name)
        try:
            yield
        finally:
            self._scope = outer

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Put the nodes inside before all others, out of any scope: they may be wanted in a branch, and outside of it.

        They may read inputs, weights and constants, and each other.
        """
        outside = self._nodes, self._scope
        self._nodes, self._scope = self._ahead, ()
        try:
            yield
        finally:
            self._nodes, self._scope = outside

    # ---- nodes

    def op(self, kind: str, *inputs: str, name: str = "", output: str = "", **attributes: Any) -> str:
        """Add a node with one output.

        Args:
            kind: the ONNX operator, or one of ours (`operators.OPERATORS`).
            inputs: values; an empty string leaves an optional one out.
            name: within the scope; `kind` if left out.
            output: the value's name where it must be a certain one; the node's name otherwise.
            attributes: the node's; `domain` where it is an engine's own.

        Returns: the output's name.
        """
        node_name = self._unique(name or kind)
        output = output or node_name
        if kind in OPERATORS:
            self._custom[kind] = None
            node = OPERATORS[kind].node(inputs, output, node_name, **attributes)
        else:
            node = helper.make_node(kind, inputs, [output], name=node_name, **attributes)
            self._domains |= dict.fromkeys(filter(None, (node.domain,)))
        self._nodes.append(node)
        return output

    def ops(self, kind: str, *inputs: str, count: int, name: str = "", **attributes: Any) -> tuple[str, ...]:
        """Add a node with `count` outputs; returns their names."""
        node_name = self._unique(name or kind)
        outputs = tuple(f"{node_name}:{i}" for i in range(count))
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=node_name, **attributes))
        return outputs

    def choose(
        self, condition: str | bool, then: Branch, otherwise: Branch, dtypes: Sequence[str], name: str
    ) -> Sequence[str]:
        """Add an `If`, or one of the two alone, where it is known which.

        Args:
            condition: a bool without dimensions, or what it is.
            then, otherwise: each adds its own nodes, which may read any value from before, and returns the names of as
                many values as there are `dtypes`.
            dtypes: of the results.
            name: within the scope.

        Returns: the results' names.
        """
        if isinstance(condition, bool):
            return then() if condition else otherwise()
        branches = {}
        for attribute, write in (("then_branch", then), ("else_branch", otherwise)):
            outer, self._nodes = self._nodes, []
            results: list[str] = []
            for result in write():  # a branch gives what its own nodes make, and each value once
                own = any(result in node.output for node in self._nodes) and result not in results
                results.append(result if own else self.op("Identity", result))
            nodes, self._nodes = self._nodes, outer
            typed = zip(results, dtypes, strict=True)
            made = [helper.make_tensor_value_info(result, _ONNX_TYPES[dtype], None) for result, dtype in typed]
            branches[attribute] = helper.make_graph(nodes, f"{name}/{attribute}", [], made)
        return self.ops("If", condition, count=len(dtypes), name=name, **branches)

    def split(self, value: str, count: int, axis: int, name: str = "split") -> tuple[str, ...]:
        """Equal parts along an axis."""
        return self.ops("Split", value, count=count, axis=axis, num_outputs=count, name=name)

    def reshape(self, value: str, *shape: int) -> str:
        """One dimension may be -1."""
        return self.op("Reshape", value, self.ints(*shape), name="reshape")

    # ---- precision

    def to_compute(self, value: str) -> str:
        """From fp32 to what matrices are multiplied in."""
        if self.compute == "float32":
            return value
        return self.op("Cast", value, to=_ONNX_TYPES[self.compute], name=f"to_{SHORT[self.compute]}")

    def to_fp32(self, value: str) -> str:
        """From what matrices are multiplied in to fp32."""
        if self.compute == "float32":
            return value
        return self.op("Cast", value, to=TensorProto.FLOAT, name="to_fp32")

    # ---- tensors that the graph brings along

    def weight(self, name: str, shape: Sequence[int] | None = None) -> str:
        """A tensor of the weights file, in fp32 where it is held in fp16 and multiplied in fp32.

        Args:
            name: in the file.
            shape: how this graph reads the bytes, if not in the shape that they were stored with.
        """
        stored = self._stored[name]
        return self._external(name, replace(stored, shape=tuple(shape or stored.shape)))

    def weight_rows(self, name: str, start: int, end: int) -> str:
        """Rows `start` to `end - 1` of a tensor of the weights file, the same bytes; under its name from row 0 on."""
        whole = self._stored[name]
        part = replace(whole, shape=(end - start, *whole.shape[1:]))
        if start == 0:
            return self._external(name, part)
        offset = whole.offset + whole.length // whole.shape[0] * start
        return self._external(f"{name}.{start}", replace(part, offset=offset))

    def weight_slice(self, name: str, place: int, count: int) -> str:
        """One of `count` equal parts, along its first dimension, of a tensor of the weights file: the same bytes."""
        whole = self._stored[name]
        part = replace(whole, shape=(whole.shape[0] // count, *whole.shape[1:]))
        return self._external(f"{name}.{place}", replace(part, offset=whole.offset + place * part.length))

    def _external(self, name: str, read: StoredTensor) -> str:
        if name not in self._initializers:
            self.weights[name] = read
            self._initializers[name] = external_tensor(name, read)
        if read.dtype != "float16" or self.compute != "float32":
            return name
        if name not in self._widened:
            with self.ahead():
                self._widened[name] = self.op("Cast", name, to=TensorProto.FLOAT, name=f"{name}/to_fp32")
        return self._widened[name]

    def shape(self, weight: str) -> tuple[int, ...]:
        """Of a tensor of the weights file."""
        return self._stored[weight].shape

    def has(self, weight: str) -> bool:
        """Whether the weights file holds a tensor of this name."""
        return weight in self._stored

    def ints(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def int_scalar(self, value: int) -> str:
        """An int64 constant without dimensions."""
        return self.constant(f"int_{value}", np.array(value, np.int64))

    def scalar(self, value: float) -> str:
        """An fp32 constant without dimensions."""
        return self.constant(f"float_{value}", np.array(value, np.float32))

    def constant(self, name: str, values: np.ndarray) -> str:
        """A constant that belongs to the graph and not to the checkpoint; the name stands for the values."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(values, name)
        return name

    # ---- what goes in and out

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare an input; returns its name."""
        self.inputs.append(TensorSpec(name, dtype, tuple(shape)))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare an output, which some node must write under this name; returns the name."""
        self.outputs.append(TensorSpec(name, dtype, tuple(shape)))
        return name

    def build(self) -> onnx.ModelProto:
        """The model, with the function bodies of our operators that it uses."""
        graph = helper.make_graph(
            [*self._ahead, *self._nodes],
            self.name,
            [_value_info(spec) for spec in self.inputs],
            [_value_info(spec) for spec in self.outputs],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if self._custom:
            opsets.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        opsets += [helper.make_opsetid(domain, 1) for domain in self._domains]
        functions = [OPERATORS[kind].function() for kind in self._custom]
        return helper.make_model(
            graph, functions=functions, opset_imports=opsets, ir_version=IR_VERSION, producer_name="actvar"
        )

    def _unique(self, name: str) -> str:
        path = "/".join((*self._scope, name))
        count = self._taken[path] = self._taken.get(path, 0) + 1
        return path if count == 1 else f"{path}_{count}"


def external_tensor(name: str, read: StoredTensor) -> TensorProto:
    """A tensor whose values lie in the weights file."""
    tensor = TensorProto(name=name, data_location=TensorProto.EXTERNAL)
    tensor.data_type = _ONNX_TYPES[read.dtype]
    tensor.dims.extend(read.shape)
    for key, value in (("location", WEIGHTS_FILE), ("offset", str(read.offset)), ("length", str(read.length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _ONNX_TYPES[spec.dtype], spec.shape)
