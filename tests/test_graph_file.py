"""The reader of ONNX files without onnx: it finds every tensor that lies in another file, wherever a graph hides it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from small_models import SMALL_VQVAE, small_config, vivid_model

from actvar.bundle.graph_file import external_tensors
from actvar.bundle.manifest import read_manifest
from actvar.bundle.operators import IN_BODIES, IN_DECODERS, IN_ENCODERS, IN_SCALES
from actvar.config import Activation, SmallDecoderConfig
from actvar.errors import BundleError
from actvar.export.onnx_export import export_bundle


def tensor(location: str = "weights.bin", offset: str = "8", length: str = "16", **more: str) -> TensorProto:
    """A vector of four, said to lie in a file."""
    result = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length, **more}.items():
        result.external_data.add(key=key, value=value)
    return result


def model(*initializers: TensorProto, nodes: tuple[NodeProto, ...] = ()) -> ModelProto:
    return ModelProto(ir_version=10, graph=GraphProto(name="g", initializer=initializers, node=nodes))


def in_constant(t: TensorProto) -> ModelProto:
    return model(nodes=(NodeProto(op_type="Constant", attribute=[helper.make_attribute("value", t)]),))


def in_branch(t: TensorProto) -> ModelProto:
    branch = GraphProto(name="then", initializer=[t])
    return model(nodes=(NodeProto(op_type="If", attribute=[helper.make_attribute("then_branch", branch)]),))


def in_lists(t: TensorProto) -> ModelProto:
    of_tensors = AttributeProto(name="a", type=AttributeProto.TENSORS, tensors=[t])
    return model(nodes=(NodeProto(op_type="Any", attribute=[of_tensors]),))


def in_graphs(t: TensorProto) -> ModelProto:
    of_graphs = AttributeProto(name="a", type=AttributeProto.GRAPHS, graphs=[GraphProto(initializer=[t])])
    return model(nodes=(NodeProto(op_type="Any", attribute=[of_graphs]),))


def in_function(t: TensorProto) -> ModelProto:
    result = model()
    result.functions.add(name="f").node.add(op_type="Constant").attribute.append(helper.make_attribute("value", t))
    return result


def in_default(t: TensorProto) -> ModelProto:
    result = model()
    result.functions.add(name="f").attribute_proto.append(helper.make_attribute("value", t))
    return result


def in_sparse(t: TensorProto) -> ModelProto:
    result = model()
    result.graph.sparse_initializer.add().values.CopyFrom(t)
    return result


def in_sparse_attribute(t: TensorProto) -> ModelProto:
    result = model(nodes=(NodeProto(op_type="Any"),))
    result.graph.node[0].attribute.add(name="a").sparse_tensor.indices.CopyFrom(t)
    return result


def in_training(t: TensorProto) -> ModelProto:
    result = model()
    result.training_info.add().algorithm.initializer.append(t)
    return result


HIDING_PLACES = (
    in_constant,
    in_branch,
    in_lists,
    in_graphs,
    in_function,
    in_default,
    in_sparse,
    in_sparse_attribute,
    in_training,
)


def read(folder: Path, content: ModelProto | bytes) -> list:
    path = folder / "graph.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return external_tensors(path, "weights.bin")


def test_the_tensors_of_an_exported_graph_are_those_that_onnx_sees(tmp_path: Path):
    """Names, types, shapes and places, of every graph of a bundle in each precision, against the onnx package."""
    network = vivid_model(small_config(activation=Activation(4, (4,), (0.5,), (0.5,))))
    for precision in ("fp32", "fp16"):
        folder = tmp_path / precision
        export_bundle(network, folder, precision, "a test")
        for graph in read_manifest(folder).graphs.values():
            found = external_tensors(folder / graph.entry.file, "weights.bin")
            wanted = {}
            for t in onnx.load(folder / graph.entry.file, load_external_data=False).graph.initializer:
                if t.external_data:
                    place = {entry.key: entry.value for entry in t.external_data}
                    dtype = helper.tensor_dtype_to_np_dtype(t.data_type).name
                    wanted[t.name] = (dtype, tuple(t.dims), int(place["offset"]), int(place["length"]))
            assert {t.name: (t.dtype, t.shape, t.offset, t.length) for t in found} == wanted
            assert wanted


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "sub/../../secret", "secret", "", "*/_ORT_MEM_ADDR_/*"]
)
def test_another_file_is_refused(tmp_path: Path, location: str):
    """Above, absolute, beside, none, and the name by which ONNX Runtime means an address in memory."""
    with pytest.raises(BundleError, match=r"may read weights\.bin alone") as refusal:
        read(tmp_path, model(tensor(), tensor(location)))
    assert str(tmp_path / "graph.onnx") in str(refusal.value)


@pytest.mark.parametrize("hide", HIDING_PLACES)
def test_another_file_is_found_wherever_it_hides(tmp_path: Path, hide: Callable[[TensorProto], ModelProto]):
    """ONNX Runtime reads such tensors from files too; only a graph's own weights are ever written so."""
    with pytest.raises(BundleError, match=r"'\.\./secret', and may read weights\.bin alone"):
        read(tmp_path, hide(tensor("../secret")))
    with pytest.raises(BundleError, match="in a way that no export uses"):
        read(tmp_path, hide(tensor()))
    assert len(read(tmp_path, model(tensor()))) == 1


