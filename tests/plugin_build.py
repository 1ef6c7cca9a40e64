"""The compiled libraries, as the tests have them: named by the user, or built by CMake, into build/.

ACTVAR_TEST_LIBRARIES names a folder of libraries that are built: then nothing is compiled, whatever else is here. A
build is for the GPU at hand, which so runs its own machine code; without one for that of ACTVAR_TEST_ARCHITECTURE.
"""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from import_tree import ROOT

from actvar.errors import ActVARError
from actvar.plugins.library import KERNELS_FILE, LIBRARY_FILE
from actvar.plugins.machine_code import require_machine_code
from actvar.runtime.machine import first_gpu

BUILD = ROOT / "build" / "tests"
LIBRARIES_VARIABLE, ARCHITECTURE_VARIABLE = "ACTVAR_TEST_LIBRARIES", "ACTVAR_TEST_ARCHITECTURE"
DEFAULT_ARCHITECTURE = "89"


def cmake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it; its output is returned."""
    return subprocess.run(["cmake", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Built:
    """A folder of libraries: the architecture that they were built for now, and what it took; neither if named."""

    folder: Path
    architecture: str | None = None
    seconds: float = 0.0

    @property
    def in_words(self) -> str:
        """For a line of a report."""
        if self.architecture is None:
            return "named, not built here"
        return f"for sm_{self.architecture}, brought up to date in {self.seconds:.0f} s"


def named_architecture() -> str:
    """What to build for, as CMake names it: the GPU at hand, or what the variable names where there is none."""
    gpu = first_gpu()
    return gpu.capability.replace(".", "") if gpu else os.environ.get(ARCHITECTURE_VARIABLE, DEFAULT_ARCHITECTURE)


@cache
def built() -> Built:
    """The libraries, up to date unless they were named; skips where a tool to build them is missing."""
    named = os.environ.get(LIBRARIES_VARIABLE)
    if named is not None:
        return Built(Path(named).resolve())
    for tool in ("cmake", "nvcc", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    architecture = named_architecture()
    began = time.perf_counter()
    for step in (
        ["-S", str(ROOT), "-B", str(BUILD), f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"],
        ["--build", str(BUILD)],
    ):
        done = cmake(*step)
        assert done.returncode == 0, done.stdout + done.stderr
    return Built(BUILD / "plugins", architecture, time.perf_counter() - began)


def kernel_library_path() -> Path:
    """The kernels alone.

    Raises:
        ActVARError: of a named folder: it has none, or one that the GPU at hand could not run as it is.
    """
    return _found(KERNELS_FILE, "the kernels")


def plugin_library_path() -> Path:
    """The plugins; skips where TensorRT's headers are missing."""
    if built().architecture is not None and not (built().folder / LIBRARY_FILE).exists():
        pytest.skip("needs the headers of TensorRT: the build left the plugins out")
    return _found(LIBRARY_FILE, "the plugins")


def _found(file: str, what: str) -> Path:
    path, gpu = built().folder / file, first_gpu()
    if not path.is_file():
        raise ActVARError(f"{LIBRARIES_VARIABLE} names {path.parent}, where there is no {file}. Build {what} into it.")
    if gpu is not None:
        require_machine_code(path, gpu.capability)
    return path


def tensorrt_headers() -> Path:
    """The folder with NvInferRuntime.h that the build found; skips where there is none, or was no build."""
    plugin_library_path()
    if built().architecture is None:
        pytest.skip("needs a build: the libraries were named")
    cache_lines = (BUILD / "CMakeCache.txt").read_text(encoding="utf-8").splitlines()
    return next(Path(line.partition("=")[2]) for line in cache_lines if line.startswith("TENSORRT_INCLUDE_DIR:"))
