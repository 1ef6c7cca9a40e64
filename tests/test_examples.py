"""The examples of the documentation run: what a person copies must work."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from small_models import small_config, vivid_model

from actvar.export.onnx_export import export_bundle
from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_graphs

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"


class Tensor:
    """Triton's tensor, as far as the example uses it."""

    def __init__(self, name: str, values: np.ndarray):
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type:
    """The example's model class, loaded as the server does it; only the server's own module is a stand-in."""
    utils = ModuleType("triton_python_backend_utils")
    utils.Tensor = Tensor  # type: ignore[attr-defined]
    utils.InferenceResponse = lambda tensors: {t.name: t.values for t in tensors}  # type: ignore[attr-defined]
    utils.get_input_tensor_by_name = lambda request, name: request[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    return runpy.run_path(str(EXAMPLES / "triton_model.py"))["TritonPythonModel"]


def test_the_server_draws_what_the_pipeline_draws(server: type, tmp_path: Path):
    """Two requests in one call, of two pictures and of one: each gets its own, the same as without a server."""
    export_bundle(vivid_model(small_config()), tmp_path / "bundle", "fp32", "a test")
    text = (EXAMPLES / "config.pbtxt").read_text()
    found = dict(re.findall(r'key: "(\w+)" value: \{ string_value: "([^"]*)" \}', text))
    assert list(found) == ["bundle", "backend", "batch_size", "seed"]
    found |= {"bundle": str(tmp_path / "bundle"), "backend": "onnxruntime"}
    model = server()
    parameters = {name: {"string_value": value} for name, value in found.items()}
    model.initialize({"model_config": json.dumps({"parameters": parameters})})

    def request(class_ids: list[int], numbers: list[int]) -> dict[str, Tensor]:
        return {"class_id": Tensor("class_id", np.array(class_ids)), "number": Tensor("number", np.array(numbers))}

    first, second = model.execute([request([3, 0], [0, 5]), request([4], [1])])
    source = open_graphs(tmp_path / "bundle", 1, threads=1)
    orders = [Order(3, 0), Order(0, 5), Order(4, 1)]
    alone = [picture.pixels_HW3 for picture in source.draw(orders, source.model.sampling, 0)]
    np.testing.assert_array_equal(first["picture"], np.stack(alone[:2]))
    np.testing.assert_array_equal(second["picture"], np.stack(alone[2:]))


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
    assert row("twelve plans", "MB", [build["plan_bytes"] / 1e6 for build in builds]) in guide
    peaks = [build["peak_bytes"]["workers_at_most"] / 1e9 for build in builds]
    assert row("most memory, the two largest processes that build", "GB", peaks, 1) in guide
    assert all(build["seconds_of_this_run"] < 600 and len(build["plans"]) == 12 for build in builds)