def test_two_readings_of_one_entry_are_refused(tmp_path: Path):
    """Of a field that comes twice the last one counts; and the parts of a message may be spread over two."""
    twice = tensor().SerializeToString() + tensor("../secret").SerializeToString()  # one message, merged
    graph = b"\x2a" + bytes([len(twice)]) + twice
    with pytest.raises(BundleError, match="two entries 'location'"):
        read(tmp_path, b"\x3a" + bytes([len(graph)]) + graph)
    sly = model(tensor())
    entry = sly.graph.initializer[0].external_data[0]
    data = sly.SerializeToString()
    said = entry.SerializeToString()
    lie = said + b"\x12\x09../secret"  # a second value behind the first
    with pytest.raises(BundleError):
        read(tmp_path, data.replace(bytes([len(said)]) + said, bytes([len(lie)]) + lie))


@pytest.mark.parametrize(
    "wrong",
    [tensor(offset="-8"), tensor(length="12"), tensor(length="x"), tensor(offset=""), TensorProto(name="w", dims=[4])],
)
def test_a_tensor_that_is_described_wrongly_is_refused(tmp_path: Path, wrong: TensorProto):
    """Places outside, lengths that are not the shape's, and no numbers at all."""
    if not wrong.external_data:
        wrong.external_data.add(key="location", value="weights.bin")
    with pytest.raises(BundleError, match=r"graph\.onnx is not a graph that can be used"):
        read(tmp_path, model(wrong))


def test_any_cut_of_a_graph_is_read_or_refused(tmp_path: Path):
    """Bytes at random must not raise anything but our own error, and must come to an end."""
    whole = in_branch(TensorProto(name="w", dims=[1], float_data=[1.0])).SerializeToString()
    for length in range(len(whole)):
        try:
            read(tmp_path, whole[:length])
        except BundleError as error:
            assert "graph.onnx" in str(error)
    for junk in (b"\xff" * 50, b"\x3b", b"\x3a\xff\xff\xff\xff\x0f", b"\x0d\x00"):
        with pytest.raises(BundleError):
            read(tmp_path, junk)


def test_deep_nesting_is_refused(tmp_path: Path):
    """A graph in a graph in a graph ... would exhaust the stack."""
    inner = b""
    for _ in range(300):
        inner = nested(inner)
    with pytest.raises(BundleError, match="nested too deeply"):
        read(tmp_path, b"\x3a" + varint(len(inner)) + inner)


def varint(value: int) -> bytes:
    result = b""
    while value > 127:
        result += bytes([value & 127 | 128])
        value >>= 7
    return result + bytes([value])


def nested(graph: bytes) -> bytes:
    """A graph with one node with one attribute, which is the graph given."""
    attribute = b"\x32" + varint(len(graph)) + graph
    node = b"\x2a" + varint(len(attribute)) + attribute
    return b"\x0a" + varint(len(node)) + node


# ---- what a graph is made of


def uses(nodes: Iterable[NodeProto], into: set[tuple[str, str, str]]) -> None:
    """What nodes, and those in their branches, are told: operator, attribute, value; no value where it is left out."""
    for each in nodes:
        name = f"{each.domain}.{each.op_type}".removeprefix(".")
        into |= {(name, "inputs", str(len(each.input))), (name, "outputs", str(len(each.output)))}
        into |= {(name, attribute, "") for attribute in {"axis", "start", "end"} - {a.name for a in each.attribute}}
        for attribute in each.attribute:
            into.add((name, attribute.name, told(attribute)))
            if attribute.type == AttributeProto.GRAPH:
                uses(attribute.g.node, into)


