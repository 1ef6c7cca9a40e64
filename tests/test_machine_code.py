"""Which GPUs a library holds machine code for, and that the tests take named libraries in place of building."""

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import plugin_build
import pytest

from actvar.bundle.plans import Gpu
from actvar.errors import ActVARError
from actvar.plugins.library import KERNELS_FILE, LIBRARY_FILE
from actvar.plugins.machine_code import machine_code, require_machine_code

MACHINE_CODE, PTX = 2, 1


def entry(kind: int, architecture: int, content: bytes, header: int = 64) -> bytes:
    """As nvcc writes it: kind, version, bytes of the header, of the content, and the architecture at byte 28."""
    start = struct.pack("<HHIQ12xI", kind, 257, header, len(content), architecture)
    return start + bytes(header - len(start)) + content


def binary(*entries: bytes) -> bytes:
    """A fat binary."""
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, sum(map(len, entries))) + b"".join(entries)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two sources for 8.6 and 9.0 among other bytes, and PTX for 10.0."""
    one = binary(entry(PTX, 100, b"packed", 80), entry(MACHINE_CODE, 86, b"\x7fELF one"))
    two = binary(entry(MACHINE_CODE, 90, b"packed two"))
    path = tmp_path / "library.so"
    path.write_bytes(b"\x7fELF and code" + one + bytes(7) + two + bytes(9))
    return path


def test_the_machine_code_of_every_source_is_found_and_ptx_is_none(library: Path):
    """PTX for a GPU is not code that it runs."""
    found = [(code.architecture, code.content, code.packed) for code in machine_code(library)]
    assert found == [(86, b"\x7fELF one", False), (90, b"packed two", True)]


@pytest.mark.parametrize("capability", ["8.6", "8.9", "9.0"])
def test_a_gpu_of_the_same_major_number_runs_what_is_there(library: Path, capability: str):
    """8.9 runs code for 8.6."""
    require_machine_code(library, capability)


@pytest.mark.parametrize("capability", ["8.0", "7.5", "10.0", "12.0"])
def test_a_gpu_that_would_have_to_compile_is_refused(library: Path, capability: str):
    """A lower minor number, another major one, and one for which there is PTX alone."""
    said = rf"machine code for 8\.6, 9\.0, and this GPU has compute capability {capability}"
    with pytest.raises(ActVARError, match=said):
        require_machine_code(library, capability)


@pytest.mark.parametrize("kept", [30, 60, 90, 130])
def test_a_library_that_is_cut_short_holds_nothing_there(library: Path, kept: int):
    """No error: it may be of another form, or no library at all."""
    library.write_bytes(library.read_bytes()[:kept])
    assert machine_code(library) == ()


def test_the_built_library_holds_code_for_what_it_was_built_for():
    """By the real nvcc."""
    codes = machine_code(plugin_build.kernel_library_path())
    assert codes and not any(code.packed for code in codes)
    wanted = plugin_build.built().architecture
    assert wanted is None or {str(code.architecture) for code in codes} == {wanted}


# ---- libraries that are named


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The answer of this test's own environment, and no build whatever happens."""

    def no_build(*command, **options):
        raise AssertionError(f"{command} was run")

    plugin_build.built.cache_clear()
    monkeypatch.setattr(subprocess, "run", no_build)
    yield monkeypatch
    plugin_build.built.cache_clear()


def test_named_libraries_are_taken_and_nothing_is_compiled(fresh: pytest.MonkeyPatch, library: Path):
    """While a GPU waits."""
    for file in (KERNELS_FILE, LIBRARY_FILE):
        (library.parent / file).write_bytes(library.read_bytes())
    fresh.setenv(plugin_build.LIBRARIES_VARIABLE, str(library.parent))
    fresh.setattr(plugin_build, "first_gpu", lambda: Gpu("a GPU", "9.0"))
    assert plugin_build.kernel_library_path() == library.with_name(KERNELS_FILE)
    assert plugin_build.plugin_library_path() == library.with_name(LIBRARY_FILE)
    fresh.setattr(plugin_build, "first_gpu", lambda: Gpu("a GPU", "12.0"))
    with pytest.raises(ActVARError, match=r"Build it with -DCMAKE_CUDA_ARCHITECTURES=120\."):
        plugin_build.kernel_library_path()


def test_a_named_folder_without_libraries_is_said(fresh: pytest.MonkeyPatch, tmp_path: Path):
    """Not taken for a reason to skip."""
    fresh.setenv(plugin_build.LIBRARIES_VARIABLE, str(tmp_path))
    with pytest.raises(ActVARError, match=f"there is no {KERNELS_FILE}"):
        plugin_build.kernel_library_path()


def test_a_build_is_for_the_gpu_at_hand(fresh: pytest.MonkeyPatch):
    """Else for the architecture that is named, else for one that every nvcc here knows."""
    fresh.setattr(plugin_build, "first_gpu", lambda: Gpu("a GPU", "9.0"))
    fresh.setenv(plugin_build.ARCHITECTURE_VARIABLE, "80")
    assert plugin_build.named_architecture() == "90"
    fresh.setattr(plugin_build, "first_gpu", lambda: None)
    assert plugin_build.named_architecture() == "80"
    fresh.delenv(plugin_build.ARCHITECTURE_VARIABLE)
    assert plugin_build.named_architecture() == plugin_build.DEFAULT_ARCHITECTURE
