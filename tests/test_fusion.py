"""The fused operators and the pass that writes them: a fused graph does what it did, and only what can be fused is.

Fused graphs run in ONNX Runtime by the operators' bodies; the plugins are test_plugins.py's and test_plugin_calls.py's.

Letters in shapes: R rows, L tokens, K kept tokens, C width.
"""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from exported_graphs import Exported, interpret, run
from onnx import TensorProto, helper, numpy_helper
from operator_references import REFERENCES

from actvar.config import NORM_EPS
from actvar.export.operators.fused import ALL_OPERATORS, FUSED
from actvar.export.operators.lowering import Lowered, lower
from actvar.export.operators.sparse import DOMAIN, DOMAIN_VERSION, Operator
from actvar.models.block import modulated_norm
from actvar.models.selection import token_gather, token_scatter

SPARSE = {"mini, one block": "scale_10", "four experts": "scale_04", "tokens alone": "scale_03"}
SPARSE |= {"shared AdaLN": "scale_04"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    """Bundles by configuration, each made once: the graphs by name."""
    return Exported(tmp_path_factory)


# ---- what the operators compute


def one_node(
    operator: Operator, inputs: dict[str, np.ndarray], types: list[int], **attributes: float
) -> onnx.ModelProto:
    """A model of one node, with its body."""
    node = operator.node(list(inputs), "result_0", "node", *[f"result_{i}" for i in range(1, len(types))], **attributes)
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
        for n, x in inputs.items()
    ]
    results = [helper.make_tensor_value_info(f"result_{i}", t, [None] * 3) for i, t in enumerate(types)]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    graph = helper.make_graph([node], "one_node", values, results)
    return helper.make_model(graph, functions=[operator.function()], opset_imports=opsets, ir_version=10)