def told(attribute: AttributeProto) -> str:
    """A value as the tables have it."""
    if attribute.ref_attr_name:
        return "own"
    kinds = {
        AttributeProto.INT: lambda: str(attribute.i),
        AttributeProto.INTS: lambda: ":".join(map(str, attribute.ints)),
        AttributeProto.STRING: lambda: repr(attribute.s.decode()),
    }
    return kinds.get(attribute.type, lambda: AttributeProto.AttributeType.Name(attribute.type).lower())()


def test_every_export_is_made_of_the_nodes_that_are_known_and_all_of_those_are_used(tmp_path: Path):
    """In every precision that ONNX Runtime draws with; a table that is longer than need be would let others in."""
    some = Activation(4, (4,), (0.5,), (0.5,))
    config = small_config(activation=some)
    static = Activation(4, (3, 4), (0.5, 0.5), (0.5, 0.5), "fixed", "static")
    others = [
        replace(config, small_decoder=SmallDecoderConfig(8, 1)),
        small_config(activation=static),
        small_config(activation=some, shared_adaln=True),
        replace(config, guided_scales=2),
        small_config(vqvae=replace(SMALL_VQVAE, znorm=True)),
    ]
    used: dict[str, set[tuple[str, str, str]]] = {kind: set() for kind in ("scales", "decoder", "encoder", "bodies")}
    cases = [
        *((config, each) for each in ("fp32", "fp16", "int8", "fp16-weights")),
        *((o, "fp32") for o in others),
    ]
    for number, (exported, precision) in enumerate(cases):
        folder = tmp_path / str(number)
        export_bundle(vivid_model(exported), folder, precision, "a test", debug=not number)
        for path in folder.glob("*.onnx"):
            external_tensors(path, "weights.bin")
            whole = onnx.load(path, load_external_data=False)
            uses(whole.graph.node, used[path.stem if path.stem in ("decoder", "encoder") else "scales"])
            for function in whole.functions:
                uses(function.node, used["bodies"])
    tables = {"scales": IN_SCALES, "decoder": IN_DECODERS, "encoder": IN_ENCODERS, "bodies": IN_BODIES}
    for kind, rules in tables.items():
        for name, rule in rules.items():
            counts = {"inputs": rule.inputs, "outputs": rule.outputs}
            for what, allowed in {**counts, **rule.attributes}.items():
                unused = {
                    value for value in allowed - {"+", "count", "outputs", ""} if (name, what, value) not in used[kind]
                }
                assert not unused, f"no export of {kind} writes {name} with {what} {unused}"


def node(kind: str, domain: str = "", inputs: str = "x", outputs: str = "y", **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), domain=domain, **attributes)


def body(name: str, *nodes: NodeProto) -> ModelProto:
    result = model()
    result.functions.add(name=name, domain="actvar").node.extend(nodes)
    return result


def in_a_branch(inner: NodeProto) -> ModelProto:
    branch = helper.make_graph([inner], "branch", [], [])
    return model(nodes=(node("If", then_branch=branch, else_branch=branch),))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (model(nodes=(node("Loop"),)), "Loop"),
        (model(nodes=(node("Scan"),)), "Scan"),
        (model(nodes=(node("Add", "somebody"),)), "somebody.Add"),
        (in_a_branch(node("Loop")), "Loop"),
        (body("ActVarRoutedFFN", node("Loop")), "Loop"),
        (body("ActVarRoutedFFN", node("ActVarRoutedFFN", "actvar")), "actvar.ActVarRoutedFFN"),
    ],
    ids=["a loop", "a scan", "a domain", "in a branch", "in a body", "a body that calls itself"],
)
def test_an_operator_that_no_export_writes_is_refused(tmp_path: Path, content: ModelProto, named: str):
    """A loop that never ends would draw for ever: the data decides how long it runs."""
    with pytest.raises(BundleError, match=f"it holds the operator '{named}'"):
        read(tmp_path, content)


def test_a_name_that_is_given_twice_is_looked_at_twice(tmp_path: Path):
    """Of a field that is there twice the last counts, and a reader may take the first."""
    loop = NodeProto(op_type="Loop").SerializeToString() + NodeProto(op_type="Add").SerializeToString()
    graph = b"\x0a" + bytes([len(loop)]) + loop
    with pytest.raises(BundleError, match="'Loop'"):
        read(tmp_path, b"\x3a" + bytes([len(graph)]) + graph)


