"""`actvar-trt build` and `export/build_engines.py` as a person uses them; the builder itself is tested elsewhere."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command, in_process
from import_tree import ROOT
from small_models import small_config, vivid_model

from actvar.bundle.contract import graph_names
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import Gpu, PlanManifest, PlanOptions, PlanTarget, read_plans
from actvar.checkpoint.own import save_model
from actvar.config import PRESETS, Activation
from actvar.export.onnx_export import export_graphs
from actvar.export.plans import builder as engine_builder
from actvar.export.plans import engine_library

pytest.importorskip("tensorrt_rtx", reason="builds plans by TensorRT-RTX: pip install tensorrt-rtx")

MODEL = small_config((1, 2), activation=Activation(4, (2,), (0.5,), (0.5,)), depth=1)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt build` in this process, in an empty folder, without plugins."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", "")
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    return in_process(monkeypatch, capsys, "build")


@dataclass
class Asked:
    """What the builder was asked for, in place of building."""

    bundle: Path
    target: PlanTarget
    options: PlanOptions
    graphs: Any
    jobs: int


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """A builder that builds nothing."""
    calls: list[Asked] = []

    def build(bundle: Path, target: PlanTarget, options: PlanOptions, graphs: Any, jobs: int, progress: Any) -> Any:
        calls.append(Asked(bundle, target, options, graphs, jobs))
        return PlanManifest(target, options, "ab" * 32, None, {}, {})

    monkeypatch.setattr(engine_builder, "build_plans", build)
    return calls


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of four small graphs."""
    export_graphs(MODEL, tmp_path / "bundle", "fp16", "a test", encoder=False)
    return tmp_path / "bundle"


def test_a_bundle_is_built_shown_and_told_in_figures(command, bundle):
    """The whole way, with real plans: a table on stdout, all else on stderr, and the same numbers in a file."""
    done = command("--model", bundle, "--gpu-arch", "12.0,8.9", "--batch-range", "1:2:4", "--json", "figures.json")
    assert done.code == 0, done.err
    for graph in graph_names(MODEL):
        assert graph in done.out
    assert "4 of 4 plans" in done.err and "no plugin library" in done.err and "actvar-trt bind" in done.err
    plans = read_plans(bundle / "plans" / "tensorrt-rtx-8.9+12.0-1.7.1.116")
    figures = json.loads(Path("figures.json").read_text())
    assert figures["plugin_layers"] == {"tokens": 0, "experts": 0}
    assert figures["plan_bytes"] == sum(plan.entry.bytes for plan in plans.plans.values())
    assert figures["plans"]["decoder"]["layers"] == sum(plans.plans["decoder"].layers.values())
    assert figures["options"]["batch"] == [1, 2, 4] and figures["model"]["depth"] == 1
    assert figures["command"].startswith("actvar-trt build --model")
    again = command("--model", bundle, "--gpu-arch", "8.9,12.0", "--batch-range", "1:2:4")
    assert again.code == 0 and "builds for" not in again.err, "nothing was left to build"


