"""Which plugins a build takes where that is left to it: what was measured on this GPU, else what is expected."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actvar.benchmarks.kernels.cases import Ceiling, Routed
from actvar.benchmarks.kernels.report import KernelReport
from actvar.benchmarks.pictures.measure import Spread
from actvar.bundle.plans import Gpu, PlanTarget
from actvar.cli.bench_kernels import _leave_for_builds
from actvar.config import PRESETS, STATIC, Activation, ModelConfig
from actvar.export.plans import plugin_choice
from actvar.export.plans.plugin_choice import chosen_plugins, figures_file
from actvar.runtime.machine import CACHE_VARIABLE, Machine

ADA = Gpu("An Ada, as its driver says", "8.9")


def model(*rates: float, **more: str) -> ModelConfig:
    """d20 with these shares of experts at the last two scales."""
    return replace(PRESETS["d20"], activation=Activation(expert_rates=rates, **more))


def target(*gpus: str, device: str = "") -> PlanTarget:
    """Plans of TensorRT-RTX for these."""
    return PlanTarget("tensorrt-rtx", "1.7", gpus, device)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one at hand, and an empty cache."""
    monkeypatch.setattr(plugin_choice, "first_gpu", lambda: ADA)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))


@pytest.mark.parametrize(
    ("rates", "gpus", "plugins", "why"),
    [
        ((0.5, 0.5), ("8.0", "8.9"), "all", "8 of 16 experts that is expected to pay on compute capability 8.0, 8.9"),
        ((0.75, 0.5), ("8.9",), "tokens", "12 of 16 experts that is not expected to pay on compute capability 8.9"),
        ((0.25, 0.25), ("8.9", "12.0"), "tokens", "not expected to pay on compute capability 12.0."),
        ((0.5, 0.5), ("9.0",), "tokens", "not expected to pay on compute capability 9.0"),
        ((1.0, 1.0), ("9.0",), "all", "No experts are left out"),
    ],
)
def test_without_figures_it_is_what_is_expected(rates, gpus, plugins, why):
    """Of every scale, and every GPU that the plans are for."""
    choice = chosen_plugins(model(*rates), target(*gpus), 8)
    assert choice.plugins == plugins and why in choice.why


def test_static_experts_need_no_choice():
    """They are a narrower dense product everywhere; a VAR has none."""
    assert chosen_plugins(model(0.75, 0.75, expert_choice=STATIC), target("9.0"), 8).plugins == "all"
    assert chosen_plugins(PRESETS["d20"], target("9.0"), 8).plugins == "all"


def leave(*rows: dict, gpu: str = ADA.name) -> None:
    """What `bench kernels` leaves, as far as it is read."""
    file = figures_file(ADA.name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": {"gpu": gpu}, "routed": rows}))


def row(tokens: int, active: int, ratio: float, routing: str = "random", width: int = 1280) -> dict:
    """A measured case; the library's own tactic is the third, and the others are not looked at."""
    ratios = {"1": 0.1, "3": ratio}
    return {"width": width, "tokens": tokens, "active": active, "routing": routing, "ratios": ratios, "default": 3}


def test_what_was_measured_counts_more_than_what_is_expected():
    """Scale 9 of 8 pictures has 2,032 tokens, scale 10 has 3,072: the nearest case is that of 4,096."""
    leave(row(4096, 12, 0.9), row(384, 12, 3.0), row(4096, 8, 2.0))
    choice = chosen_plugins(model(0.75, 0.75), target("8.9"), 8)
    assert choice.plugins == "all" and "measured 0.90 of the dense time on this GPU" in choice.why
    choice = chosen_plugins(model(0.5, 0.75), target("8.9"), 8)
    assert choice.plugins == "tokens" and "measured 2.00" in choice.why


def test_masks_of_a_router_count_more_than_random_ones():
    """At the same number of tokens."""
    leave(row(4096, 12, 1.2), row(4096, 12, 0.8, "recorded"))
    assert chosen_plugins(model(0.75, 0.75), target("8.9"), 8).plugins == "all"


def test_what_the_bench_leaves_is_what_a_build_reads(capsys: pytest.CaptureFixture):
    """By the command's own code."""
    spread = Spread.of([1.0])
    routed = Routed(4096, 1280, 12, "random", spread, spread, {1: Spread.of([2.0]), 2: Spread.of([0.75])}, 2, None)
    machine = Machine("a CPU", 1, 1, "Linux", ADA.name, 0.0, {})
    _leave_for_builds(KernelReport("a test", machine, Ceiling(1.0, 1.0), (), (routed,)))
    assert str(figures_file(ADA.name)) in capsys.readouterr().err
    choice = chosen_plugins(model(0.75, 0.75), target("8.9"), 8)
    assert choice.plugins == "all" and "measured 0.75" in choice.why


@pytest.mark.parametrize(
    "rows",
    [
        [row(4096, 12, 0.5, width=1024)],
        [row(4096, 4, 0.5)],
        [row(254, 12, 0.5)],
        [{"tokens": 4096}],
        [],
    ],
    ids=["another width", "other experts", "far fewer tokens", "another form", "none"],
)
def test_figures_of_other_cases_are_none(rows):
    """Then it is what is expected."""
    leave(*rows)
    choice = chosen_plugins(model(0.75, 0.75), target("8.9"), 8)
    assert choice.plugins == "tokens" and "not expected" in choice.why


def test_figures_of_another_gpu_are_none():
    """Whether the file is, or the plans are for other GPUs than the one at hand."""
    leave(row(4096, 12, 0.5), gpu="Another")
    assert chosen_plugins(model(0.75, 0.75), target("8.9"), 8).plugins == "tokens"
    leave(row(4096, 12, 0.5))
    assert chosen_plugins(model(0.75, 0.75), target("8.9"), 8).plugins == "all"
    assert chosen_plugins(model(0.75, 0.75), target("9.0"), 8).plugins == "tokens"
    figures_file(ADA.name).write_text("{")
    assert chosen_plugins(model(0.75, 0.75), target("8.9"), 8).plugins == "tokens"
