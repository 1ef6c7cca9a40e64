"""The CUDA kernels against naive references: on the host over a stand-in for CUDA, and on a GPU where there is one.

Letters in shapes: R rows, L tokens, K kept tokens, C width, M tokens of all rows, N experts, de hidden neurons.
"""

import ctypes

import numpy as np
import pytest
from kernel_library import (
    BFLOAT16,
    INVALID_VALUE,
    MISALIGNED_ADDRESS,
    DeviceMemory,
    KernelError,
    Kernels,
    Shape,
    kernels_on,
)
from operator_references import best_first

FP32, FP16 = np.dtype(np.float32), np.dtype(np.float16)
TOLERANCE = {FP32: 2e-5, FP16: 4e-3, BFLOAT16: 3e-2}  # of results of about 1; rounded hidden values and outputs
TACTICS = range(1, 8)
SIZES = ("rows", "length", "keep", "width", "dtype")  # of what moves tokens, in their functions' order


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request) -> Kernels:
    """The library and the memory that it works on."""
    return kernels_on(request.param)


def random(*shape: int, levels: int = 0, seed: int = 0, dtype: np.dtype = FP32) -> np.ndarray:
    """Normal values; with `levels`, so few different ones that most tie."""
    rng = np.random.default_rng(seed)
    values = rng.integers(levels, size=shape) if levels else rng.standard_normal(shape)
    return values.astype(np.float32).astype(dtype)


def best(row: np.ndarray, count: int) -> list[int]:
    """Places of the highest scores, as the operators' references have them."""
    return best_first(row)[:count].tolist()


# ---- tokens


@pytest.mark.parametrize("levels", [0, 1, 3], ids=["distinct", "all equal", "many ties"])
@pytest.mark.parametrize(
    ("length", "keep"), [(1, 1), (9, 7), (31, 30), (33, 1), (64, 64), (169, 127), (256, 192), (1024, 700)]
)
def test_select_keeps_the_best_in_ascending_order(kernels, length, keep, levels):
    """As the ONNX operator has it; the inverse is what a fused scatter looks tokens up in."""
    scores = random(3, length, levels=levels)
    indices, inverse = kernels.select(scores, keep)
    assert indices.tolist() == [sorted(best(row, keep)) for row in scores]
    for row_indices, row_inverse in zip(indices.tolist(), inverse.tolist(), strict=True):
        assert row_inverse == [row_indices.index(i) if i in row_indices else -1 for i in range(length)]


def special_scores(rows: int, length: int) -> np.ndarray:
    """NaN of both signs, infinities, zeros of both signs and denormals in random places."""
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0], np.float32)
    return np.random.default_rng(1).choice(values, (rows, length))


@pytest.mark.parametrize("keep", [1, 5, 20, 39, 40])
def test_select_orders_special_values_as_torch_does(kernels, keep):
    """NaN counts as largest, whichever its sign; -0 and 0 tie."""
    scores = special_scores(8, 40)
    assert kernels.select(scores, keep)[0].tolist() == [sorted(best(row, keep)) for row in scores]


def test_select_refuses_what_it_cannot_do(kernels):
    """More than there are, none, and rows longer than a block has threads."""
    for length, keep in [(8, 9), (8, 0), (1025, 3)]:
        with pytest.raises(KernelError) as refused:
            kernels.select(random(2, length), keep)
        assert refused.value.code == INVALID_VALUE


@pytest.mark.parametrize("dtype", [FP32, FP16, BFLOAT16], ids=str)
@pytest.mark.parametrize(
    ("rows", "length", "keep", "width"), [(1, 1, 1, 1), (3, 5, 2, 3), (2, 169, 127, 64), (2, 9, 9, 1032), (0, 4, 2, 8)]
)
def test_gather_and_scatter_move_whole_tokens(kernels, rows, length, keep, width, dtype):
    """By 16 bytes and by 2: a width of 3 is not a multiple of 16 bytes."""
    x, updated = random(rows, length, width, dtype=dtype), random(rows, keep, width, seed=1, dtype=dtype)
    rng = np.random.default_rng(2)
    indices = np.array([sorted(rng.permutation(length)[:keep]) for _ in range(rows)], np.int64).reshape(rows, keep)
    scattered = x.copy()
    for r in range(rows):
        for k in range(keep):
            scattered[r, indices[r, k]] = updated[r, k]
    kept = [x[r, i] for r in range(rows) for i in indices[r]]
    assert kernels.gather(x, indices).tobytes() == b"".join(token.tobytes() for token in kept)
    assert kernels.scatter(x, indices, updated).tobytes() == scattered.tobytes()


