"""The stand-in for CUDA finds what it is for: faults planted in kernels, each beside the same kernel without."""

import ctypes
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from import_tree import ROOT
from kernel_library import (
    BFLOAT16,
    HostMemory,
    Kernels,
    build_on_host,
    host_library,
    shared_variables,
    watched_library,
)

THREADS, BLOCKS, INVALID_CONFIGURATION = 64, 3, 9  # cudaErrorInvalidConfiguration
LAUNCH_FAILURE = 719  # cudaErrorLaunchFailure
NONE, NOT_CLEARED, NO_BARRIER = 0, 1, 2
MOST_SHARED = 48 << 10  # bytes that a block may have without asking


@pytest.fixture(scope="module")
def faulty() -> ctypes.CDLL:
    """tests/faulty_kernels/."""
    return build_on_host("faulty", ROOT / "tests" / "faulty_kernels")


def sums_are_right(library: ctypes.CDLL, fault: int, order: int) -> bool:
    """Whether every block's sum is that of its values, in an order of the threads."""
    x = np.random.default_rng(0).integers(1, 9, (BLOCKS, THREADS)).astype(np.float32)
    y = np.full_like(x, -1)
    library.cudaOnHostSetOrder(order)
    assert library.sumBlocks(fault, *(ctypes.c_void_p(array.ctypes.data) for array in (x, y)), BLOCKS) == 0
    return bool((y == x.sum(axis=1, keepdims=True)).all())


def test_shared_memory_that_nobody_has_written_is_found(faulty):
    """In any order of the threads: on a GPU it is often zero, and then not."""
    assert not any(sums_are_right(faulty, NOT_CLEARED, order) for order in range(4))


def test_a_missing_barrier_is_found(faulty):
    """In every order but perhaps one: a thread reads what others have not written in this block."""
    assert not any(sums_are_right(faulty, NO_BARRIER, order) for order in range(4))


def test_without_a_fault_nothing_is_found(faulty):
    """The same kernel."""
    assert all(sums_are_right(faulty, NONE, order) for order in range(4))


@pytest.mark.parametrize(
    ("grid", "threads"), [((1, 65536, 1), 1), ((1, 1, 65536), 1), ((1, 1, 1), 1025), ((1, 1, 1), 0)]
)
def test_a_launch_that_no_gpu_takes_is_refused(faulty, grid, threads):
    """More than 65,535 blocks along y or z, and a block of no threads or of more than 1,024."""
    assert faulty.launchEmpty(*grid, threads) == INVALID_CONFIGURATION
    assert faulty.launchEmpty(3, 2, 2, 1024) == 0


def shared_bytes(library: ctypes.CDLL) -> dict[str, int]:
    """What each kernel keeps in shared memory, by its mangled name, from the sizes of its variables."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    command = ["nm", "--print-size", "--defined-only", str(Path(library._name))]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, int] = defaultdict(int)
    for size, kernel in re.findall(r"^\w+ (\w+) [BbDdVuWw] _ZZ(\w*_kernel\w*)E\d+\w+$", symbols, re.MULTILINE):
        found[kernel] += int(size, 16)
    return dict(found)


def test_no_kernel_has_more_shared_memory_than_a_block_may(faulty):
    """The variables' own bytes; the planted one has four too many."""
    [greedy] = [size for kernel, size in shared_bytes(faulty).items() if "greedy" in kernel]
    assert greedy == MOST_SHARED + 4
    ours = shared_bytes(host_library())
    assert len(ours) >= 16 and max(ours.values()) <= MOST_SHARED, ours
    assert max(ours.values()) > MOST_SHARED / 4  # the tiles are among them


# ---- watched


@pytest.fixture(scope="module")
def watched() -> ctypes.CDLL:
    """tests/faulty_kernels/, every access to shared memory watched."""
    return watched_library("faulty", ROOT / "tests" / "faulty_kernels")


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (b"s", r"a race of .*shift_kernel.*6values"),
        (b"w", r"a race of .*warp_kernel.*6values"),
        (b"b", r"an access outside of the kernel's variables"),
        (b"c", r"a race of .*count_kernel.*5count"),
    ],
    ids=["a write before others have read", "lanes without a barrier", "an overrun", "no atomic"],
)
def test_a_planted_fault_is_found_in_every_order(watched, capfd, kind: bytes, said: str, order: int):
    """Whatever the result was; and the same kernel without the fault is let alone."""
    x, y = (np.arange(THREADS, dtype=np.float32) for _ in range(2))
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (x, y)]
    watched.cudaOnHostSetOrder(order)
    assert watched.runKernel(ctypes.c_char(kind), 0, *addresses) == 0
    assert capfd.readouterr().err == ""
    assert watched.runKernel(ctypes.c_char(kind), 1, *addresses) == LAUNCH_FAILURE
    assert re.search(said, capfd.readouterr().err)


def test_a_missing_barrier_is_a_failed_launch(watched):
    """Found by who wrote and who reads, not by what comes out."""
    x, y = (np.ones((1, THREADS), np.float32) for _ in range(2))
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (x, y)]
    assert watched.sumBlocks(NO_BARRIER, *addresses, 1) == LAUNCH_FAILURE
    assert watched.sumBlocks(NONE, *addresses, 1) == 0


@pytest.fixture(scope="module")
def ours() -> Kernels:
    """The kernels, watched: a fault is a KernelError."""
    return Kernels(watched_library(), HostMemory())


def test_what_is_watched_is_every_shared_variable_of_ours(ours):
    """The tiles, and the small ones; each is a kernel's."""
    variables = shared_variables(Path(ours.library._name))
    assert sum(variable.end - variable.start for variable in variables) == sum(shared_bytes(host_library()).values())


def test_no_kernel_of_ours_races_or_leaves_its_memory(ours):
    """All of them, in small; which order their threads run in does not matter."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    x, scores = random(2, 40, 24), random(2, 40)
    indices, _ = ours.select(scores, 17)
    ours.gather(x, indices)
    ours.scatter(x, indices, random(2, 17, 24))
    ours.gather_norm(x, indices, random(2, 24), random(2, 24), np.dtype(np.float16))
    ours.scatter_gated(x, indices, random(2, 17, 24), random(2, 24), random(2, 17, 24).astype(np.float16))
    ours.order(ours.route(random(300, 16), 12), 16, 2)
    for dtype, tactics in ((np.float32, (0,)), (np.float16, (0, *range(1, 8))), (BFLOAT16, (0,))):
        shapes = (70, 16), (4, 24, 16), (4, 24), (4, 24, 16), (16,)
        tensors = [random(*shape).astype(dtype) for shape in shapes]
        for tactic in tactics:
            ours.routed_ffn(tensors[0], random(70, 4), *tensors[1:], active=3, tactic=tactic)