def test_options_reach_the_builder(command, bundle, asked):
    done = command(
        "--model", bundle, "--scales", "2", "--jobs", "3", "--batch-range", "2:4:8", "--workspace", "512",
        "--aux-streams", "0", "--gpu-arch", "8.9",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert asked == [Asked(bundle, asked[0].target, PlanOptions((2, 4, 8), 512, 0), ["scale_02"], 3)]
    assert asked[0].target.gpus == ("8.9",)


@pytest.mark.parametrize(
    ("arguments", "folder", "config", "precision"),
    [
        (["--depth", 1, "--fp16"], "actvar-d1-fp16", replace(PRESETS["d16"], depth=1, activation=Activation()), "fp16"),
        (["--depth", 1, "--dense"], "d1-fp32", replace(PRESETS["d16"], depth=1), "fp32"),
        (["--depth", 1, "--precision", "bf16", "--token-rates", "0.5", "--active-scales", "10"], "actvar-d1-bf16",
         replace(PRESETS["d16"], depth=1, activation=Activation(16, (10,), (0.5,), (0.75,))), "bf16"),
        (["--preset", "mini"], "actvar-mini-fp32", replace(PRESETS["mini"], activation=Activation()), "fp32"),
        (["--preset", "mini", "--dense"], "mini-fp32", PRESETS["mini"], "fp32"),
        (["--preset", "mini", "--expert-rates", "0.5,0.25"], "actvar-mini-fp32",
         replace(PRESETS["mini"], activation=Activation(expert_rates=(0.5, 0.25))), "fp32"),
    ],
)  # fmt: skip
def test_without_a_checkpoint_graphs_are_exported_without_weights(command, asked, arguments, folder, config, precision):
    """--depth and --preset are the paper's ActVAR, or the VAR; precision and rates as named."""
    done = command(*arguments)
    assert done.code == 0, done.err
    manifest = read_manifest(Path("bundles") / folder)
    assert manifest.model == config and manifest.precision == precision and manifest.weights.entry is None
    assert not (Path("bundles") / folder / "weights.bin").exists()
    assert asked[0].bundle == Path("bundles") / folder
    assert ("no plugin library" in done.err) == (config.activation is not None)


def test_a_depth_with_few_scales_is_active_at_the_last_two(command, asked):
    """The paper's scales 9 and 10 are the last two of ten."""
    assert command("--depth", 1, "--patch-nums", "1,2,4,16").code == 0
    activation = read_manifest(Path("bundles/actvar-d1-fp32")).model.activation
    assert activation and activation.scales == (3, 4)


def test_a_bundle_that_is_there_is_not_exported_again(command, asked):
    """An export would take the plans with it."""
    command("--preset", "mini")
    manifest = Path("bundles/actvar-mini-fp32/manifest.json")
    before = manifest.stat().st_mtime_ns
    assert command("--preset", "mini").code == 0
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.parametrize("other", [["--token-rates", "0.5"], ["--fp16", "--out", "bundles/actvar-mini-fp32"]])
def test_a_bundle_of_another_model_is_left_alone(command, asked, other):
    command("--preset", "mini")
    before = Path("bundles/actvar-mini-fp32/manifest.json").read_bytes()
    done = command("--preset", "mini", *other)
    assert done.code == 2 and "holds another model, or another precision" in done.err
    assert Path("bundles/actvar-mini-fp32/manifest.json").read_bytes() == before


def test_a_checkpoint_is_exported_with_its_weights(command, asked):
    """And used as it is the next time; another checkpoint's weights are not replaced unasked."""
    for name, seed in (("one", 0), ("two", 1)):
        save_model(vivid_model(MODEL, seed), Path(f"{name}.safetensors"), torch.float32)
    assert command("--model", "one.safetensors").code == 0
    manifest = read_manifest(Path("bundles/one-fp32"))
    assert manifest.model == MODEL and manifest.weights.entry and manifest.source == "checkpoint one.safetensors"
    assert command("--model", "one.safetensors").code == 0
    other = command("--model", "two.safetensors", "--out", "bundles/one-fp32")
    assert other.code == 2 and "checkpoint one.safetensors" in other.err and "actvar-trt bind" in other.err
    assert read_manifest(Path("bundles/one-fp32")) == manifest


def test_weights_reach_a_bundle_that_was_made_before_them(command, asked, bundle):
    save_model(vivid_model(MODEL), Path("one.safetensors"), torch.float32)
    done = command("--model", "one.safetensors", "--out", bundle, "--fp16")
    assert done.code == 0, done.err
    assert read_manifest(bundle).weights.entry and "actvar-trt bind" not in done.err


WRONG = [
    ([], "There is nothing to build"),
    (["--depth", 20, "--preset", "d20"], "--depth and --preset both name a model"),
    (["--preset", "d20", "--model", "x.pth"], "--preset and --model both name a model"),
    (["--vqvae", "x.pth", "--depth", 20], "--vqvae belongs to a checkpoint"),
    (["--patch-nums", "1,2"], "--patch-nums belongs to"),
    (["--model", "x.pth", "--dense"], "--dense belongs to a --depth"),
    (["--depth", 20, "--dense", "--token-rates", "0.5"], "shape what is exported"),
    (["--depth", 1, "--fp16", "--precision", "bf16"], "exclude each other"),
    (["--depth", 0], "--depth"),
    (["--depth", 1, "--experts", 7], "experts must divide"),
    (["--depth", 1, "--token-rates", "much"], "--token-rates must be numbers"),
    (["--depth", 1, "--batch-range", "8"], "--batch-range must be three numbers"),
    (["--depth", 1, "--batch-range", "8:4:2"], "fewest:best:most"),
    (["--depth", 1, "--workspace", 0], "workspace must lie in"),
    (["--depth", 1, "--aux-streams", 65], "auxiliary streams must lie in"),
    (["--depth", 1, "--gpu-arch", "sm89"], "TensorRT-RTX builds for"),
    (["--depth", 1, "--engine", "tensorrt", "--gpu-arch", "8.9"], "TensorRT builds for the GPU at hand"),
    (["--depth", 1, "--engine", "openvino"], "--engine"),
    (["--depth", 1, "--json", "nowhere/x.json"], "--json must be a file"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_a_wrong_option_is_said_before_anything_is_written(command, asked, arguments, says):
    done = command(*arguments)
    assert done.code == 2 and says in done.err
    assert not asked and not any(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scales", "3"], "--scales must lie in 1..2, got 3"),
        (["--scales", "last"], "whole numbers"),
        (["--precision", "bf16"], "is fp16. Leave --precision bf16 out"),
        (["--experts", 4], "shape what is exported"),
    ],
)
def test_what_does_not_fit_the_bundle_is_said(command, asked, bundle, arguments, says):
    done = command("--model", bundle, *arguments)
    assert done.code == 2 and says in done.err and not asked


def test_a_folder_that_is_no_bundle_is_left_alone(command, asked):
    """With and without a model to export there."""
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("42")
    for arguments in (["--model", "mine"], ["--out", "mine", "--depth", 1]):
        assert command(*arguments).code in (1, 2)
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"] and not asked


def test_without_tensorrt_graphs_are_exported_and_what_to_install_is_said(command, asked, monkeypatch):
    monkeypatch.setattr(engine_library, "installed", lambda engine: False)
    done = command("--depth", 1, "--fp16")
    assert done.code == 1 and not asked
    assert "pip install tensorrt-rtx" in done.err and "bundles/actvar-d1-fp16" in done.err
    assert read_manifest(Path("bundles/actvar-d1-fp16")).precision == "fp16"


def test_tensorrt_without_a_gpu_says_what_would_work(command, asked, bundle, monkeypatch):
    monkeypatch.setattr(engine_library, "installed", lambda engine: engine == "tensorrt")
    done = command("--model", bundle)
    assert done.code == 1 and "GPU at hand, and there is none" in done.err and "tensorrt-rtx" in done.err


class Library:
    """A TensorRT that is there; nothing of it is used but its version."""

    __version__ = "11.1.0.106"


def test_with_a_gpu_and_tensorrt_plans_are_for_that_gpu(command, asked, bundle, monkeypatch):
    """One plan at a time: kernels are timed on the GPU."""
    monkeypatch.setattr(engine_library, "first_gpu", lambda: Gpu("NVIDIA L4", "8.9"))
    monkeypatch.setattr(engine_library, "installed", lambda engine: True)
    monkeypatch.setattr(engine_library, "load_engine", lambda engine: Library)
    assert command("--model", bundle).code == 0
    assert asked[0].target == PlanTarget("tensorrt", "11.1.0.106", ("8.9",), "NVIDIA L4") and asked[0].jobs == 1


def test_a_gpu_that_rtx_does_not_list_is_built_for_as_the_current_one(command, asked, bundle, monkeypatch):
    """Of Hopper TensorRT-RTX knows no name."""
    monkeypatch.setattr(engine_library, "first_gpu", lambda: Gpu("NVIDIA H100", "9.0"))
    assert command("--model", bundle, "--engine", "tensorrt-rtx").code == 0
    assert asked[0].target.gpus == ("9.0",)


def test_the_script_runs_from_anywhere_by_its_path(tmp_path):
    """Not installed, in a folder whose files bear the names of modules, and beside modules such as export/parity.py."""
    (tmp_path / "onnx.py").write_text("raise SystemExit('the wrong module')")
    script = [sys.executable, str(ROOT / "export" / "build_engines.py"), "--help"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--depth" in done.stdout and "--gpu-arch" in done.stdout and "actvar-trt build --depth 20" in done.stdout


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from actvar.cli.main import main
main()
"""


def test_a_bundle_that_is_there_needs_no_torch(bundle):
    """A build machine has ONNX and an engine library."""
    arguments = ["build", "--model", str(bundle), "--scales", "1", "--gpu-arch", "8.9"]
    words = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "scale_01" in done.stdout


def test_a_failure_of_the_engine_is_a_message_and_exit_code_1(command, bundle):
    """TensorRT-RTX has no fp32 matrix products for Turing: its log says so, and so do we."""
    done = command("--model", bundle, "--gpu-arch", "7.5", "--scales", "1")
    assert done.code == 1 and "built no plan for scale_01" in done.err and "Turing" in done.err