def test_indices_outside_the_row_touch_nothing(kernels):
    """A damaged index must not read or write memory of others: gather gives zeros, scatter passes it over."""
    x, updated = random(2, 5, 8), random(2, 3, 8, seed=1)
    indices = np.array([[-1, 5, 2], [1 << 40, -(1 << 40), 0]])
    kept = np.zeros_like(updated)
    kept[0, 2], kept[1, 2] = x[0, 2], x[1, 0]
    scattered = x.copy()
    scattered[0, 2], scattered[1, 0] = updated[0, 2], updated[1, 2]
    np.testing.assert_array_equal(kernels.gather(x, indices), kept)
    np.testing.assert_array_equal(kernels.scatter(x, indices, updated), scattered)


def test_scatter_takes_indices_in_any_order_and_the_last_of_equals(kernels):
    """The operator asks for different indices, not for ascending ones; equal ones must not race."""
    x, updated = random(1, 40, 8), random(1, 4, 8, seed=1)
    scattered = x.copy()
    scattered[0, 39], scattered[0, 3], scattered[0, 20] = updated[0, 0], updated[0, 3], updated[0, 2]
    np.testing.assert_array_equal(kernels.scatter(x, np.array([[39, 3, 20, 3]]), updated), scattered)


@pytest.mark.parametrize(
    ("wrong", "value"),
    [("rows", -1), ("keep", -1), ("rows", 1 << 30), ("width", 1 << 30), ("dtype", 3)],
)
def test_gather_and_scatter_refuse_what_they_cannot_count(kernels, wrong, value):
    """Before anything is read: more tokens than a grid has blocks for would leave some of them as they were."""
    sizes = [{"rows": 1, "length": 2, "keep": 2, "width": 8, "dtype": 0, wrong: value}[name] for name in SIZES]
    x, indices = random(1, 2, 8), np.zeros((1, 2), np.int64)
    for function, arguments, place in (
        ("actvarTokenGather", [x, indices, None], 2),
        ("actvarTokenScatter", [x, indices, x, None], 3),
    ):
        with pytest.raises(KernelError) as refused:
            kernels.run(function, [*arguments, *sizes], {place: ((1, 2, 8), FP32)})
        assert refused.value.code == INVALID_VALUE


# ---- experts


@pytest.mark.parametrize("levels", [0, 2], ids=["distinct", "many ties"])
@pytest.mark.parametrize(
    ("experts", "active"), [(1, 1), (4, 1), (4, 3), (5, 2), (16, 12), (16, 16), (32, 1), (32, 31), (32, 32)]
)
def test_route_marks_the_best_experts_of_each_token(kernels, experts, active, levels):
    """A bit per expert; ties go to the lower one, as in every backend."""
    scores = random(21, experts, levels=levels)
    assert kernels.route(scores, active).tolist() == [sum(1 << e for e in best(row, active)) for row in scores]


def test_route_orders_special_values_as_torch_does(kernels):
    """The router's NaN is the selector's."""
    scores = special_scores(40, 16)
    assert kernels.route(scores, 5).tolist() == [sum(1 << e for e in best(row, 5)) for row in scores]


def gray_code(bits: int) -> list[int]:
    """All numbers of so many bits, each differing in one bit from the one before."""
    return [0] if bits == 0 else gray_code(bits - 1) + [1 << (bits - 1) | n for n in reversed(gray_code(bits - 1))]


@pytest.mark.parametrize("tokens", [1, 255, 256, 1000])
@pytest.mark.parametrize(("experts", "slices"), [(16, 1), (16, 2), (16, 4), (32, 4), (5, 4), (3, 3), (32, 1), (32, 32)])
def test_order_sorts_the_tokens_of_each_slice_by_its_first_eight_experts(kernels, tokens, experts, slices):
    """In the Gray code, stable, and every token once: a token that is lost or doubled would be a wrong picture."""
    masks = kernels.route(random(tokens, experts), (experts + 1) // 2)
    size = -(-experts // slices)
    order, code = kernels.order(masks, experts, slices), gray_code(8)
    for s in range(slices):
        members = range(s * size, min((s + 1) * size, experts, s * size + 8))
        keys = [code.index(sum((int(mask) >> e & 1) << (e - s * size) for e in members)) for mask in masks]
        assert order[s].tolist() == sorted(range(tokens), key=lambda i: keys[i])


def weights(experts: int, hidden: int, width: int, dtype: np.dtype) -> list[np.ndarray]:
    """w1, b1, w2, b2, scaled so that results are of about 1."""
    shapes = (experts, hidden, width), (experts, hidden), (experts, hidden, width), (width,)
    scales = width**-0.5, 0.5, (experts * hidden) ** -0.5, 0.5
    return [
        (random(*shape, seed=3 + i) * np.float32(scale)).astype(dtype)
        for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]


def reference(x, scores, w1, b1, w2, b2, active: int) -> np.ndarray:
    """In float64, token by token and expert by expert, from the formula."""
    x, w1, b1, w2, b2 = (array.astype(np.float64) for array in (x, w1, b1, w2, b2))
    result = np.zeros_like(x)
    for m in range(len(x)):
        result[m] = b2
        for e in best(scores[m], active):
            h = w1[e] @ x[m] + b1[e]
            result[m] += (0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))) @ w2[e]
    return result


