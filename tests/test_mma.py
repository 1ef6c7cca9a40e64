"""The stand-in's ldmatrix and mma do what the PTX ISA says, and find what is laid out in another way.

The formulas here are those of the ISA, sections "Matrix Fragments for mma.m16n8k16 with floating point type" and
"ldmatrix", written once more. The kernels that use the instructions are in `faulty_kernels/products.cu`.
"""

import ctypes

import numpy as np
import pytest
from import_tree import ROOT
from kernel_library import BFLOAT16, build_on_host, host_library, kernels_on

FP16 = np.dtype(np.float16)
NONE, SWAPPED_A, SWAPPED_B, WRONG_TURN = range(4)
LANES = range(32)


@pytest.fixture(scope="module")
def products() -> ctypes.CDLL:
    """tests/faulty_kernels/."""
    return build_on_host("faulty", ROOT / "tests" / "faulty_kernels")


def address(array: np.ndarray) -> ctypes.c_void_p:
    """Of an array's first byte."""
    return ctypes.c_void_p(array.ctypes.data)


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    """Small ones, of which every product and sum is exact in any format."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def place_in_a(lane: int, i: int) -> tuple[int, int]:
    """Row and column of a lane's value i, of eight."""
    group, in_group = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, in_group * 2 + (i & 1) if i < 4 else in_group * 2 + (i & 1) + 8


def place_in_b(lane: int, i: int) -> tuple[int, int]:
    """The same of b's four."""
    row = lane % 4 * 2 + (i & 1)
    return row if i < 2 else row + 8, lane >> 2


def place_in_sums(lane: int, i: int) -> tuple[int, int]:
    """The same of four sums."""
    return lane >> 2 if i < 2 else (lane >> 2) + 8, lane % 4 * 2 + (i & 1)


def by_lane(matrix: np.ndarray, place, count: int) -> np.ndarray:
    """A matrix as the lanes hold it: [32, count]."""
    return np.array([[matrix[place(lane, i)] for i in range(count)] for lane in LANES], matrix.dtype)


@pytest.mark.parametrize("dtype", [FP16, BFLOAT16], ids=str)
def test_mma_is_a_matrix_product_of_the_fragments_that_the_isa_describes(products, dtype):
    """Exactly: sums [16, 8] += a [16, 16] * b [16, 8]."""
    a, b, start = integers(16, 16), integers(16, 8, seed=1), integers(16, 8, seed=2)
    sums = by_lane(start, place_in_sums, 4)
    lanes_a, lanes_b = by_lane(a.astype(dtype), place_in_a, 8), by_lane(b.astype(dtype), place_in_b, 4)
    assert products.multiplyMatrices(int(dtype == BFLOAT16), *map(address, (lanes_a, lanes_b, sums))) == 0
    np.testing.assert_array_equal(sums, by_lane(start + a @ b, place_in_sums, 4))


@pytest.mark.parametrize("turned", [False, True])
def test_ldmatrix_hands_out_the_rows_whose_addresses_the_lanes_give(products, turned):
    """Four matrices of rows that lie anywhere: lane 8 * m + r names row r of matrix m."""
    values = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)
    chosen = np.random.default_rng(0).permutation(32).astype(np.int32)
    pairs = np.zeros((32, 4), np.uint32)
    assert products.loadMatrices(int(turned), *map(address, (values, chosen, pairs))) == 0
    for m in range(4):
        matrix = values[chosen[8 * m : 8 * m + 8]]
        matrix = matrix.T if turned else matrix
        expected = [[matrix[lane // 4, 2 * (lane % 4)], matrix[lane // 4, 2 * (lane % 4) + 1]] for lane in LANES]
        np.testing.assert_array_equal(np.ascontiguousarray(pairs[:, m]).view(np.uint16).reshape(32, 2), expected)


def product(library: ctypes.CDLL, fault: int, b_is_turned: bool, same_banks: bool = False) -> bool:
    """Whether a kernel's product of two matrices is theirs."""
    a, b, c = integers(16, 16), integers(16, 8, seed=1), np.zeros((16, 8), np.float32)
    given_a, given_b = a.astype(FP16), np.ascontiguousarray(b.T if b_is_turned else b).astype(FP16)
    code = library.productOf(address(given_a), address(given_b), int(b_is_turned), fault, int(same_banks), address(c))
    assert code == 0
    return bool((c == a @ b).all())


@pytest.mark.parametrize("b_is_turned", [False, True])
def test_a_wrong_layout_gives_a_wrong_product(products, b_is_turned):
    """Swapped halves of a fragment, and a matrix that is turned where it should not be, or not where it should."""
    assert product(products, NONE, b_is_turned)
    for fault in (SWAPPED_A, SWAPPED_B, WRONG_TURN):
        assert not product(products, fault, b_is_turned), fault


def test_conflicts_of_banks_are_counted(products):
    """Rows of 32 bytes share banks in twos; all four matrices of both loads are read in twice the time."""
    products.cudaOnHostBankConflicts()  # of the tests before
    assert product(products, NONE, True) and products.cudaOnHostBankConflicts() == 0
    assert product(products, NONE, True, same_banks=True) and products.cudaOnHostBankConflicts() == 8


@pytest.mark.parametrize("tactic", [1, 4])
@pytest.mark.parametrize("width", [64, 128, 160])
def test_no_product_of_ours_has_a_conflict_of_banks(tactic, width):
    """Each tile, both products, and so weights that lie by column and by row."""
    library = host_library()
    library.cudaOnHostBankConflicts()
    shapes = (33, width), (33, 2), (2, width, width), (2, width), (2, width, width), (width,)
    x, scores, *given = (integers(*shape, seed=i) for i, shape in enumerate(shapes))
    kernels = kernels_on("host")
    kernels.routed_ffn(x.astype(FP16), scores, *(array.astype(FP16) for array in given), active=1, tactic=tactic)
    assert library.cudaOnHostBankConflicts() == 0
