"""The steps of the command for a GPU machine that are mostly other programs' work, over stand-ins; and the rehearsal.

With `test_gpu_evidence.py` and `test_kernel_bench.py` these are what `gpu_evidence.py --rehearse` runs.
"""

import json
import os
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
from gpu_on_host import CAPABILITY, NAME
from import_tree import ROOT
from small_models import small_config, vivid_model

from actvar.benchmarks import gpu_evidence
from actvar.benchmarks.gpu import correctness, machine, project
from actvar.benchmarks.gpu.case import Places, Report
from actvar.benchmarks.gpu.steps import STEPS
from actvar.bundle.plans import Gpu
from actvar.errors import ActVARError
from actvar.plugins.library import PLUGIN_VARIABLE

REHEARSED_BY = {
    "bundles:run": "test_a_bundle_that_is_missing_is_made_and_then_left_alone",
    "machine:run": "test_the_machine_says_what_its_tools_say_and_how_fast_it_copies",
    "rtx_answer:run": "test_plans_for_other_gpus_are_tried_all_the_same",
    "correctness:run": "test_correctness_compares_chain_graphs_repeats_and_lanes",
    "project:gpu_tests": "test_the_gpu_tests_are_given_the_built_libraries",
    "project:kernels": "test_the_benchmark_leaves_what_it_had_found",
    "timings:run": "test_timings_are_of_both_batches_and_hold_the_share_outside",
    "watched:sanitizer": "test_the_sanitizer_watches_every_kernel",
    "watched:profile": "test_a_profile_says_what_the_kernels_reach",
    "cache:run": "test_copies_into_the_cache_are_timed_beside_plain_ones",
    "launches:run": "test_launches_are_timed_one_by_one_and_recorded",
    "torch_times:run": "test_the_recorded_model_is_timed_in_all_its_forms",
    "correctness:cuda_provider": "test_the_cuda_provider_is_compared_with_the_cpu",
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Empty folders, and a GPU that is not there."""
    monkeypatch.setattr("actvar.benchmarks.gpu.case.first_gpu", lambda: Gpu(NAME, ".".join(map(str, CAPABILITY))))
    found = Places(tmp_path / "bundles", tmp_path / "scratch", tmp_path / "out")
    for folder in (found.bundles, found.scratch, found.out):
        folder.mkdir()
    return found


def findings(places: Places) -> dict:
    """What the last case has left."""
    return json.loads((places.out / "answer.json").read_bytes())["findings"]


def report(places: Places) -> Report:
    """Of a case."""
    return Report(places.out / "answer.json")


def test_every_step_has_its_rehearsal():
    """In the files that the command runs."""
    assert set(REHEARSED_BY) == {step.code or f"{step.name}:run" for step in STEPS}
    texts = [(ROOT / "tests" / file).read_text(encoding="utf-8") for file in gpu_evidence.REHEARSED]
    there = set(re.findall(r"^def (test_\w+)", "\n".join(texts), re.MULTILINE))
    assert set(REHEARSED_BY.values()) <= there


def test_the_machine_says_what_its_tools_say_and_how_fast_it_copies(places: Places, monkeypatch: pytest.MonkeyPatch):
    """A copy takes a millisecond here, and is read and written."""
    torch = pytest.importorskip("torch")
    tool = places.scratch / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho A GPU, as it says\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 1.0)
    properties = SimpleNamespace(multi_processor_count=132, L2_cache_size=60 << 20)
    randint, randn = torch.randint, torch.randn
    monkeypatch.setattr(torch, "randint", lambda *given, device, **more: randint(*given, **more))
    monkeypatch.setattr(torch, "randn", lambda *given, device, **more: randn(*given, **more))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    monkeypatch.setattr(machine, "_COPIED", 4096)
    monkeypatch.setattr(machine, "_SIDE", 32)
    machine.run("machine", places, report(places))
    found = findings(places)
    assert found["gpu"] == found["nvidia_smi"] == ["A GPU, as it says"] and found["multiprocessors"] == 132
    assert found["copy_bytes_per_second"] == pytest.approx(2 * 4096 / 1e-3)
    assert found["product_operations_per_second"] == pytest.approx(2 * 32**3 / 1e-3)


@pytest.fixture
def library(places: Places, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that holds machine code for this GPU, as nvcc marks it."""
    path = places.scratch / "libactvar_plugins.so"
    path.write_bytes(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 64) + struct.pack("<HHIQ12xI32x", 2, 257, 64, 0, 80))
    monkeypatch.setenv(PLUGIN_VARIABLE, str(path))
    return path


