"""The compiled libraries, as the tests build them: by CMake, into build/, for one architecture."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from import_tree import ROOT

BUILD = ROOT / "build" / "tests"


def cmake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it; its output is returned."""
    return subprocess.run(["cmake", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Built:
    """A build: the architecture that it is for, and what it took to bring it up to date."""

    folder: Path
    architecture: str
    seconds: float


@cache
def built() -> Built:
    """The build, up to date; skips where a tool is missing."""
    for tool in ("cmake", "nvcc", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    architecture = os.environ.get("ACTVAR_TEST_ARCHITECTURE", "89")
    began = time.perf_counter()
    for step in (
        ["-S", str(ROOT), "-B", str(BUILD), f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"],
        ["--build", str(BUILD)],
    ):
        done = cmake(*step)
        assert done.returncode == 0, done.stdout + done.stderr
    return Built(BUILD, architecture, time.perf_counter() - began)


def kernel_library_path() -> Path:
    """The kernels alone."""
    return built().folder / "plugins" / "libactvar_kernels.so"


def plugin_library_path() -> Path:
    """The plugins; skips where TensorRT's headers are missing."""
    path = built().folder / "plugins" / "libactvar_plugins.so"
    if not path.exists():
        pytest.skip("needs the headers of TensorRT: the build left the plugins out")
    return path


def tensorrt_headers() -> Path:
    """The folder with NvInferRuntime.h that the build found; skips where there is none."""
    plugin_library_path()
    cache_lines = (BUILD / "CMakeCache.txt").read_text(encoding="utf-8").splitlines()
    return next(Path(line.partition("=")[2]) for line in cache_lines if line.startswith("TENSORRT_INCLUDE_DIR:"))
