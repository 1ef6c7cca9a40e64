"""The static bodies of our operators: what ONNX Runtime makes of them is what the references say, ties included.

TensorRT is given them where it has no plugin (`test_lowering.py` shows that it takes them).

Letters in shapes: R rows, L tokens, K kept tokens, C width, N experts.
"""

import numpy as np
import pytest
from operator_bodies import run_static_body
from operator_references import REFERENCES


def scores(kind: str, *shape: int) -> np.ndarray:
    """Scores of which many, all or none are equal; a zero's sign makes no difference to which is higher."""
    rng = np.random.default_rng(0)
    if kind == "distinct":
        return rng.permutation(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
    levels = {
        "all equal": [1.5],
        "many ties": [-2.0, 0.5, 7.0],
        "zeros of both signs": [-0.0, 0.0],
        "ties and zeros": [-1.0, -0.0, 0.0, 1.0],
        "infinite": [-np.inf, 0.0, np.inf],
        "next to each other": [1.0, np.nextafter(np.float32(1), np.float32(2))],
    }[kind]
    return rng.choice(np.array(levels, np.float32), size=shape)


TIES = ["distinct", "all equal", "many ties", "zeros of both signs", "ties and zeros", "infinite", "next to each other"]


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize(("tokens", "keep"), [(1, 1), (9, 1), (9, 7), (9, 9), (169, 127), (256, 192)])
def test_static_select_is_the_reference_with_ties_too(kind, tokens, keep):
    """The first TopK decides ties by index; the second must not bring the order of scores back."""
    given = scores(kind, 4, tokens)
    expected = REFERENCES["ActVarTokenSelect"](given, keep=keep)
    assert run_static_body("ActVarTokenSelect", [given], keep=keep).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("rows", "tokens", "keep"), [(1, 1, 1), (2, 5, 5), (3, 7, 4), (64, 16, 3)])
def test_static_gather_and_scatter_are_the_references(dtype, rows, tokens, keep):
    """To the bit, -0 included; each row by its own indices, which need not be in order for a scatter."""
    rng = np.random.default_rng(1)
    x = rng.choice(np.array([-0.0, 0.0, 1.0, -3.0, 0.1]), size=(rows, tokens, 6)).astype(dtype)
    updated = rng.choice(np.array([-0.0, 0.0, 2.0]), size=(rows, keep, 6)).astype(dtype)
    indices = np.stack([rng.permutation(tokens)[:keep] for _ in range(rows)])
    for name, inputs in (("ActVarTokenGather", [x, indices]), ("ActVarTokenScatter", [x, indices, updated])):
        result, expected = run_static_body(name, inputs), REFERENCES[name](*inputs)
        assert (result.shape, result.dtype, result.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize(("count", "active"), [(1, 1), (4, 1), (4, 3), (16, 12), (16, 16), (32, 5)])
def test_static_routed_ffn_is_the_reference_with_ties_too(kind, count, active):
    """Experts that a token did not choose add exactly nothing, and b2 is added once, however many are chosen."""
    rng = np.random.default_rng(2)
    each, width = 6, 12
    shapes = (2, 7, width), (count, each, width), (count, each), (count, each, width), (width,)
    x, w1, b1, w2, b2 = ((rng.standard_normal(shape) / 3).astype(np.float32) for shape in shapes)
    inputs = [x, scores(kind, 2, 7, count), w1, b1, w2, b2 + 1]
    result = run_static_body("ActVarRoutedFFN", inputs, experts=count, active=active)
    expected = REFERENCES["ActVarRoutedFFN"](*inputs, experts=count, active=active)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_static_routed_ffn_in_fp16_chooses_by_fp32_scores():
    """Two scores that fp16 cannot tell apart must not become a tie; the result is fp16."""
    x = np.ones((1, 1, 4), np.float16)
    w1, b1 = np.zeros((2, 3, 4), np.float16), np.ones((2, 3), np.float16)
    w2 = np.stack([np.full((3, 4), value, np.float16) for value in (1, 2)])
    given = np.array([[[1.0, 1.0001]]], np.float32)
    inputs = [x, given, w1, b1, w2, np.zeros(4, np.float16)]
    result = run_static_body("ActVarRoutedFFN", inputs, experts=2, active=1)
    assert result.dtype == np.float16
    reference = REFERENCES["ActVarRoutedFFN"](*inputs, experts=2, active=1)
    np.testing.assert_allclose(result, reference, rtol=2e-3)
    assert result[0, 0, 0] > 4
