"""Seeded changes to an ONNX model: its operators, attributes, constants, wires, inputs, and where its weights lie."""

import random

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from actvar.bundle.operators import IN_BODIES, IN_DECODERS, IN_ENCODERS, IN_SCALES

_SIZES = (0, 1, 2, 3, 255, 1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 31, 1 << 40, (1 << 63) - 1, -1, -2, -(1 << 40))
_OTHERS = ("Loop", "Scan", "If", "Resize", "Tile", "Optional", "SequenceMap", "RandomNormal", "Einsum", "Pad", "Nope")
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "actvar", "\x1b[2J", "x" * 5000)
_NAMES = ("", "other", "\x1b[2J", "a\nb", "x" * 5000, "past_kv", "f_hat", "é\u202e")
_PLACES = ("", ".", "..", "../outside", "/etc/passwd", "weights.bin", "*/_ORT_MEM_ADDR_/*", "manifest.json", "\x1b[2J")


def _nodes(model: ModelProto, rng: random.Random) -> list[NodeProto]:
    """The nodes of the graph, or of one of the bodies of our own operators."""
    inside = rng.choice([model.graph, model.graph, *model.functions])
    return list(inside.node) or list(model.graph.node)


def other_node(model: ModelProto, rng: random.Random) -> None:
    """Another operator, known or not, or the same of another domain or name."""
    node = rng.choice(_nodes(model, rng))
    kind = rng.randrange(4)
    if kind == 0:
        node.op_type = rng.choice(_OTHERS)
    elif kind == 1:
        node.domain = rng.choice(_DOMAINS)
    elif kind == 2:
        node.name = rng.choice(_NAMES)
    else:
        domain, _, node.op_type = rng.choice(sorted({*IN_SCALES, *IN_DECODERS, *IN_ENCODERS, *IN_BODIES})).rpartition(
            "."
        )
        node.domain = domain


def other_nodes(model: ModelProto, rng: random.Random) -> None:
    """A node that is missing, doubled, or before those that it reads from."""
    inside = rng.choice([model.graph, *model.functions])
    if not inside.node:
        return
    place = rng.randrange(len(inside.node))
    kind = rng.randrange(3)
    if kind == 0:
        del inside.node[place]
    elif kind == 1:
        inside.node.append(inside.node[place])
    else:
        node = inside.node.pop(place)
        inside.node.insert(rng.randrange(len(inside.node) + 1), node)


def other_attribute(model: ModelProto, rng: random.Random) -> None:
    """Another value, type or name of an attribute, or one that nobody asked for."""
    nodes = _nodes(model, rng)
    attributes = [attribute for node in nodes for attribute in node.attribute]
    if not attributes or rng.random() < 0.1:
        name = rng.choice(("axis", "axes", "to", "perm", "body", "group", "K", "plugin_namespace"))
        rng.choice(nodes).attribute.append(helper.make_attribute(name, rng.choice((-1, 1 << 40, [1 << 40], "x", 0.5))))
        return
    attribute = rng.choice(attributes)
    if attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(_SIZES)
    elif attribute.type == AttributeProto.INTS:
        attribute.ints[:] = [rng.choice(_SIZES) for _ in range(len(attribute.ints) * rng.choice((1, 1, 2, 5000)))]
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e-40))
    elif rng.random() < 0.5:
        attribute.type = rng.choice(
            (AttributeProto.INT, AttributeProto.TENSOR, AttributeProto.GRAPH, AttributeProto.STRINGS)
        )
    else:
        attribute.name = rng.choice(_NAMES)


def other_constant(model: ModelProto, rng: random.Random) -> None:
    """Another number in a constant, or other dimensions or another type of it."""
    constants = [each for each in model.graph.initializer if not each.external_data]
    whole = [each for each in constants if each.data_type == TensorProto.INT64]
    if not constants:
        return
    constant = rng.choice(whole or constants) if rng.random() < 0.8 else rng.choice(constants)
    values = numpy_helper.to_array(constant).copy()
    kind = rng.randrange(5)
    if kind < 3 and values.size and constant.data_type == TensorProto.INT64:
        values.flat[rng.randrange(values.size)] = rng.choice(_SIZES)
        constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    elif kind == 3:
        constant.data_type = rng.choice((0, 1, 6, 7, 8, 9, 10, 14, 16, 99))
    else:
        constant.dims.append(rng.choice((0, 2, 1 << 20, 1 << 40, -1)))


def other_wire(model: ModelProto, rng: random.Random) -> None:
    """A node that reads something else, perhaps itself; or writes over another's output."""
    nodes = _nodes(model, rng)
    node, other = rng.choice(nodes), rng.choice(nodes)
    if node.input and other.output and rng.random() < 0.8:
        node.input[rng.randrange(len(node.input))] = rng.choice((*other.output, *other.input, *node.output, ""))
    elif node.output and other.output:
        node.output[0] = other.output[0]


