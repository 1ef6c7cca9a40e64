"""Lowering: the graph that a TensorRT engine is built from does what the exported graph does, and its parser takes it.

What a lowered graph computes is seen in ONNX Runtime; TensorRT-RTX parses and builds without a GPU, and runs nothing
here. What a static body computes by itself is `test_static_bodies.py`'s.
"""

import subprocess
import sys
from collections import Counter
from types import ModuleType

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from exported_graphs import CONFIGS, Exported, run
from onnx import TensorProto, helper

from actvar.bundle.manifest import WEIGHTS_FILE
from actvar.errors import BundleError, UsageError
from actvar.export.operators.lowering import fold_ranges, lower, replace_by_bodies, weights_to_inputs
from actvar.export.operators.sparse import DOMAIN, OPERATORS

SMALL = [name for name in CONFIGS if name != "mini"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    """Bundles by configuration, each made once: the graphs by name."""
    return Exported(tmp_path_factory)


# ---- the lowered graph does what the exported graph does


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_each_lowered_graph_gives_what_the_exported_graph_gives(exported, name, batch):
    """With the file's weights as inputs: the same tokens and choices, and numbers to 1e-5 of their size."""
    for graph_name, graph in exported(name).items():
        inputs = graph.inputs(batch)
        expected = run(str(graph.path), inputs)
        results = run(lower(graph.path).model.SerializeToString(), {**inputs, **graph.weights})
        assert list(results) == list(expected)
        for output, wanted in expected.items():
            assert results[output].dtype == wanted.dtype
            limit = 0 if wanted.dtype.kind == "i" else 1e-5 * max(1, abs(wanted).max())
            np.testing.assert_allclose(results[output], wanted, rtol=0, atol=limit, err_msg=f"{graph_name}: {output}")


@pytest.mark.parametrize("name", ["mini, one block", "four experts", "32 experts"])
def test_lowered_fp16_graphs_differ_from_the_exported_ones_by_rounding(exported, name):
    """One GEMM adds the experts up where the exported graph adds their rounded results; the choices stay in fp32."""
    same = []
    for graph_name, graph in exported(name, "fp16").items():
        inputs = graph.inputs(2)
        expected = run(str(graph.path), inputs)
        results = run(lower(graph.path).model.SerializeToString(), {**inputs, **graph.weights})
        for output in {"logits", "new_kv"} & set(expected):
            error = np.linalg.norm((results[output] - expected[output]).astype(np.float32))
            assert error < 1e-2 * np.linalg.norm(expected[output].astype(np.float32)), (graph_name, output)
        if "token_ids" in expected:
            same.extend((results["token_ids"] == expected["token_ids"]).ravel())
    assert np.mean(same) > 0.99


# ---- what is in it


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", SMALL)
def test_lowered_graphs_are_whole_by_themselves(exported, name, precision):
    """The full checker passes, and there is nothing left that an engine would have to read or look up elsewhere."""
    for graph in exported(name, precision).values():
        model = lower(graph.path).model
        onnx.checker.check_model(model, full_check=True)
        assert not model.functions
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
        assert model.ir_version == graph.model.ir_version
        assert not any(t.data_location == TensorProto.EXTERNAL or t.external_data for t in model.graph.initializer)
        assert not {"NonZero", "Scan", "Loop", "If", "Range"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_tensor_of_the_weights_file_becomes_an_input_and_no_other(exported, precision):
    """Also those of a few bytes: one that stayed inside would keep the old checkpoint's value when another is bound."""
    for graph in exported("mini, one block", precision).values():
        lowered, before = lower(graph.path), graph.model.graph
        external = {t.name: t for t in before.initializer if t.data_location == TensorProto.EXTERNAL}
        assert lowered.weights == tuple(external) == tuple(graph.weights)
        inputs = {value.name: value for value in lowered.model.graph.input}
        assert list(inputs) == [*(value.name for value in before.input), *lowered.weights]
        for name, tensor in external.items():
            wanted = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            assert inputs[name] == wanted
        constants = {t.name for t in before.initializer} - set(external)
        assert constants - {t.name for t in lowered.model.graph.initializer} <= _read_by_range(before)
        assert lowered.model.graph.output == before.output


def _read_by_range(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node if node.op_type == "Range" for name in node.input}


def test_counts_say_how_many_nodes_were_replaced(exported):
    """A builder compares the parser's plugins with them; a dense scale has neither."""
    for graph_name, graph in exported("four experts").items():
        before = Counter(node.op_type for node in graph.model.graph.node if node.domain == DOMAIN)
        lowered = lower(graph.path)
        assert (lowered.bodies, lowered.plugins) == (before, {})
        assert bool(before) == (graph_name in ("scale_02", "scale_04"))
        assert set(before.values()) <= {2}


def test_with_plugins_the_nodes_stay_as_the_exporter_wrote_them(exported):
    """With the attributes that name the plugin, and no body that an engine could quietly run in its place."""
    graph = exported("mini")["scale_10"]
    lowered = lower(graph.path, plugins=OPERATORS)
    assert (lowered.plugins, lowered.bodies) == (dict.fromkeys(OPERATORS, 4), {})
    assert not lowered.model.functions
    assert ("actvar", 1) in [(opset.domain, opset.version) for opset in lowered.model.opset_import]
    before, after = (
        {node.name: node for node in model.graph.node if node.domain == DOMAIN}
        for model in (graph.model, lowered.model)
    )
    assert before == after
    names = {a.name: a.s for a in after["blocks.3/ffn/routed"].attribute if a.s}
    assert names == {"plugin_namespace": b"actvar", "plugin_version": b"1"}


def test_a_plugin_may_stand_ready_for_some_operators_alone(exported):
    """The routed FFN gains most from one; the rest then still runs anywhere."""
    lowered = lower(exported("mini")["scale_10"].path, plugins=["ActVarRoutedFFN"])
    assert lowered.plugins == {"ActVarRoutedFFN": 4}
    assert lowered.bodies == {"ActVarTokenSelect": 4, "ActVarTokenGather": 4, "ActVarTokenScatter": 4}
    onnx.checker.check_model(lowered.model, full_check=True)
    assert {node.op_type for node in lowered.model.graph.node if node.domain == DOMAIN} == {"ActVarRoutedFFN"}


def test_names_of_the_bodies_nodes_stand_below_the_node_they_replace(exported):
    """An engine's log and profile read like the model; names are unique, and a node's is its first output's."""
    model = lower(exported("four experts")["scale_04"].path).model
    names = [node.name for node in model.graph.node]
    for unique in (names, [name for node in model.graph.node for name in node.output]):
        assert len(set(unique)) == len(unique)
    below = "ffn/routed/hidden_mh", "ffn/routed/y", "selector/select/indices", "scatter/y"
    assert {f"blocks.{i}/{name}" for i in (0, 1) for name in below} <= set(names)
    written = {node.name: list(node.output) for node in model.graph.node}
    assert written["blocks.1/ffn/routed/hidden_mh"] == ["blocks.1/ffn/routed/hidden_mh"]
    assert written["blocks.1/ffn/routed/y"] == ["blocks.1/ffn/routed"]


def test_the_same_graph_gives_the_same_bytes(exported):
    """A plan is kept as long as its graph is the same; so also in a process that orders its sets otherwise."""
    graph = exported("four experts")["scale_04"]
    model = graph.model
    lowered = [lower(given).model.SerializeToString() for given in (graph.path, str(graph.path), model, model)]
    program = (
        "import sys; from actvar.export.operators.lowering import lower;"
        "sys.stdout.buffer.write(lower(sys.argv[1]).model.SerializeToString())"
    )
    for seed in "12":
        command = [sys.executable, "-c", program, str(graph.path)]
        lowered.append(subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout)
    assert len(set(lowered)) == 1
    assert model == graph.model  # what was given is not changed
    orders = (["ActVarTokenSelect", "ActVarRoutedFFN"], {"ActVarRoutedFFN", "ActVarTokenSelect"})
    with_plugins = {lower(model, plugins).model.SerializeToString() for plugins in orders}
    assert len(with_plugins) == 1


def test_the_weights_file_is_not_read(exported, tmp_path):
    """A graph is lowered where only the graphs are, and d30's weights would take gigabytes."""
    graph = exported("mini, one block")["scale_10"]
    alone = tmp_path / "scale_10.onnx"
    alone.write_bytes(graph.path.read_bytes())
    assert lower(alone) == lower(graph.path)


def test_a_bf16_graph_lowers_like_an_fp16_graph(exported, capfd):
    """The bodies take their type from what they are given; and nothing is printed that numpy has no such type."""
    lowered = lower(exported("four experts", "bf16")["scale_04"].path)
    onnx.checker.check_model(lowered.model, full_check=True)
    types = {value.name: value.type.tensor_type.elem_type for value in lowered.model.graph.input}
    assert TensorProto.FLOAT16 not in types.values()
    assert types["var.blocks.0.ffn.fc1.weight"] == TensorProto.BFLOAT16
    assert capfd.readouterr() == ("", "")


# ---- the passes


def test_weights_to_inputs_leaves_the_rest_of_the_graph(exported):
    """Also the operators that later passes take; a weight that no node reads is no input."""
    model = exported("four experts")["scale_04"].model
    unread = model.graph.initializer.add(name="unread", data_type=1, dims=[3], data_location=TensorProto.EXTERNAL)
    unread.external_data.add(key="location", value=WEIGHTS_FILE)
    graph = gs.import_onnx(model)
    nodes = [(node.name, [t.name for t in node.inputs]) for node in graph.nodes]
    weights = weights_to_inputs(graph, model)
    assert "unread" not in weights
    assert [(node.name, [t.name for t in node.inputs]) for node in graph.nodes] == nodes
    assert [t.name for t in graph.inputs][-len(weights) :] == list(weights)


def test_fold_ranges_leaves_a_range_that_depends_on_an_input():
    """What counts to a constant becomes its numbers; what counts to an input stays, and both still count right."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        ranges (int64 end) => (int64[four] fixed, int64[any] open)
        <int64 zero = {0}, int64 four_ = {4}, int64 one = {1}> {
            fixed_ = Range (zero, four_, one)
            fixed = Identity (fixed_)
            open = Range (zero, end, one)
        }
    """)
    graph = gs.import_onnx(model)
    fold_ranges(graph)
    folded = gs.export_onnx(graph)
    assert [node.op_type for node in folded.graph.node] == ["Identity", "Range"]
    results = run(folded.SerializeToString(), {"end": np.array(2)})
    assert (results["fixed"].tolist(), results["open"].tolist()) == ([0, 1, 2, 3], [0, 1])


def test_replace_by_bodies_keeps_the_order_in_which_nodes_run(exported):
    """Every node after those whose outputs it reads: an engine's parser does not sort them."""
    graph = gs.import_onnx(exported("four experts")["scale_04"].model)
    replace_by_bodies(graph, plugins=())
    written: set[str] = set()
    for node in graph.nodes:
        for tensor in node.inputs:
            assert not tensor.inputs or tensor.name in written, (node.name, tensor.name)
        written |= {tensor.name for tensor in node.outputs}


# ---- TensorRT-RTX takes them


class Parsed:
    """A lowered graph in the hands of TensorRT-RTX: a strongly typed network, or the parser's errors."""

    def __init__(self, rtx: ModuleType, model: onnx.ModelProto):
        logger = rtx.Logger(rtx.Logger.INTERNAL_ERROR)  # the errors are read from the parser
        self.builder = rtx.Builder(logger)
        self.network = self.builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = rtx.OnnxParser(self.network, logger)  # owns what the network points to
        self._parser.parse(model.SerializeToString())
        errors = map(self._parser.get_error, range(self._parser.num_errors))
        self.errors = [f"{error.node_name()}: {error.desc()}" for error in errors]

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        tensors = map(self.network.get_input, range(self.network.num_inputs))
        return {tensor.name: tuple(tensor.shape) for tensor in tensors}

    @property
    def layers(self) -> list[tuple[str, str, str]]:
        """Kind, name, and type of the result."""
        found = map(self.network.get_layer, range(self.network.num_layers))
        return [(layer.type.name, layer.name, layer.get_output(0).dtype.name) for layer in found]

    def types(self, kind: str) -> dict[str, str]:
        """Of the results of one kind of layer."""
        return {name: dtype for layer, name, dtype in self.layers if layer == kind}


@pytest.fixture
def rtx() -> ModuleType:
    """The module."""
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("mini", "fp32"),
        ("mini", "fp16"),
        ("mini", "bf16"),
        ("four experts", "fp32"),
        ("32 experts", "fp16"),
        ("fixed tokens, static experts", "fp32"),
        ("static experts", "fp16"),
        ("fixed tokens", "bf16"),
    ],
)
def test_tensorrt_parses_every_lowered_graph(rtx, exported, name, precision):
    """Strongly typed, all weights as inputs in the shapes of the weights file, and no data-dependent layer."""
    for graph in exported(name, precision).values():
        parsed = Parsed(rtx, lower(graph.path).model)
        assert parsed.errors == []
        stored = {t.name: tuple(t.dims) for t in graph.model.graph.initializer if t.external_data}
        assert stored.items() <= parsed.inputs.items()
        kinds = {kind for kind, _, _ in parsed.layers}
        assert not kinds & {"NON_ZERO", "TRIP_LIMIT", "ITERATOR", "RECURRENCE", "LOOP_OUTPUT", "CONDITION", "PLUGIN_V3"}


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "HALF"), ("bf16", "BF16")])
def test_tensorrt_multiplies_the_masked_experts_in_the_graphs_own_precision(rtx, exported, precision, dtype):
    """A stray cast to fp32 would cost twice the time; the choices are made in fp32."""
    parsed = Parsed(rtx, lower(exported("four experts", precision)["scale_04"].path).model)
    matrices, all_casts = parsed.types("MATRIX_MULTIPLY"), parsed.types("CAST")
    for block in ("blocks.0", "blocks.1"):
        assert matrices[f"{block}/ffn/routed/hidden_mh"] == dtype
        assert matrices[f"{block}/ffn/routed/y_mc"] == dtype
        assert matrices[f"{block}/ffn/router"] == matrices[f"{block}/selector/scores"] == "FLOAT"
        casts = {n: t for n, t in all_casts.items() if n.startswith(f"{block}/ffn/") and t != "INT64"}
        assert Counter(casts.values()) == {dtype: 2, "FLOAT": 1}  # the experts' input, the mask; the result
        assert casts[f"{block}/ffn/routed/mask_rkn_like_x"] == dtype