def test_the_gpu_tests_are_given_the_built_libraries(
    places: Places, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So that they compile nothing; only files with tests for a GPU are run."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (tests / "test_one.py").write_text(
        "import os, pytest\n@pytest.mark.gpu\ndef test_one():\n"
        f"    assert os.environ['ACTVAR_TEST_LIBRARIES'] == {str(library.parent)!r}\n"
    )
    (tests / "test_other.py").write_text("raise SystemExit\n")
    monkeypatch.setattr(project, "_CHECKOUT", tmp_path)
    project.gpu_tests("pytest", places, report(places))
    found = findings(places)
    assert found["files"] == ["test_one.py"] and found["counts"] == {"passed": 1} and found["exit_code"] == 0


def test_libraries_for_another_gpu_are_refused(places: Places, library: Path, monkeypatch: pytest.MonkeyPatch):
    """What its driver would compile is not what was built."""
    monkeypatch.setattr("actvar.benchmarks.gpu.case.first_gpu", lambda: Gpu(NAME, "9.0"))
    for run in (project.gpu_tests, project.kernels):
        with pytest.raises(ActVARError, match=r"holds machine code for 8\.0, and this GPU has compute capability 9\.0"):
            run("", places, report(places))


def test_the_benchmark_leaves_what_it_had_found(places: Places, library: Path, monkeypatch: pytest.MonkeyPatch):
    """Even where it fails later: its JSON grows case by case."""
    script = (
        "import pathlib, sys\nout = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\nout.mkdir()\n"
        "(out / 'kernels.json').write_text('{\"moved\": [1]}')\nsys.exit(5)"
    )
    monkeypatch.setattr(project, "_BENCH", (sys.executable, "-c", script))
    monkeypatch.setattr(project, "_RECORDER", (sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(ActVARError, match="ended with 5"):
        project.kernels("bench", places, report(places))
    assert findings(places) == {"recorded_masks": False, "kernels": {"moved": [1]}}


def test_the_cuda_provider_is_compared_with_the_cpu(places: Places, monkeypatch: pytest.MonkeyPatch):
    """Here both are the CPU."""
    from actvar.export.onnx_export import export_bundle

    export_bundle(vivid_model(small_config()), places.bundle("mini-fp32"), "fp32", "a test")
    open_graphs = correctness.open_graphs
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(correctness, "open_graphs", lambda *given: open_graphs(*given[:-1], "cpu"))
    for name, number in (("_BATCH", 1), ("_PICTURES", 2)):
        monkeypatch.setattr(correctness, name, number)
    correctness.cuda_provider("fp32", places, report(places))
    assert findings(places)["chain"] and findings(places)["opened_and_drawn_seconds"] >= 0


# ---- the option


def test_the_rehearsal_runs_the_tests_of_the_steps(monkeypatch: pytest.MonkeyPatch):
    """And no test that needs a GPU; its exit code is 0 or 1."""
    ran: list[list[str]] = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(gpu_evidence.subprocess, "run", run)
    assert gpu_evidence.main(["--rehearse"]) == 1
    [command] = ran
    assert [Path(part).name for part in command if part.endswith(".py")] == list(gpu_evidence.REHEARSED)
    assert command[command.index("-m", 2) + 1] == "not gpu"


def test_without_the_rehearsal_a_folder_must_be_named(capsys: pytest.CaptureFixture):
    """For what is found."""
    with pytest.raises(SystemExit):
        gpu_evidence.main([])
    assert "required: --out" in capsys.readouterr().err