def other_side(model: ModelProto, rng: random.Random) -> None:
    """An input or output of the graph that is missing, doubled, or of another name, type or shape."""
    side = rng.choice((model.graph.input, model.graph.output))
    if not side:
        return
    value = rng.choice(side)
    kind = rng.randrange(5)
    if kind == 0:
        side.remove(value)
    elif kind == 1:
        side.add().CopyFrom(value)
    elif kind == 2:
        value.name = rng.choice((*_NAMES, rng.choice(side).name))
    elif kind == 3:
        value.type.tensor_type.elem_type = rng.choice((0, 1, 7, 8, 9, 10, 14, 99))
    else:
        dims = value.type.tensor_type.shape.dim
        (rng.choice(dims) if dims else dims.add()).dim_value = rng.choice(_SIZES)


def other_place(model: ModelProto, rng: random.Random) -> None:
    """A weight that is said to lie elsewhere, in another file or in this one, or to be of another shape or type."""
    weights = [each for each in model.graph.initializer if each.external_data]
    if not weights:
        return
    weight = rng.choice(weights)
    entry = rng.choice(weight.external_data)
    kind = rng.randrange(5)
    if kind == 0:
        weight.external_data.add(key=entry.key, value=entry.value)
    elif kind == 1:
        weight.dims[:] = rng.choice(([1 << 40], [*weight.dims, 1 << 20], [1 << 32, 1 << 32], [-1], [], [0]))
    elif kind == 2:
        weight.data_type = rng.choice((0, 1, 7, 8, 10, 16, 17, 99))
    elif kind == 3:
        entry.key = rng.choice(("checksum", "location", "offset", "length", ""))
    else:
        numbers = ("0", "-1", "1", "4097", str(1 << 40), str(1 << 63), "9" * 40, "1e3", "", "٣", " 0", "0x10")
        entry.value = rng.choice(_PLACES if entry.key == "location" else numbers)


def more(model: ModelProto, rng: random.Random) -> None:
    """A loop without an end, a branch, a chain that grows, a huge constant, or a body that calls itself."""
    rng.choice((_loop, _branch, _growth, _huge, _own_body))(model, rng)


def header(model: ModelProto, rng: random.Random) -> None:
    """Other versions of the form and of the operators, or strange notes."""
    kind = rng.randrange(4)
    if kind == 0:
        model.ir_version = rng.choice((0, 3, 9, 99, -1))
    elif kind == 1:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 13, 99, -1, 1 << 62))
    elif kind == 2:
        model.opset_import.add(domain=rng.choice(_DOMAINS), version=rng.choice((1, 99)))
    else:
        model.graph.name = rng.choice(_NAMES)
        model.metadata_props.add(key="\x1b[2J", value="x" * 5000)


CHANGES = (
    other_node, other_nodes, other_attribute, other_constant, other_constant, other_wire, other_side, other_place, more,
    header,
)  # fmt: skip


def _first(graph: GraphProto, *nodes: NodeProto) -> None:
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)


def _constant(model: ModelProto, name: str, values: list[int]) -> str:
    model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
    return name


def _loop(model: ModelProto, rng: random.Random) -> None:
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    go, on = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on"))
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", [turn, go], [on])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["", "yes"], [], body=body)
    if rng.random() < 0.5 or not model.functions:
        model.graph.initializer.append(yes)
        _first(model.graph, loop)
    else:
        constant = helper.make_node("Constant", [], ["yes"], value=yes)
        body_nodes = rng.choice(model.functions).node
        body_nodes.insert(0, constant)
        body_nodes.insert(1, loop)


def _branch(model: ModelProto, rng: random.Random) -> None:
    """A branch in a branch in a branch, or one that holds a loop."""
    _loop(model, random.Random(0))
    node = model.graph.node.pop(0)
    out = helper.make_tensor_value_info("branched", TensorProto.BOOL, [])
    for depth in range(rng.choice((1, 3, 8))):  # both branches hold those below: each time it is twice as much
        body = helper.make_graph([node, helper.make_node("Identity", ["yes"], ["branched"])], "branch", [], [out])
        node = helper.make_node("If", ["yes"], [f"branch_{depth}"], then_branch=body, else_branch=body)
    _first(model.graph, node)


def _growth(model: ModelProto, rng: random.Random) -> None:
    """Steps that each make a tensor a thousand times larger, by operators and constants that are allowed."""
    shape = _constant(model, "grow_0", [1])
    nodes = [helper.make_node("ConstantOfShape", [shape], ["grown_0"])]
    for step in range(1, rng.choice((2, 4, 7))):
        shape = _constant(model, f"grow_{step}", [rng.choice((2, 1000, 1 << 16))] + [1] * (step - 1) + [1])
        nodes.append(helper.make_node("Expand", [f"grown_{step - 1}", shape], [f"grown_{step}"]))
    end = nodes[-1].output[0]
    model.graph.output.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, None))
    _first(model.graph, *nodes)


def _huge(model: ModelProto, rng: random.Random) -> None:
    shape = _constant(model, "huge", [rng.choice(_SIZES) for _ in range(rng.choice((1, 2, 3)))])
    _first(model.graph, helper.make_node("ConstantOfShape", [shape], ["huge_value"]))


def _own_body(model: ModelProto, rng: random.Random) -> None:
    """A body of an operator of ours that holds this operator, or another of them."""
    if not model.functions:
        return
    function, other = rng.choice(model.functions), rng.choice(model.functions)
    node = function.node[rng.randrange(len(function.node))]
    node.op_type, node.domain = other.name, other.domain