def test_tensorrt_refuses_a_plugin_node_that_it_has_no_plugin_for(rtx, exported):
    """No body is left to fall back on: a missing plugin library is noticed here, and not in a slow engine."""
    lowered = lower(exported("four experts")["scale_04"].path, plugins=OPERATORS)
    errors = Parsed(rtx, lowered.model).errors
    names = {node.name for node in lowered.model.graph.node if node.domain == DOMAIN}
    assert {error.partition(": ")[0] for error in errors} == names
    assert all("Plugin not found" in error for error in errors)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_builds_a_plan_of_a_lowered_active_scale(rtx, exported, precision):
    """Ahead of time for another machine's GPU; the weights are not in it."""
    graph = exported("mini, one block", precision)["scale_10"]
    parsed = Parsed(rtx, lower(graph.path).model)
    builder = parsed.builder
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM89, 0)
    for value in graph.model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if "B" in {d.dim_param for d in dims}:
            shapes = [[b if d.dim_param == "B" else d.dim_value for d in dims] for b in (1, 2, 4)]
            profile.set_shape(value.name, *shapes)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(parsed.network, config).nbytes > 1000


# ---- what cannot be lowered


def test_a_plugin_for_no_operator_is_refused(exported):
    """A slip in a name would leave the static body in place, and nothing would say so."""
    with pytest.raises(UsageError, match=r"No operator is called ActVarRoutedFfn\. A plugin may be for one of ActVarT"):
        lower(exported("four experts")["scale_04"].path, plugins=["ActVarRoutedFfn"])


@pytest.mark.parametrize("change", ["name", "inputs", "attributes"])
def test_an_operator_of_another_exporter_is_refused(exported, change):
    """By name, before an engine's parser says something about it that nobody can act on."""
    model = exported("four experts")["scale_04"].model
    node = next(node for node in model.graph.node if node.domain == DOMAIN)
    if change == "name":
        node.op_type = "ActVarNovel"
    else:
        node.ClearField({"inputs": "input", "attributes": "attribute"}[change])
    with pytest.raises(BundleError, match=r"scale_04, the node blocks\.0/selector/select is of an operator ActVar"):
        lower(model)


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff no graph", None], ids=["empty", "garbage", "missing"])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    """Named, and without a traceback of the protobuf library."""
    path = tmp_path / "scale_01.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"scale_01\.onnx (is not an ONNX graph\. Export|cannot be read: No such)"):
        lower(path)
