"""The kernels' machine code keeps what makes them fast: a regression shows without a GPU.

The numbers are those that nvcc 13.0 makes today for compute capability 8.9. More of what loads and multiplies matrices
is no fault, nor less of local memory.
"""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from machine_instructions import NAMES, instructions
from plugin_build import kernel_library_path

from actvar.plugins.machine_code import MachineCode, machine_code

AMPERE_TO_HOPPER = (80, 86, 89, 90)  # whose instructions for tensor cores are the same
TILES = {(32, 64): (4, 4), (128, 64): (16, 8), (128, 128): (32, 12), (128, 160): (40, 14)}
"""HMMA and LDSM of one slab, by rows and columns."""

COPIES = {(32, 64): 8, (128, 64): 12, (128, 128): 16, (128, 160): 20}
"""Asynchronous copies at most, by the same: loops are unrolled, and one instruction copies or clears."""

LOCAL = {"gather_norm": 2}  # loads and stores, by a part of the name: one register is spilled; all others have none
_TILE = re.compile(r"(hidden|output)_kernelINS_14TensorCoreTileI(6__half|13__nv_bfloat16)Li(\d+)ELi(\d+)E")


@pytest.fixture(scope="module")
def cubins() -> list[MachineCode]:
    """Of the built kernels."""
    found = [code for code in machine_code(kernel_library_path()) if not code.packed]
    if {code.architecture for code in found} - set(AMPERE_TO_HOPPER) or not found:
        pytest.skip("these are numbers of compute capability 8.0 to 9.0")
    return found


@pytest.fixture(scope="module")
def counts(cubins: list[MachineCode]) -> dict[str, Counter[str]]:
    """By kernel."""
    return {name: count for cubin in cubins for name, count in instructions(cubin.content).items()}


def test_products_run_on_tensor_cores_and_load_whole_matrices(counts: dict[str, Counter[str]]):
    """Both products, each tile, fp16 and bf16."""
    found = {}
    for name, count in counts.items():
        if tile := _TILE.search(name):
            product, dtype, *shape = tile.groups()
            rows, columns = map(int, shape)
            hmma, ldsm = TILES[rows, columns]
            found[product, dtype, rows, columns] = count
            assert count["HMMA"] >= hmma, name
            assert count["LDSM"] >= ldsm, name
            assert 0 < count["LDGSTS"] <= COPIES[rows, columns], name
    assert len(found) == 2 * 2 * len(TILES)


def test_nothing_new_goes_through_local_memory(counts: dict[str, Counter[str]]):
    """Spilled registers, and arrays whose index is known too late."""
    for name, count in counts.items():
        most = next((most for part, most in LOCAL.items() if part in name), 0)
        assert count["LDL"] + count["STL"] <= most, name


def test_the_counts_are_the_disassemblers(cubins: list[MachineCode], tmp_path: Path):
    """NVIDIA's, where it is installed."""
    disassembler = shutil.which("nvdisasm")
    if disassembler is None:
        pytest.skip("needs nvdisasm")
    for number, cubin in enumerate(cubins):
        path = tmp_path / f"{number}.cubin"
        path.write_bytes(cubin.content)
        text = subprocess.run([disassembler, str(path)], capture_output=True, text=True, check=True).stdout
        told = Counter(re.findall(rf"\*/\s+(?:@!?U?P\d\s+)?({'|'.join(NAMES.values())})\b", text))
        ours = sum(instructions(cubin.content).values(), Counter())
        assert {name: ours[name] for name in NAMES.values()} == {name: told[name] for name in NAMES.values()}
