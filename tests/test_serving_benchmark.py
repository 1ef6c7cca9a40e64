"""The load benchmark in a short form: the server holds out, and what it must not do is found."""

import json
import sys
from pathlib import Path

import pytest
from small_models import small_config, vivid_model

pytest.importorskip("fastapi", reason="needs the extra serve")

from actvar.benchmarks import serving
from actvar.benchmarks.serving import Watch
from actvar.config import Activation
from actvar.export.onnx_export import export_bundle


@pytest.mark.slow
def test_a_server_holds_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property):
    """64 clients, 200 broken requests, four times too much, SIGKILL: every picture that came was right."""
    config = small_config(tuple(range(1, 9)), Activation(4, (7, 8), (0.5, 0.6), (0.75, 0.25)), depth=4)
    export_bundle(vivid_model(config), tmp_path / "bundle", "fp32", "a test")
    report = tmp_path / "report.json"
    words = ["--model", tmp_path / "bundle", "--minutes", 0.1, "--threads", 1, "--clients", 64, "--max-batch", 2]
    words += ["--pictures", 40, "--broken", 200, "--allowed-mb", 64, "--json", report]
    monkeypatch.setattr(sys, "argv", ["serving.py", *map(str, words)])
    code = serving.main()
    found = json.loads(report.read_text())
    assert (code, found["failures"]) == (0, [])
    assert found["load"]["answers"].keys() == {"200"} and found["load"]["wrong_pictures"] == 0
    assert sum(found["malformed"].values()) == 200 and "400" in found["malformed"] and "413" in found["malformed"]
    assert found["overload"]["answers"]["429"] > 0 and found["killed"]["broken_connections"] > 0
    record_property("figure", f"the server drew {found['share_of_generate']:.2f} times as fast as generate")


def test_growth_is_what_lies_above_the_settled_beginning():
    """A leak of 10 a look is found, noise at the beginning is not one."""
    flat, leak = Watch(), Watch()
    for i in range(20):
        flat.resident.append(100 if i < 4 else 99)
        leak.resident.append(100 + 10 * i)
        for watch in (flat, leak):
            watch.seconds.append(float(i))
            watch.handles.append(7)
    assert flat.grown() == (-1, 0) and leak.grown() == (160, 0)
