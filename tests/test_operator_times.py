"""The profile of a bundle by operator: `benchmarks/operator_times.py`."""

import json
import subprocess
import sys
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
