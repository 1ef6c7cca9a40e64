"""kill -9 at any moment of a build: nothing outlives it, and the same command makes it whole."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from small_models import SMALL_VQVAE, small_config

from actvar.benchmarks.kills import what_was_made
from actvar.bundle.contract import ENCODER, graph_names
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import plan_folder
from actvar.config import Activation, ModelConfig
from actvar.export.onnx_export import export_graphs
from actvar.export.plans.engine_library import choose_target

pytest.importorskip("tensorrt_rtx", reason="builds plans by TensorRT-RTX: pip install tensorrt-rtx")

KILLS, SEED = 8, 3
TINY = ModelConfig(1, small_config((1, 2)).schedule, 5, False, SMALL_VQVAE, Activation(4, (2,), (0.5,), (0.5,)))


class Build:
    """The command in a process of its own; it and its workers bear a mark in their environment."""

    def __init__(self, bundle: Path, mark: str) -> None:
        self.bundle, self.mark = bundle, f"ACTVAR_TEST_MARK={mark}".encode()
        command = "from actvar.cli.main import main; main()"
        options = ["--model", str(bundle), "--gpu-arch", "8.9", "--batch-range", "1:2:4", "--jobs", "2"]
        environment, nowhere = {**os.environ, "ACTVAR_TEST_MARK": mark}, subprocess.DEVNULL
        words = [sys.executable, "-c", command, "build", *options]
        self.process = subprocess.Popen(words, env=environment, stdout=nowhere, stderr=nowhere)

    def under_way(self) -> float:
        """Wait until the first file is written; returns when that was."""
        while not (self.bundle / "plans").exists():
            assert self.process.poll() is None
            time.sleep(0.001)
        return time.monotonic()

    def complete(self) -> float:
        """Let it end; returns how long it built."""
        started = self.under_way()
        assert self.process.wait() == 0
        return time.monotonic() - started

    def kill(self) -> bool:
        """kill -9 the command alone; returns whether it was still at work."""
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def alive(self) -> list[str]:
        """The processes that bear the mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is another user's
                if self.mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(folder.name)
        return found


@pytest.mark.slow
def test_a_build_that_is_killed_at_any_moment_is_completed_by_the_next(tmp_path, monkeypatch):
    """kill -9 at twenty moments, spread over a build: no worker outlives it, and the same command makes it whole."""
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", "")
    target, pristine = choose_target("tensorrt-rtx", ("8.9",)), tmp_path / "pristine"
    export_graphs(TINY, pristine, "fp32", "a test")
    whole = Path(shutil.copytree(pristine, tmp_path / "whole"))
    length = Build(whole, "whole").complete()
    expected = what_was_made(plan_folder(whole, target))
    assert [graph for graph, _ in expected["plans"]] == [*graph_names(TINY), ENCODER]

    moments, met, left_with = random.Random(SEED), 0, set[int]()
    for kill in range(KILLS):
        bundle = Path(shutil.copytree(pristine, tmp_path / f"killed-{kill}"))
        folder = plan_folder(bundle, target)
        build = Build(bundle, f"kill-{kill}")
        build.under_way()
        time.sleep(length * (kill + moments.random()) / KILLS)
        met += build.kill()
        deadline = time.monotonic() + 2
        while build.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert build.alive() == []
        left_with.add(len(what_was_made(folder)["plans"]) if (folder / "manifest.json").exists() else 0)
        Build(bundle, f"again-{kill}").complete()
        assert what_was_made(folder) == expected, f"kill {kill}"
        assert read_manifest(bundle) == read_manifest(pristine)
        shutil.rmtree(bundle)
    assert met >= KILLS // 2 and len(left_with) > 1, "the kills must have met builds that were under way"
