"""The examples of the documentation run: what a person copies must work."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"


def test_the_example_in_cpp_fits_tensorrts_headers():
    """It is read by those who write their own runtime; a call that does not exist would cost them an hour."""
    compiler = shutil.which("g++")
    headers = [
        next((folder for folder in folders if (folder / file).is_file()), None)
        for file, folders in (
            (
                "NvInfer.h",
                (Path(os.environ.get("TENSORRT_ROOT", "/nowhere")) / "include", Path("/usr/local/tensorrt/include")),
            ),
            ("cuda_runtime_api.h", (Path("/usr/local/cuda/include"),)),
        )
    ]
    if not compiler or None in headers:
        pytest.skip("needs g++ and the headers of TensorRT and CUDA")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    include = [argument for folder in headers for argument in ("-isystem", str(folder))]
    done = subprocess.run([*command, *include, str(EXAMPLES / "run_plan.cpp")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_guide_quotes_the_builds_that_were_measured():
    """A figure in the guide is one of a file in the repository, as the command wrote it."""
    builds = [
        json.loads((ROOT / "benchmarks" / "results" / f"build-{preset}-fp16-rtx.json").read_text())
        for preset in ("d20", "d30")
    ]
    guide = (ROOT / "docs" / "deploy.md").read_text()

    def row(label: str, unit: str, values: list[float], digits: int = 0) -> str:
        return f"| {label} | " + " | ".join(f"{value:.{digits}f} {unit}" for value in values) + " |"

    assert row("whole build", "s", [build["seconds_of_this_run"] for build in builds]) in guide
    assert row("thirteen plans", "MB", [build["plan_bytes"] / 1e6 for build in builds]) in guide
    peaks = [build["peak_bytes"]["workers_at_most"] / 1e9 for build in builds]
    assert row("most memory, the two largest processes that build", "GB", peaks, 1) in guide
    assert all(build["seconds_of_this_run"] < 600 and len(build["plans"]) == 13 for build in builds)
