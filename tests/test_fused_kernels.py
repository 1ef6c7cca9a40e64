"""The kernels at the two ends of a sparse block, which do a norm or a gated sum on the way, against naive references.

On the host over a stand-in for CUDA, and on a GPU where there is one. Letters in shapes: R rows, L tokens, K kept
tokens, C width.
"""

import numpy as np
import pytest
from kernel_library import BFLOAT16, EPSILON, INVALID_VALUE, KernelError, Kernels, kernels_on

FP32, FP16 = np.dtype(np.float32), np.dtype(np.float16)
STEP = {FP32: 2.0**-24, FP16: 2.0**-11, BFLOAT16: 2.0**-8}  # the most that rounding changes, per size
WIDTHS = [1, 3, 64, 250, 256, 260, 1032]


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request) -> Kernels:
    """The library and the memory that it works on."""
    return kernels_on(request.param)


def random(*shape: int, seed: int = 0, dtype: np.dtype = FP32) -> np.ndarray:
    """Normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def chosen(rows: int, length: int, keep: int) -> np.ndarray:
    """Different places in each row, ascending."""
    rng = np.random.default_rng(2)
    return np.array([sorted(rng.permutation(length)[:keep]) for _ in range(rows)], np.int64).reshape(rows, keep)


def normed_reference(kept: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """In float64, token by token, from the formula: kept [R, K, C], scale and shift [R, C]."""
    kept, scale, shift = (array.astype(np.float64) for array in (kept, scale, shift))
    result = np.zeros_like(kept)
    for r in range(kept.shape[0]):
        for k in range(kept.shape[1]):
            token = kept[r, k]
            deviation = np.sqrt(((token - token.mean()) ** 2).mean() + EPSILON)
            result[r, k] = (token - token.mean()) / deviation * (1 + scale[r]) + shift[r]
    return result


def assert_rounded(result: np.ndarray, exact: np.ndarray, atol: float) -> None:
    """Within `atol` of the exact values' size, and half a step of the result's dtype beyond."""
    assert not np.isnan(result.astype(np.float32)).any()
    limit = atol + (STEP[result.dtype] + 1e-6) * abs(exact)
    assert (abs(result.astype(np.float64) - exact) <= limit).all()


@pytest.mark.parametrize("dtype", [FP32, FP16, BFLOAT16], ids=str)
@pytest.mark.parametrize(("rows", "length", "keep"), [(1, 1, 1), (3, 5, 2), (2, 19, 15)])
@pytest.mark.parametrize("width", WIDTHS)
def test_gather_norm_is_the_gather_and_the_modulated_norm(kernels, rows, length, keep, width, dtype):
    """Widths that fill no pack, no warp and no block: what lies past a token's end must not enter its mean."""
    x, indices = random(rows, length, width), chosen(rows, length, keep)
    scale, shift = random(rows, width, seed=1), random(rows, width, seed=2)
    kept, normed = kernels.gather_norm(x, indices, scale, shift, dtype)
    expected = np.stack([x[r, indices[r]] for r in range(rows)])
    assert kept.tobytes() == expected.tobytes()
    assert_rounded(normed, normed_reference(expected, scale, shift), atol=4e-6)