def assert_close(result: np.ndarray, expected: np.ndarray) -> None:
    """To the tolerance of the result's dtype, and without NaN."""
    np.testing.assert_allclose(result.astype(np.float64), expected, rtol=0, atol=TOLERANCE[result.dtype])


@pytest.mark.parametrize(
    ("dtype", "tactic"),
    [*((FP16, t) for t in TACTICS), (BFLOAT16, 1), (BFLOAT16, 6), (FP32, 1), (FP32, 4), (FP32, 7)],
    ids=str,
)
@pytest.mark.parametrize(
    ("tokens", "width", "hidden", "experts", "active"),
    [
        (1, 8, 8, 4, 1),
        (127, 40, 24, 4, 3),
        (150, 64, 16, 16, 12),
        (33, 200, 8, 32, 5),
        (130, 24, 160, 3, 2),
        (20, 160, 128, 2, 1),
    ],
)
def test_routed_ffn_is_the_sum_of_each_tokens_experts(kernels, dtype, tactic, tokens, width, hidden, experts, active):
    """Every tactic, on sizes that fill no tile: rows, columns and slabs all end inside one."""
    x, scores = random(tokens, width, seed=1, dtype=dtype), random(tokens, experts, seed=2)
    given = weights(experts, hidden, width, dtype)
    result = kernels.routed_ffn(x, scores, *given, active=active, tactic=tactic)
    assert_close(result, reference(x, scores, *given, active))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP32, FP16, BFLOAT16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "width", "hidden", "experts", "active"),
    [
        (1, 256, 64, 16, 12),
        (127, 2304, 576, 16, 12),
        (254, 1024, 256, 16, 12),
        (4097, 1280, 320, 16, 4),
        (4097, 1920, 480, 16, 12),
        (1500, 1536, 192, 32, 16),
        (300, 768, 768, 4, 4),
    ],
)
def test_routed_ffn_at_the_sizes_of_real_models(tokens, width, hidden, experts, active, dtype):
    """The stand-in for CUDA would take hours. The reference is float64 too, one matrix product per expert."""
    kernels = kernels_on("gpu")
    x, scores = random(tokens, width, seed=1, dtype=dtype), random(tokens, experts, seed=2)
    given = weights(experts, hidden, width, dtype)
    w1, b1, w2, b2 = (array.astype(np.float64) for array in given)
    best_MA = best_first(scores)[:, :active]
    expected = np.tile(b2, (tokens, 1))
    for e in range(experts):
        chosen = (best_MA == e).any(1)
        h = x[chosen].astype(np.float64) @ w1[e].T + b1[e]
        expected[chosen] += (0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))) @ w2[e]
    for tactic in (0, *TACTICS):
        assert_close(kernels.routed_ffn(x, scores, *given, active=active, tactic=tactic), expected)


@pytest.mark.gpu
def test_all_kernels_can_be_captured():
    """Into a CUDA graph, whose replay gives what the calls gave: nothing allocates and nothing waits inside."""
    called = kernels_on("gpu")
    captured = Kernels(called.library, DeviceMemory(), captured=True)
    x, scores, given = random(500, 64, dtype=FP16), random(500, 16, seed=1), weights(16, 16, 64, FP16)
    rows, indices = x.reshape(5, 100, 64), called.select(random(5, 100), 40)[0]
    whole = random(5, 100, 64), indices, random(5, 40, 64), random(5, 64)
    calls = [
        lambda kernels: kernels.select(random(5, 100), 40)[1],
        lambda kernels: kernels.gather(rows, indices),
        lambda kernels: kernels.scatter(rows, indices, rows[:, :40]),
        lambda kernels: kernels.gather_norm(rows.astype(FP32), indices, *random(2, 5, 64), FP16)[1],
        lambda kernels: kernels.scatter_gated(*whole, rows[:, :40]),
        *(lambda kernels, t=t: kernels.routed_ffn(x, scores, *given, active=12, tactic=t) for t in TACTICS),
    ]
    for call in calls:
        assert call(captured).tobytes() == call(called).tobytes()


@pytest.mark.parametrize("tactic", TACTICS)
def test_experts_that_nobody_chose_add_nothing(kernels, tactic):
    """All tokens choose expert 2: the other experts' tiles are never written, and hold NaN here."""
    x, given = random(140, 16, dtype=FP16), weights(4, 8, 16, FP16)
    scores = np.tile(np.array([0, 1, 2, 1], np.float32), (140, 1))
    result = kernels.routed_ffn(x, scores, *given, active=1, tactic=tactic)
    assert_close(result, reference(x, scores, *given, 1))


