"""Our ONNX operators: what ONNX Runtime makes of their bodies is what the references and the eager model say.

Letters in shapes: R rows, L tokens, K kept tokens, C width, N experts, de hidden neurons of an expert.
"""

import numpy as np
import pytest
import torch
from operator_bodies import run_body
from operator_references import REFERENCES

from actvar.export.operators.sparse import OPERATORS
from actvar.models.experts import FFN
from actvar.models.selection import token_gather, token_scatter, token_select, top_mask


def scores(*shape: int, levels: int = 0, seed: int = 0) -> np.ndarray:
    """Random scores; with `levels`, so few different values that most tie."""
    rng = np.random.default_rng(seed)
    return (rng.integers(levels, size=shape) if levels else rng.standard_normal(shape)).astype(np.float32)


def experts(count: int, each: int, width: int, dtype: type = np.float32) -> list[np.ndarray]:
    """w1, b1, w2, b2."""
    rng = np.random.default_rng(1)
    shapes = (count, each, width), (count, each), (count, each, width), (width,)
    return [(rng.standard_normal(shape) / 8).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("levels", [0, 1, 3], ids=["distinct", "all equal", "many ties"])
@pytest.mark.parametrize(("tokens", "keep"), [(1, 1), (9, 1), (9, 7), (9, 9), (256, 192)])
def test_select_keeps_the_best_in_ascending_order_and_the_lower_index_of_equals(tokens, keep, levels):
    """A kernel that breaks ties otherwise would keep other tokens than the model that was trained."""
    given = scores(3, tokens, levels=levels)
    expected = [sorted(sorted(range(tokens), key=lambda i: (-row[i], i))[:keep]) for row in given]
    assert run_body("ActVarTokenSelect", [given], keep=keep).tolist() == expected
    assert REFERENCES["ActVarTokenSelect"](given, keep=keep).tolist() == expected
    assert token_select(torch.from_numpy(given), keep).tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gather_and_scatter_move_whole_tokens_of_their_own_row(dtype):
    """Each row selects for itself: an index that leaked into the next row would mix pictures."""
    x = scores(3, 5, 4).astype(dtype)
    updated = scores(3, 2, 4, seed=1).astype(dtype)
    indices = np.array([[0, 4], [1, 2], [3, 4]])
    kept = np.stack([[x[r, i] for i in row] for r, row in enumerate(indices)])
    scattered = x.copy()
    for r, row in enumerate(indices):
        for k, i in enumerate(row):
            scattered[r, i] = updated[r, k]
    gather, scatter = "ActVarTokenGather", "ActVarTokenScatter"
    for result in (run_body(gather, [x, indices]), REFERENCES[gather](x, indices)):
        np.testing.assert_array_equal(result, kept)
    for result in (run_body(scatter, [x, indices, updated]), REFERENCES[scatter](x, indices, updated)):
        np.testing.assert_array_equal(result, scattered)
    tensors = [torch.from_numpy(array) for array in (x, indices, updated)]
    np.testing.assert_array_equal(token_gather(*tensors[:2]).numpy(), kept)
    np.testing.assert_array_equal(token_scatter(*tensors).numpy(), scattered)


@pytest.mark.parametrize("levels", [0, 2], ids=["distinct", "many ties"])
@pytest.mark.parametrize(("count", "active"), [(1, 1), (4, 1), (4, 3), (16, 12), (16, 16), (32, 5)])
def test_routed_ffn_is_the_sum_of_each_tokens_best_experts(count, active, levels):
    """Against the reference, and against the eager FFN whose slices the experts are (Eq. 4, b2 added once)."""
    width, each = 12, 3 * 32 // count
    x, given = scores(2, 7, width, seed=2), scores(2, 7, count, levels=levels)
    w1, b1, w2, b2 = experts(count, each, width)
    result = run_body("ActVarRoutedFFN", [x, given, w1, b1, w2, b2], experts=count, active=active)
    reference = REFERENCES["ActVarRoutedFFN"](x, given, w1, b1, w2, b2, experts=count, active=active)
    np.testing.assert_allclose(result, reference, rtol=0, atol=1e-6)

    ffn = FFN(width)
    ffn.fc1, ffn.fc2 = torch.nn.Linear(width, count * each), torch.nn.Linear(count * each, width)
    fc2 = w2.reshape(-1, width).T
    for parameter, value in zip(ffn.parameters(), (w1.reshape(-1, width), b1.reshape(-1), fc2, b2), strict=True):
        parameter.data = torch.from_numpy(value.copy())
    with torch.no_grad():
        eager = ffn(torch.from_numpy(x), top_mask(torch.from_numpy(given), active).float())
    np.testing.assert_allclose(result, eager.numpy(), rtol=0, atol=1e-6)


def test_an_expert_that_no_token_chose_adds_nothing():
    """All tokens prefer expert 2 of 4: three loops run over zero tokens."""
    x, weights = scores(1, 5, 8, seed=3), experts(4, 6, 8)
    given = np.tile(np.array([0, 1, 2, 1], np.float32), (1, 5, 1))
    result = run_body("ActVarRoutedFFN", [x, given, *weights], experts=4, active=1)
    reference = REFERENCES["ActVarRoutedFFN"](x, given, *weights, experts=4, active=1)
    np.testing.assert_allclose(result, reference, rtol=0, atol=1e-6)


def test_routed_ffn_in_fp16_adds_its_experts_up_in_fp32():
    """Sixteen roundings to fp16 on the way would cost accuracy that the dense FFN does not lose."""
    x, weights = scores(1, 6, 16, seed=4).astype(np.float16), experts(16, 8, 16, np.float16)
    given = scores(1, 6, 16, seed=5)
    result = run_body("ActVarRoutedFFN", [x, given, *weights], experts=16, active=12)
    assert result.dtype == np.float16
    exact = REFERENCES["ActVarRoutedFFN"](
        x.astype(np.float32), given, *(w.astype(np.float32) for w in weights), experts=16, active=12
    )
    np.testing.assert_allclose(result, exact, rtol=2e-3, atol=2e-3)


def test_every_node_names_its_plugin():
    """Without these attributes TensorRT 10.15 and later runs the body in place of the plugin, and says nothing."""
    for operator in OPERATORS.values():
        node = operator.node(list(operator.inputs), "y", "node", **dict.fromkeys(operator.attributes, 1))
        attributes = {a.name: a.s for a in node.attribute if a.s}
        assert attributes == {"plugin_namespace": b"actvar", "plugin_version": b"1"}
        assert set(operator.function().attribute) == {a.name for a in node.attribute}


def test_a_node_with_the_wrong_inputs_or_attributes_is_refused():
    """A missing attribute would only show when a session is made."""
    with pytest.raises(TypeError, match="ActVarTokenSelect takes"):
        OPERATORS["ActVarTokenSelect"].node(["scores"], "y", "node")
    with pytest.raises(TypeError, match="ActVarTokenGather takes"):
        OPERATORS["ActVarTokenGather"].node(["x"], "y", "node")
