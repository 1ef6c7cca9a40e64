"""The profile of a bundle by operator: `benchmarks/operator_times.py`."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import small_config, vivid_model

from actvar.bundle.contract import MASKED_SCALES, SCALES
from actvar.config import Activation
from actvar.export.onnx_export import export_bundle

SPARSE = Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))
SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "operator_times.py"


@pytest.mark.parametrize("scales", [SCALES, MASKED_SCALES])
def test_every_graph_of_a_picture_is_profiled_and_no_time_counts_twice(tmp_path: Path, scales: str):
    """What an `If` takes is what its nodes take, so it has no time of its own."""
    config = small_config(activation=SPARSE)
    export_bundle(vivid_model(config), tmp_path / "bundle", "fp32", "random weights")
    command = [sys.executable, SCRIPT, "--bundle", tmp_path / "bundle", "--runs", "2", "--json", tmp_path / "file"]
    command += ["--scales", scales]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds = json.loads((tmp_path / "file").read_text())["seconds"]
    assert list(seconds) == [*(f"scale_{si + 1:02d}" for si in range(len(config.schedule))), "decoder"]
    for graph, by_operator in seconds.items():
        assert by_operator["Conv" if graph == "decoder" else "Gemm"] > 0
        assert "If" not in by_operator
    routes = [scales == SCALES and config.active_experts(si) < SPARSE.experts for si in range(len(config.schedule))]
    assert [("NonZero" in by_operator) for by_operator in seconds.values()] == [*routes, False]


@pytest.mark.parametrize("choice", ["dynamic", "static"])
def test_the_ffns_of_two_bundles_take_turns(tmp_path: Path, choice: str):
    """Scales at which nothing is saved have no share that is realised."""
    config = small_config(activation=replace(SPARSE, token_rates=(1.0, 1.0), expert_choice=choice))
    for name, model in (("active", config), ("dense", config.dense())):
        export_bundle(vivid_model(model), tmp_path / name, "fp32", "random weights")
    command = [sys.executable, SCRIPT, "--bundle", tmp_path / "active", "--beside", tmp_path / "dense"]
    done = subprocess.run([*map(str, command), "--runs", "2", "--json", str(tmp_path / "file")], check=False)
    assert done.returncode == 0
    found = json.loads((tmp_path / "file").read_text())["ffns"]
    assert [("realised" in scale) for scale in found.values()] == [False, False, True, True]
    assert all(scale["seconds"] > 0 and scale["dense_seconds"] > 0 for scale in found.values())
    if choice == "static":
        assert found["scale_03"]["operations_saved"] == 0.5 and found["scale_04"]["operations_saved"] == 0.75