@pytest.mark.parametrize(
    "constant",
    [
        TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1 << 40]),
        TensorProto(name="c", data_type=TensorProto.INT64, dims=[2], int64_data=[1, 1 << 25]),
        helper.make_tensor("c", TensorProto.INT64, [1], [1 << 40]),
        helper.make_tensor("c", TensorProto.INT64, [1], (1 << 40).to_bytes(8, "little"), raw=True),
        helper.make_tensor("c", TensorProto.INT64, [1], [-(1 << 40)]),
    ],
    ids=["no values", "one of two", "one value", "raw", "negative"],
)
def test_a_constant_that_takes_all_memory_is_refused(tmp_path: Path, constant: TensorProto):
    """By its own dimensions, or as the shape of what a graph makes by it."""
    with pytest.raises(BundleError, match=r"it holds (a|the) constant"):
        read(tmp_path, model(constant))


SPLIT = node("Split", outputs="y z", axis=1, num_outputs=2)
WRONG_NODES = {
    "more parts than there are": node("Split", outputs="y z w", axis=1, num_outputs=2),
    "no number of parts": node("Split", outputs="y z", axis=1),
    "an axis from the end": node("Split", outputs="y z", axis=-1, num_outputs=2),
    "another type": node("Split", outputs="y z", axis=1.0, num_outputs=2),
    "an attribute more": node("Add", inputs="x x", axis=0),
    "an input less": node("Add"),
    "an input that is left out": NodeProto(op_type="Add", input=["x", ""], output=["y"]),
    "an overload": NodeProto(op_type="Add", input=["x", "x"], output=["y"], overload="other"),
    "a reference in no body": NodeProto(
        op_type="Softmax", input=["x"], output=["y"], attribute=[AttributeProto(name="axis", type=2, ref_attr_name="a")]
    ),
    "a size that is none": node("ActVarTokenSelect", "actvar", keep=0, plugin_namespace="actvar", plugin_version="1"),
    "what only a decoder has": node("InstanceNormalization", inputs="x s b", epsilon=1e-6),
    "an axis that nobody wrote down": node("ReduceSum", inputs="x y", keepdims=1),
}


@pytest.mark.parametrize("wrong", WRONG_NODES.values(), ids=WRONG_NODES)
def test_a_node_that_no_export_writes_is_refused(tmp_path: Path, wrong: NodeProto):
    """ONNX Runtime ends its process, without a word that could be caught, for several of these."""
    assert not read(tmp_path, model(nodes=(SPLIT,)))
    with pytest.raises(
        BundleError, match=r"no export writes|no export uses|no export gives it|exports write a constant"
    ):
        read(tmp_path, model(nodes=(wrong,)))


def test_a_body_counts_its_batch_from_the_start(tmp_path: Path):
    """ONNX Runtime 1.32 reads outside of its memory for one that is counted from the end."""
    right = node("GatherND", inputs="x i", batch_dims=1)
    assert not read(tmp_path, body("ActVarTokenGather", right))
    with pytest.raises(BundleError, match="GatherND with batch_dims '-2', which no export writes"):
        read(tmp_path, body("ActVarTokenGather", node("GatherND", inputs="x i", batch_dims=-2)))


@pytest.mark.parametrize("ends", [(0, -1), (-1, 1 << 20), (-1,)])
def test_a_decoder_crops_one_pixel_and_no_more(tmp_path: Path, ends: tuple[int, ...]):
    """What is empty ends the process of ONNX Runtime 1.32 in the norm behind it."""
    crop = node("Slice", inputs="x starts ends axes")
    whole = {"starts": (1, 1), "ends": (-1, -1), "axes": (2, 3)}
    path = tmp_path / "decoder.onnx"
    for values in (whole, {**whole, "ends": ends}, {"starts": (1, 1), "axes": (2, 3)}):
        constants = [helper.make_tensor(name, TensorProto.INT64, [len(each)], each) for name, each in values.items()]
        path.write_bytes(model(*constants, nodes=(crop,)).SerializeToString())
        if values == whole:
            assert not external_tensors(path, "weights.bin")
        else:
            with pytest.raises(BundleError, match="Slice that reads 'ends', where exports write a constant"):
                external_tensors(path, "weights.bin")