def results_of(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    """By the body and by the static body."""
    lowered = lower(model)
    assert sum(lowered.bodies.values()) == 1
    found = []
    for each in (model, lowered.model):
        onnx.checker.check_model(each, full_check=True)
        found.append(list(run(each.SerializeToString(), inputs).values()))
    return found


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def block_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x RLC, indices RK, scale and shift R1C."""
    indices_RK = np.sort(random(3, 9, seed=1).argsort(axis=1)[:, :5], axis=1)
    return random(3, 9, 20), indices_RK, random(3, 1, 20, seed=2), random(3, 1, 20, seed=3)


@pytest.mark.parametrize(("dtype", "to", "atol"), [(np.float32, 1, 3e-6), (np.float16, 10, 4e-3)])
def test_gather_norm_is_the_models_norm_of_the_gathered_tokens(dtype, to, atol):
    """The eager model knows nothing of ours: neither of the body nor of the reference."""
    x, indices, scale, shift = block_inputs()
    inputs = {"x": x, "indices": indices, "scale": scale, "shift": shift}
    eager_kept = token_gather(torch.from_numpy(x), torch.from_numpy(indices))
    eager = modulated_norm(eager_kept, torch.from_numpy(scale), torch.from_numpy(shift)).numpy()
    operator = FUSED["ActVarTokenGatherNorm"]
    found = results_of(one_node(operator, inputs, [1, to], to=to, epsilon=NORM_EPS), inputs)
    for kept, normed in (*found, REFERENCES[operator.name](*inputs.values(), to=to)):
        np.testing.assert_array_equal(kept, eager_kept.numpy())
        assert normed.dtype == dtype
        np.testing.assert_allclose(normed.astype(np.float32), eager, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_scatter_gated_is_the_models_gated_sum_scattered(dtype):
    """The sum is made in fp32, whatever the change comes in."""
    x, indices, gamma, _ = block_inputs()
    kept, change = random(3, 5, 20, seed=4), random(3, 5, 20, seed=5).astype(dtype)
    inputs = {"x": x, "indices": indices, "kept": kept, "gamma": gamma, "change": change}
    updated = torch.from_numpy(kept) + torch.from_numpy(change).float() * torch.from_numpy(gamma)
    eager = token_scatter(torch.from_numpy(x), torch.from_numpy(indices), updated).numpy()
    operator = FUSED["ActVarTokenScatterGated"]
    reference = REFERENCES[operator.name](*inputs.values())
    for (result,) in (*results_of(one_node(operator, inputs, [1]), inputs), [reference]):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, eager, rtol=0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-6, 0.25])
def test_the_epsilon_is_the_attribute(epsilon: float):
    """Under the root, in both bodies."""
    x, indices, scale, shift = block_inputs()
    inputs = {"x": x, "indices": indices, "scale": scale, "shift": shift}
    operator = FUSED["ActVarTokenGatherNorm"]
    _, wanted = REFERENCES[operator.name](*inputs.values(), to=1, epsilon=epsilon)
    for _, normed in results_of(one_node(operator, inputs, [1, 1], to=1, epsilon=epsilon), inputs):
        np.testing.assert_allclose(normed, wanted, rtol=0, atol=3e-6)


# ---- what the pass does


def with_bodies(lowered: Lowered) -> onnx.ModelProto:
    """A lowered graph that ONNX Runtime can run."""
    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    model.functions.extend(ALL_OPERATORS[name].function() for name in lowered.plugins)
    return model


@pytest.mark.parametrize("name", SPARSE)
def test_a_fused_graph_gives_what_the_graph_gave(exported, name):
    """In ONNX Runtime: the same tokens and choices, and numbers to rounding."""
    graph = exported(name)[SPARSE[name]]
    fused = lower(graph.path, FUSED)
    assert set(fused.plugins) == set(FUSED)
    for batch in (1, 2):
        inputs = {**graph.inputs(batch), **graph.weights}
        expected = run(lower(graph.path).model.SerializeToString(), inputs)
        results = run(with_bodies(fused).SerializeToString(), inputs)
        for output, wanted in expected.items():
            assert results[output].dtype == wanted.dtype
            limit = 0 if wanted.dtype.kind == "i" else 1e-5 * max(1, abs(wanted).max())
            np.testing.assert_allclose(results[output], wanted, rtol=0, atol=limit, err_msg=output)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", [name for name in SPARSE if name != "mini, one block"])
def test_a_fused_graph_of_short_numbers_gives_the_same_bits(exported, name, precision):
    """By ONNX's own interpreter: the same operations in the same types. ONNX Runtime cannot show that: it multiplies
    fp16 matrices in fp32 here, and leaves out the rounding to fp16 where the casts stand side by side."""
    graph = exported(name, precision)[SPARSE[name]]
    inputs = {**graph.inputs(1), **graph.weights}
    expected, results = (
        interpret(lower(graph.path).model, inputs),
        interpret(with_bodies(lower(graph.path, FUSED)), inputs),
    )
    for output, wanted in expected.items():
        np.testing.assert_array_equal(results[output], wanted, err_msg=output)


def test_a_fused_fp16_graph_runs_in_onnx_runtime(exported):
    """Logits differ by what the rounding that it leaves out elsewhere is worth."""
    graph = exported("four experts", "fp16")["scale_04"]
    inputs = {**graph.inputs(2), **graph.weights}
    expected = run(lower(graph.path).model.SerializeToString(), inputs)["logits"]
    error = run(with_bodies(lower(graph.path, FUSED)).SerializeToString(), inputs)["logits"] - expected
    assert np.linalg.norm(error) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize(("precision", "to"), [("fp32", 1), ("fp16", 10), ("bf16", 16)])
def test_every_sparse_block_is_fused_at_both_ends(exported, precision, to):
    """Four nodes of ours in a block as before, and no cast beside the two that take casts in."""
    graph = exported("mini", precision)["scale_10"]
    plain, fused = lower(graph.path, set(ALL_OPERATORS) - set(FUSED)), lower(graph.path, ALL_OPERATORS)
    names = ("ActVarTokenSelect", "ActVarTokenGatherNorm", "ActVarRoutedFFN", "ActVarTokenScatterGated")
    assert (dict(fused.plugins), fused.bodies) == (dict.fromkeys(names, 4), {})
    onnx.checker.check_model(with_bodies(fused), full_check=True)

    gathers = [node for node in fused.model.graph.node if node.op_type == "ActVarTokenGatherNorm"]
    attributes = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in gathers]
    epsilons = [each.pop("epsilon") for each in attributes]
    assert attributes == [{"to": to, "plugin_namespace": b"actvar", "plugin_version": b"1"}] * 4
    assert epsilons == pytest.approx([NORM_EPS] * 4)
    assert [node.name for node in gathers] == [f"blocks.{i}/selector/gather" for i in range(4)]

    def count(lowered: Lowered, kind: str) -> int:
        return sum(node.op_type == kind for node in lowered.model.graph.node)

    gone = {"LayerNormalization": 4, "Mul": 8, "Add": 12, "Cast": 0 if precision == "fp32" else 8}
    assert {kind: count(plain, kind) - count(fused, kind) for kind in gone} == gone
    assert len(plain.model.graph.node) - len(fused.model.graph.node) == sum(gone.values())


def test_nodes_stay_in_an_order_in_which_they_can_run(exported):
    """An engine's parser does not sort them. The same graph gives the same bytes."""
    graph = exported("four experts", "fp16")["scale_04"]
    fused = lower(graph.path, ALL_OPERATORS).model
    assert fused.SerializeToString() == lower(graph.path, sorted(ALL_OPERATORS)).model.SerializeToString()
    known = {value.name for value in fused.graph.input} | {tensor.name for tensor in fused.graph.initializer} | {""}
    for node in fused.graph.node:
        assert set(node.input) <= known, node.name
        known |= set(node.output)


@pytest.mark.parametrize("plugin", FUSED)
def test_one_end_alone_can_be_fused(exported, plugin):
    """Each where its plugin is; the other end stays the plain operator, and becomes its body."""
    lowered = lower(exported("four experts")["scale_04"].path, [plugin])
    assert lowered.plugins == {plugin: 2}
    other = "ActVarTokenScatter" if "Gather" in plugin else "ActVarTokenGather"
    assert lowered.bodies == {"ActVarTokenSelect": 2, other: 2, "ActVarRoutedFFN": 2}


def test_dense_graphs_and_dense_blocks_have_nothing_to_fuse(exported):
    """A norm without a gather stays; so does the norm before the experts, which the router reads in fp32."""
    for name, graph in exported("four experts").items():
        fused = lower(graph.path, ALL_OPERATORS)
        if name not in ("scale_02", "scale_04"):
            assert fused.plugins == {}
            assert fused.model == lower(graph.path).model


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _another_epsilon(model: onnx.ModelProto) -> None:
    norm = node_named(model, "blocks.1/attn/norm")
    next(a for a in norm.attribute if a.name == "epsilon").f = 1e-5


def _a_factor(model: onnx.ModelProto) -> None:
    ones = next(tensor for tensor in model.graph.initializer if tensor.name == "layer_norm_ones")
    factors = np.linspace(0.5, 2, ones.dims[0], dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(factors, "factors"))
    node_named(model, "blocks.1/attn/norm").input[1] = "factors"


def _a_shown_value(model: onnx.ModelProto) -> None:
    width = model.graph.initializer[[t.name for t in model.graph.initializer].index("layer_norm_ones")].dims[0]
    shown = helper.make_tensor_value_info("blocks.1/attn/scaled", TensorProto.FLOAT, ["R", 19, width])
    model.graph.output.append(shown)


def _two_in_place_of_one(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    node_named(model, "blocks.1/attn/one_plus_scale").input[1] = "two"


def _an_early_reader(model: onnx.ModelProto) -> None:
    place = next(i for i, node in enumerate(model.graph.node) if node.name == "blocks.1/selector/gather")
    model.graph.node.insert(place + 1, helper.make_node("Neg", ["blocks.1/selector/gather"], ["early"], name="early"))
    model.graph.output.append(helper.make_tensor_value_info("early", TensorProto.FLOAT, None))


def _a_second_reader_of_the_sum(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["blocks.1/ffn/residual"], ["late"], name="late"))
    model.graph.output.append(helper.make_tensor_value_info("late", TensorProto.FLOAT, None))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (_a_factor, "ActVarTokenGather"),
        (_a_shown_value, "ActVarTokenGather"),
        (_two_in_place_of_one, "ActVarTokenGather"),
        (_an_early_reader, "ActVarTokenGather"),
        (_a_second_reader_of_the_sum, "ActVarTokenScatter"),
    ],
)
def test_what_has_another_form_stays_as_it_is(exported, change: Callable, left):
    """Block 1 is changed: it alone keeps the plain operator, and the graph computes what it did."""
    graph = exported("four experts")["scale_04"]
    model = graph.model
    change(model)
    fused = lower(model, {*FUSED, left})
    assert dict(fused.plugins) == {name: 1 if name.startswith(left) else 2 for name in FUSED} | {left: 1}
    inputs = {**graph.inputs(1), **graph.weights}
    expected = run(lower(model).model.SerializeToString(), inputs)
    results = run(with_bodies(fused).SerializeToString(), inputs)
    for output, wanted in expected.items():
        limit = 0 if wanted.dtype.kind == "i" else 1e-5 * max(1, abs(wanted).max())
        np.testing.assert_allclose(results[output], wanted, rtol=0, atol=limit, err_msg=output)


def test_a_norm_with_another_epsilon_is_fused_with_it(exported):
    """The attribute is the norm's own."""
    model = exported("four experts")["scale_04"].model
    _another_epsilon(model)
    nodes = lower(model, FUSED).model.graph.node
    found = [a.f for node in nodes for a in node.attribute if a.name == "epsilon" and node.domain == DOMAIN]
    assert found == pytest.approx([NORM_EPS, 1e-5])


def test_a_norm_that_is_read_in_two_types_is_fused_in_fp32(exported):
    """The cast stays where fp32 is wanted, too."""
    model = exported("four experts", "fp16")["scale_04"].model
    model.graph.node.append(helper.make_node("Neg", ["blocks.1/attn/shifted"], ["more"], name="more"))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    nodes = lower(model, FUSED).model.graph.node
    types = [a.i for node in nodes for a in node.attribute if a.name == "to" and node.domain == DOMAIN]
    assert types == [TensorProto.FLOAT16, TensorProto.FLOAT]
    assert "blocks.1/attn/to_fp16" in {node.name for node in nodes}
