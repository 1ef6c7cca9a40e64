"""What the nodes of a bundle's graphs may be: operators, how many values they read and give, and their attributes.

An engine is made for graphs that somebody means well with. ONNX Runtime 1.32 ends its process for a `Split` that says
another number of parts than it has, for a `GatherND` that counts its batch from the end, and for an
`InstanceNormalization` of nothing. So a node is held to the very values that exports write, and whatever else stands in
a graph, no exporter wrote.

Knows a node's fields in the wire form, and no other node.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from actvar.bundle.wire import Field, fields, numbers, signed

MOST = 1 << 24
"""Of a whole number in a graph: a size, a place or a count."""

# A line is an operator with its domain, how many values it reads, how many it gives, and what it is told; "+" is one
# or more. An attribute is one of the values that are given, or may be left out where one of them is nothing; lists are
# joined by ":", texts are quoted. "@1" is a constant that it reads, by its place.
_IN_SCALES = """
Add 2 1
And 2 1
Cast 1 1 to=1|6|10
Concat + 1 axis=0|1|2|3
ConstantOfShape 1 1 value=tensor|
Conv 3 1 pads=1:1:1:1
CumSum 2 1 @1=-1
Div 2 1
Equal 2 1
Expand 2 1
Gather 2 1 axis=-1|0|
GatherElements 2 1 axis=-1
Gelu 1 1 approximate='tanh'
Gemm 2,3 1 transB=1|
Identity 1 1
If 1 + then_branch=graph else_branch=graph
LayerNormalization 2 1 axis=-1 epsilon=float
Less 2 1
LessOrEqual 2 1
MatMul 2 1
Max 2,3 1
Min 2 1
Mul 2 1
Neg 1 1
NonZero 1 1
QuantizeLinear 3 1 axis=0
Range 3 1
ReduceL2 2 1 keepdims=1 @1=-1
ReduceMax 2 1 keepdims=1 @1=-1
ReduceMin 2 1 keepdims=1 @1=-1
ReduceSum 2 1 keepdims=1 @1=-1
Reshape 2 1
ScatterElements 3 1 axis=1
ScatterND 3 1 reduction='add'
Shape 1 1 start=0| end=1|
Sigmoid 1 1
Slice 4 1
Softmax 1 1 axis=-1
Split 1 2,3,6 axis=0|1 num_outputs=outputs
Squeeze 1,2 1 @1=-1|0
Sub 2 1
TopK 2 2 axis=-1|1 largest=0|
Transpose 1 1 perm=0:1:3:2|0:2:1|0:2:1:3|1:0
Unsqueeze 2 1 @1=-1|0
Where 3 1
actvar.ActVarRoutedFFN 6 1 experts=count active=count plugin_namespace='actvar' plugin_version='1'
actvar.ActVarTokenGather 2 1 plugin_namespace='actvar' plugin_version='1'
actvar.ActVarTokenScatter 3 1 plugin_namespace='actvar' plugin_version='1'
actvar.ActVarTokenSelect 1 1 keep=count plugin_namespace='actvar' plugin_version='1'
com.microsoft.MatMulIntegerToFloat 5 1
"""

_IN_DECODERS = """
Add 2 1
Cast 1 1 to=1|10
Clip 3 1
Conv 3 1 pads=0:0:0:0|1:1:1:1
DepthToSpace 1 1 blocksize=2 mode='DCR'
DequantizeLinear 3 1
InstanceNormalization 3 1 epsilon=float
MatMul 2 1
Mul 2 1
QLinearConv 9 1 pads=0:0:0:0|1:1:1:1
QuantizeLinear 3 1
Relu 1 1
Reshape 2 1
Shape 1 1
Sigmoid 1 1
Slice 4 1 @1=1:1 @2=-1:-1 @3=2:3
Softmax 1 1 axis=-1
Split 1 3 axis=1 num_outputs=outputs
Transpose 1 1 perm=0:2:1
"""

_IN_ENCODERS = """
Add 2 1
Cast 1 1 to=1|10
Concat + 1 axis=1
Conv 3 1 pads=0:0:0:0|1:1:1:1|0:0:1:1 strides=2:2|
Div 2 1
Gather 2 1 axis=0
Gemm 2 1 transB=1
InstanceNormalization 3 1 epsilon=float
MatMul 2 1
Max 2 1
Mul 2 1
ReduceL2 2 1 keepdims=0 @1=-1
ReduceSum 2 1 keepdims=0 @1=-1
Reshape 2 1
Shape 1 1
Sigmoid 1 1
Softmax 1 1 axis=-1
Split 1 3 axis=1 num_outputs=outputs
Sub 2 1
TopK 2 2 axis=-1 @1=1
Transpose 1 1 perm=0:2:1
"""

_IN_BODIES = """
Cast 1 1 to=1
CastLike 2 1
Concat 2 1 axis=-1|0
Constant 0 1 value=tensor| value_int=0|1|own| value_ints=-1|1|1:2|
Expand 2 1
Gather 2 1 axis=0
GatherND 2 1 batch_dims=1
Gelu 1 1 approximate='tanh'
Gemm 3 1 transB=1
MatMul 2 1
NonZero 1 1
Range 3 1
Reshape 2 1
Scan 5 1 num_scan_inputs=4 body=graph
ScatterElements 3 1 axis=1
ScatterND 3 1 reduction='add'|
Shape 1 1 start=-1|0| end=1|
Squeeze 1 1
TopK 2 2 axis=1 largest=0|
Transpose 1 1 perm=1:0
Unsqueeze 2 1
"""

_INPUT, _OUTPUT, _NAME, _OPERATOR, _ATTRIBUTE, _NOTE, _DOMAIN = range(1, 8)  # fields of Node
_CALLED, _INT, _TEXT, _INTS, _TYPE, _OWN = 1, 3, 4, 8, 20, 21  # fields of Attribute
_AS_INT, _AS_TEXT, _AS_INTS = 2, 3, 7  # types of an attribute
_AS_OTHER = {1: "float", 4: "tensor", 5: "graph"}
_COUNT, _OUTPUTS, _ANY = "count", "outputs", "+"

Constants = Callable[[str], Sequence[Sequence[int]]]
"""The whole numbers of a constant by its name: nothing where there is none, several where a file has several."""


@dataclass(frozen=True)
class _Rule:
    """A line of a table."""

    inputs: frozenset[str]
    outputs: frozenset[str]
    attributes: dict[str, frozenset[str]]
    constants: dict[int, frozenset[str]]


Rules = dict[str, _Rule]


def _rules(table: str) -> Rules:
    rules = {}
    for name, inputs, outputs, *told in (line.split() for line in table.strip().splitlines()):
        values = {key: frozenset(text.split("|")) for key, _, text in (each.partition("=") for each in told)}
        rules[name] = _Rule(
            frozenset(inputs.split(",")),
            frozenset(outputs.split(",")),
            {key: allowed for key, allowed in values.items() if not key.startswith("@")},
            {int(key[1:]): allowed for key, allowed in values.items() if key.startswith("@")},
        )
    return rules


IN_SCALES, IN_DECODERS, IN_ENCODERS = map(_rules, (_IN_SCALES, _IN_DECODERS, _IN_ENCODERS))
IN_BODIES = _rules(_IN_BODIES)
"""What may stand in `condition` and the graphs of scales, in a decoder, in the encoder, and in the bodies of our own
operators. There is `Scan`, whose length is a tensor's, and no loop that data ends; and nothing in a decoder or in the
encoder gives an empty tensor."""


def check_node(node: memoryview, rules: Rules, constants: Constants) -> None:
    """Make sure that a node is one of the exporter's. Of a field that is given twice either could count: it is refused.

    Raises:
        ValueError: it is not.
    """
    held = list(fields(node))
    names = [_text(value) for number, value in held if number == _OPERATOR]
    domain = ".".join(_text(value) for number, value in held if number == _DOMAIN)
    wholes = [f"{domain}.{name}" if domain else name for name in names] or [""]
    for whole in wholes:
        if whole not in rules:
            raise ValueError(f"it holds the operator {whole[:80]!r}, which no export writes there")
    rule, name = rules[wholes[0]], wholes[0]
    inputs, outputs = ([_text(value) for number, value in held if number == part] for part in (_INPUT, _OUTPUT))
    if (
        len(wholes) > 1
        or not {number for number, _ in held} <= set(range(_INPUT, _DOMAIN + 1))
        or "" in inputs + outputs
    ):
        raise ValueError(f"it holds a {name} that is written in a way that no export uses")
    for values, allowed in ((inputs, rule.inputs), (outputs, rule.outputs)):
        if str(len(values)) not in allowed and not (values and _ANY in allowed):
            raise ValueError(
                f"it holds a {name} of {len(inputs)} inputs and {len(outputs)} outputs, which no export writes"
            )
    told = [_attribute(value) for number, value in held if number == _ATTRIBUTE and not isinstance(value, int)]
    given = dict(told)
    if len(given) < len(told) or not given.keys() <= rule.attributes.keys():
        raise ValueError(f"it holds a {name} with attributes that no export gives it: {', '.join(given)[:80]!r}")
    for attribute, allowed in rule.attributes.items():
        if not _allows(allowed, given.get(attribute, ""), len(outputs)):
            raise ValueError(
                f"it holds a {name} with {attribute} {given.get(attribute, '')[:80]!r}, which no export writes"
            )
    for place, allowed in rule.constants.items():
        if place < len(inputs):
            read = constants(inputs[place])
            if not read or any(":".join(map(str, values)) not in allowed for values in read):
                raise ValueError(f"it holds a {name} that reads {inputs[place][:80]!r}, where exports write a constant")


def _allows(allowed: frozenset[str], value: str, outputs: int) -> bool:
    counts = _COUNT in allowed and value.isdecimal() and 0 < int(value) <= MOST
    return value in allowed or counts or (_OUTPUTS in allowed and value == str(outputs))


def _attribute(message: memoryview) -> tuple[str, str]:
    """Name and value of an attribute, the value as tables have it."""
    held = list(fields(message))
    if len({number for number, _ in held} - {_INTS}) != sum(number != _INTS for number, _ in held):
        raise ValueError("an attribute has a field that is given twice")
    by_number = dict(held)
    kind, own = by_number.get(_TYPE), by_number.get(_OWN)
    if own is not None:
        value = "own"
    elif kind == _AS_INT:
        value = str(signed(_whole(by_number.get(_INT, 0))))
    elif kind == _AS_INTS:
        value = ":".join(str(signed(each)) for each in _ints(held))
    elif kind == _AS_TEXT:
        value = repr(_text(by_number.get(_TEXT, memoryview(b""))))
    else:
        value = _AS_OTHER.get(_whole(kind), "another type")
    return _text(by_number.get(_CALLED, memoryview(b""))), value


def _ints(held: Sequence[Field]) -> Iterator[int]:
    for number, value in held:
        if number == _INTS:
            yield from numbers(value)


def _whole(value: int | memoryview | None) -> int:
    if not isinstance(value, int):
        raise ValueError("an attribute has bytes where a number belongs")
    return value


def _text(value: int | memoryview) -> str:
    if isinstance(value, int):
        raise ValueError("it has a number where a name belongs")
    return bytes(value).decode()