@pytest.mark.parametrize("tactic", TACTICS)
@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_a_tokens_result_does_not_depend_on_the_others(kernels, tactic, dtype):
    """Bitwise, under one tactic: a picture is the same alone and in a batch. One of the others is NaN."""
    x, scores = random(140, 32, dtype=dtype), random(140, 16, seed=1)
    given = weights(16, 8, 32, dtype)
    x[77] = np.nan
    together = kernels.routed_ffn(x, scores, *given, active=12, tactic=tactic)
    assert np.isnan(together[77].astype(np.float32)).all()
    for few in ([0, 1, 2], [139, 5, 60]):
        alone = kernels.routed_ffn(x[few], scores[few], *given, active=12, tactic=tactic)
        assert alone.tobytes() == together[few].tobytes()


@pytest.mark.parametrize("tactic", [1, 3, 7])
def test_repeats_are_bitwise_equal_in_any_order_of_the_threads(kernels, tactic):
    """On the host the threads run in shuffled orders, which a missing barrier would show."""
    x, scores, given = random(150, 72, dtype=FP16), random(150, 16, seed=1), weights(16, 24, 72, FP16)
    results = set()
    for seed in (0, 1, 2):
        kernels.set_order(seed)
        results.add(kernels.routed_ffn(x, scores, *given, active=4, tactic=tactic).tobytes())
        indices, _ = kernels.select(scores, 5)
        assert indices.tolist() == [sorted(best(row, 5)) for row in scores]
    kernels.set_order(0)
    assert len(results) == 1


def test_routed_ffn_refuses_shapes_that_are_none(kernels):
    """Each wrong in one respect."""
    good = {"tokens": 4, "width": 16, "hidden": 8, "experts": 4, "active": 2, "dtype": 1}
    assert kernels.workspace(Shape(**good), 0) > 0
    for wrong in (
        {"width": 12},
        {"hidden": 4},
        {"experts": 33},
        {"active": 5},
        {"active": 0},
        {"dtype": 3},
        {"tokens": -1},
    ):
        assert kernels.workspace(Shape(**{**good, **wrong}), 0) == 0
        with pytest.raises(KernelError) as refused:
            kernels.plan(Shape(**{**good, **wrong}), 0)
        assert refused.value.code == INVALID_VALUE
    for tactic in (-1, 8):
        assert kernels.workspace(Shape(**good), tactic) == 0


def test_routed_ffn_refuses_addresses_that_are_not_aligned(kernels):
    """Weights are bound into one buffer: a tensor at an odd place must be an error, not a crash."""
    x, scores, given = random(4, 16), random(4, 4), weights(4, 8, 16, FP32)
    shape = Shape(4, 16, 8, 4, 2, 0)
    size = kernels.workspace(shape, 0)
    arguments = [ctypes.byref(shape), 0, x, scores, *given, None, None, ctypes.c_size_t(size)]
    arguments[5] = ctypes.c_void_p(4)
    with pytest.raises(KernelError) as refused:
        kernels.run("actvarRoutedFfn", arguments, {8: (x.shape, FP32), 9: ((size,), np.uint8)})
    assert refused.value.code == MISALIGNED_ADDRESS


@pytest.mark.parametrize("tactic", [0, *TACTICS])
def test_the_workspace_serves_any_fewer_tokens(kernels, tactic):
    """TensorRT asks once, for the largest shape of a profile."""
    shapes = [
        Shape(tokens, 256, 64, 16, 12, 1)
        for tokens in (0, 1, 64, 65, 254, 1024, 1025, 4096, 4097, 8192, 8193, 16384, 16385, 70000)
    ]
    sizes = [kernels.workspace(shape, tactic) for shape in shapes]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("tactic", TACTICS)
def test_slices_give_way_to_tokens(kernels, tactic):
    """Or an expert of its own per slice, meant for a few tokens, would reserve gigabytes in every engine. No
    slice is given up without need."""
    few = kernels.plan(Shape(64, 256, 64, 16, 12, 1), tactic).slices
    for tokens in (254, 1024, 2048, 8192, 16384, 24576, 49152, 100_000):
        plan = kernels.plan(Shape(tokens, 256, 64, 16, 12, 1), tactic)
        most_rows = 65536 if plan.sorted else 8192
        assert 1 <= plan.slices <= few and (plan.slices == 1 or plan.slices * tokens <= most_rows)
        assert plan.slices == few or 2 * plan.slices * tokens > most_rows
        needed = tokens * 16 * 64 * 2 + (plan.slices * tokens if plan.slices > 1 else 0) * 256 * 4
        assert kernels.workspace(Shape(tokens, 256, 64, 16, 12, 1), tactic) >= needed