@pytest.mark.parametrize("width", [256, 2304, 8192])
def test_gather_norm_loses_no_more_than_its_mean_allows(kernels, width):
    """Tokens whose mean is a thousand times their deviation, as a sum of squares would not survive; and tiny ones, to
    which epsilon counts. The offset is the mean's rounding, (13 + W) u times the mean."""
    x = random(1, 3, width)
    x[0, 0] += 1000
    x[0, 1] *= 1e-4
    x[0, 2] = 7
    none = np.zeros((1, width), np.float32)
    _, normed = kernels.gather_norm(x, np.array([[0, 1, 2]]), none, none, FP32)
    exact, warps = normed_reference(x, none, none), -(-width // 256)
    assert_rounded(normed[0, 0], exact[0, 0], atol=1000 * (13 + warps) * 2.0**-24)
    assert_rounded(normed[0, 1], exact[0, 1], atol=4e-6)
    assert abs(normed[0, 2]).max() <= 7 * (13 + warps) * 2.0**-24 / EPSILON**0.5


@pytest.mark.parametrize("dtype", [FP32, FP16, BFLOAT16], ids=str)
@pytest.mark.parametrize(("rows", "length", "keep"), [(1, 1, 1), (3, 5, 2), (2, 19, 15)])
@pytest.mark.parametrize("width", WIDTHS)
def test_scatter_gated_adds_the_gated_change_to_the_kept(kernels, rows, length, keep, width, dtype):
    """All other tokens are x's to the bit; the kept ones are not x's, and need not be."""
    x, indices, kept = random(rows, length, width), chosen(rows, length, keep), random(rows, keep, width, seed=1)
    gamma, change = random(rows, width, seed=2), random(rows, keep, width, seed=3, dtype=dtype)
    result = kernels.scatter_gated(x, indices, kept, gamma, change)
    for r in range(rows):
        for place in range(length):
            if place not in indices[r]:
                assert result[r, place].tobytes() == x[r, place].tobytes()
                continue
            k = indices[r].tolist().index(place)
            exact = kept[r, k].astype(np.float64) + gamma[r].astype(np.float64) * change[r, k].astype(np.float64)
            assert_rounded(result[r, place], exact, atol=0)


def test_fused_kernels_pass_over_indices_outside_the_row(kernels):
    """As gather and scatter do: a token of zeros is normed to its shift."""
    x, kept, scale, shift = random(2, 5, 8), random(2, 3, 8, seed=1), random(2, 8, seed=2), random(2, 8, seed=3)
    indices = np.array([[-1, 5, 2], [1 << 40, -(1 << 40), 0]])
    tokens, normed = kernels.gather_norm(x, indices, scale, shift, FP32)
    expected = np.zeros_like(tokens)
    expected[0, 2], expected[1, 2] = x[0, 2], x[1, 0]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(normed[:, :2], np.stack([shift, shift], axis=1))
    scattered = x.copy()
    scattered[0, 2], scattered[1, 0] = kept[0, 2], kept[1, 2]
    np.testing.assert_array_equal(kernels.scatter_gated(x, indices, kept, np.zeros_like(shift), kept), scattered)


def test_scatter_gated_takes_indices_in_any_order_and_the_last_of_equals(kernels):
    """As scatter does."""
    x, kept, none = random(1, 40, 8), random(1, 4, 8, seed=1), np.zeros((1, 8), np.float32)
    scattered = x.copy()
    scattered[0, 39], scattered[0, 3], scattered[0, 20] = kept[0, 0], kept[0, 3], kept[0, 2]
    np.testing.assert_array_equal(kernels.scatter_gated(x, np.array([[39, 3, 20, 3]]), kept, none, kept), scattered)


def test_fused_kernels_give_the_same_bits_in_any_order_of_the_threads(kernels):
    """And for a token alone as among others, one of which is NaN."""
    x, indices, scale = random(2, 30, 1032), chosen(2, 30, 20), random(2, 1032, seed=1)
    x[1, indices[1, 3]] = np.nan
    results = set()
    for seed in (0, 1, 2):
        kernels.set_order(seed)
        kept, normed = kernels.gather_norm(x, indices, scale, scale, FP16)
        result = kernels.scatter_gated(x, indices, kept, scale, normed)
        results.add((kept.tobytes(), normed.tobytes(), result.tobytes()))
    kernels.set_order(0)
    assert len(results) == 1
    assert np.isnan(normed[1, 3].astype(np.float32)).all()
    alone = kernels.gather_norm(x[:1, indices[0, 4:5]], np.array([[0]]), scale[:1], scale[:1], FP16)[1]
    assert alone.tobytes() == normed[0, 4].tobytes()


def test_fused_kernels_refuse_what_they_cannot_do(kernels):
    """A token that no block holds, a dtype that is none."""
    wide, indices = random(1, 1, 8200), np.zeros((1, 1), np.int64)
    with pytest.raises(KernelError) as refused:
        kernels.gather_norm(wide, indices, wide[0], wide[0], FP32)
    assert refused.value.code == INVALID_VALUE
    x, row, outputs = random(1, 2, 8), random(1, 8), {5: ((1, 2, 8), FP32)}
    for rows, dtype in ((1, 3), (-1, 0)):
        with pytest.raises(KernelError) as refused:
            kernels.run("actvarTokenScatterGated", [x, indices, x, row, x, None, rows, 2, 1, 8, dtype], outputs)
        assert refused.value.code == INVALID_VALUE


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP32, FP16, BFLOAT16], ids=str)
@pytest.mark.parametrize(
    ("rows", "length", "keep", "width"), [(2, 256, 192, 1024), (64, 169, 127, 1920), (3, 256, 255, 2304)]
)
def test_fused_token_kernels_at_the_sizes_of_real_models(rows, length, keep, width, dtype):
    """A sparse block's two ends, without the block between them."""
    kernels = kernels_on("gpu")
    x, indices = random(rows, length, width), chosen(rows, length, keep)
    scale, shift = random(rows, width, seed=1), random(rows, width, seed=2)
    kept, normed = kernels.gather_norm(x, indices, scale, shift, dtype)
    assert_rounded(normed, normed_reference(kept, scale, shift), atol=4e-6)
    expected = x.astype(np.float64)
    for r in range(rows):
        expected[r, indices[r]] += scale[r].astype(np.float64) * normed[r].astype(np.float64)
    assert_rounded(kernels.scatter_gated(x, indices, kept, scale, normed), expected, atol=0)
