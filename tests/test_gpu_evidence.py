"""The command for a GPU machine, as far as it goes without one: the runner of steps, and the steps.

What only a GPU can do is done by the stand-ins of `gpu_on_host.py`, so that the steps' own code has run before there is
a machine. Nothing here says anything about a GPU.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from gpu_on_host import CAPABILITY, NAME, HostCuda, HostTensorRT, build_on_host
from import_tree import ROOT
from small_models import small_config, vivid_model

from actvar.benchmarks import gpu_evidence
from actvar.benchmarks.gpu import bundles as gpu_bundles
from actvar.benchmarks.gpu import child, correctness, doubled, rtx_answer, summary, timings, ways
from actvar.benchmarks.gpu.case import Departure, Places, Report, Skipped, records_in
from actvar.benchmarks.gpu.drawing import drawn, orders, same_bytes
from actvar.benchmarks.gpu.step_runner import Case, Run, Step, exit_code, run_steps
from actvar.benchmarks.gpu.steps import BUNDLES, STEPS, chosen
from actvar.bundle.contract import graph_names
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import Gpu, PlanManifest, PlanTarget, plan_folder
from actvar.config import MINI, Activation
from actvar.files import hash_file
from actvar.runtime.backends import cuda_memory
from actvar.runtime.machine import CACHE_VARIABLE

GPU = Gpu(NAME, ".".join(map(str, CAPABILITY)))

# ---- the runner

CODE = {
    "good": "answer('done', findings={'x': 1})",
    "skips": "answer('skipped', reason='There is no such thing.', findings={})",
    "fails": "answer('failed', error='It does not fit.', findings={'x': 2})",
    "crashes": "answer('under way', findings={'x': 3}); print('last words', flush=True); os.kill(os.getpid(), 11)",
    "leaves": "raise SystemExit(4)",
    "hangs": (
        "answer('under way', findings={'x': 4})\n"
        "subprocess.Popen([sys.executable, '-c', f'import time; time.sleep(3); open({sys.argv[2]!r}, chr(119))'])\n"
        "time.sleep(60)"
    ),
}
ANSWER = (
    "import json, os, subprocess, sys, time\n"
    "def answer(state, **rest): open(sys.argv[1], 'w').write(json.dumps({'state': state, **rest}))\n"
)


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[[float], Run]:
    """A run whose cases are the lines of `CODE`, with so many seconds for all."""

    def of(seconds: float) -> Run:
        (tmp_path / "scratch").mkdir()
        (tmp_path / "out").mkdir()

        def command(step: Step, case: Case, answer: Path) -> list[str]:
            return [sys.executable, "-c", ANSWER + CODE[case.name], str(answer), str(tmp_path / "survivor")]

        folders = tmp_path, tmp_path / "scratch", tmp_path / "out"
        return Run(command, {}, *folders, {"gpu": None, "commit": "abc"}, time.monotonic() + seconds, lambda text: None)

    return of


def read(run: Run) -> dict[str, Any]:
    return json.loads((run.out / "summary.json").read_bytes())


def test_a_case_that_fails_crashes_or_hangs_does_not_end_the_others(run_of: Callable[[float], Run], tmp_path: Path):
    """In order, each with what it had found until then; and what a case has started does not outlive it."""
    run = run_of(60)
    names = ("fails", "crashes", "leaves", "good")
    began = time.monotonic()
    steps = [Step("one", (Case("hangs", 1.5),)), Step("two", tuple(Case(name, 20) for name in names))]
    records = run_steps(steps, run)
    assert 1.5 <= time.monotonic() - began < 30
    (hung,), (failed, crashed, left, good) = (record["cases"] for record in records)
    assert hung["state"] == "out of time" and hung["findings"] == {"x": 4} and "1.5 seconds" in hung["error"]
    assert failed["state"] == "failed" and failed["error"] == "It does not fit." and failed["findings"] == {"x": 2}
    assert crashed["state"] == "failed" and "SIGSEGV" in crashed["error"] and crashed["said"] == ["last words"]
    assert crashed["findings"] == {"x": 3}
    assert left["state"] == "failed" and "code 4" in left["error"]
    assert good["state"] == "done" and good["findings"] == {"x": 1}
    assert read(run) == {"gpu": None, "commit": "abc", "steps": records}
    time.sleep(max(0.0, 4 - (time.monotonic() - began)))
    assert not (tmp_path / "survivor").exists()
    assert exit_code(records) == 1


def test_what_is_prepared_does_not_count_against_the_deadline(run_of: Callable[[float], Run]):
    """It has its own limits, and the steps after it have all of their time."""
    run = run_of(1.5)
    records = run_steps([Step("first", (Case("hangs", 2),), counts=False), Step("second", (Case("good", 20),))], run)
    (hung,), (good,) = (record["cases"] for record in records)
    assert hung["state"] == "out of time" and hung["limit"] == 2
    assert good["state"] == "done" and 1 <= good["limit"] <= 1.5


def test_each_case_is_on_disk_before_the_next_begins(run_of: Callable[[float], Run]):
    """A machine may be taken away at any moment."""
    run = run_of(60)
    seen = []

    def tell(text: str) -> None:
        seen.append([case["case"] for step in read(run)["steps"] for case in step["cases"]])

    run_steps([Step("one", (Case("good", 20), Case("skips", 20)))], replace(run, tell=tell))
    assert seen == [["good"], ["good", "skips"]]


def test_what_other_calls_have_found_stays(run_of: Callable[[float], Run]):
    """But for the steps that are run again: a machine is lent for a few minutes at a time."""
    run = run_of(60)
    run_steps([Step("one", (Case("good", 20),)), Step("two", (Case("skips", 20),))], run)
    run_steps([Step("two", (Case("good", 20),))], run)
    assert [path.name for path in run.out.iterdir()] == ["summary.json"]
    found = [(step["step"], [case["state"] for case in step["cases"]]) for step in read(run)["steps"]]
    assert found == [("one", ["done"]), ("two", ["done"])]
    places = Places(run.folder, run.scratch, run.out)
    assert places.findings("one") == {"good": {"x": 1}} and places.findings("three") == {}


def test_after_the_deadline_cases_are_skipped_and_say_so(run_of: Callable[[float], Run]):
    """The command must end by itself: whoever lends the machine ends it otherwise."""
    run = run_of(2)
    began = time.monotonic()
    records = run_steps([Step("one", (Case("hangs", 50), Case("good", 50)))], run)
    assert time.monotonic() - began < 10
    hung, good = records[0]["cases"]
    assert hung["state"] == "out of time" and hung["limit"] <= 2
    assert good["state"] == "skipped" and "before the deadline" in good["reason"]


@pytest.mark.parametrize(("states", "code"), [(["good"], 0), (["good", "skips"], 3), (["skips", "leaves"], 1)])
def test_the_exit_code_tells_done_skipped_and_failed(run_of: Callable[[float], Run], states: list[str], code: int):
    """A script must not take a skipped step for a proof."""
    records = run_steps([Step("one", tuple(Case(name, 20) for name in states))], run_of(60))
    assert exit_code(records) == code


# ---- the command, on a machine without a GPU


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if child.first_gpu() is not None:
        pytest.skip("there is a GPU, and this is about machines without one")


def test_without_a_gpu_every_step_says_what_is_missing_and_nothing_is_invented(no_gpu: None, tmp_path: Path):
    """Exit code 3, one JSON, no figure in it, and no bundle is made for nothing."""
    script = ROOT / "benchmarks" / "gpu_evidence.py"
    command = [sys.executable, str(script), "--out", str(tmp_path / "out"), "--bundles", str(tmp_path / "bundles")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.json"]
    content = json.loads((tmp_path / "out" / "summary.json").read_bytes())
    cases = [case for step in content["steps"] for case in step["cases"]]
    assert [case["case"] for case in cases] == [case.name for step in STEPS for case in step.cases]
    for case in cases:
        assert case["state"] == "skipped" and case["reason"] in done.stdout
        assert "seconds" not in case["findings"] and "copy_bytes_per_second" not in case["findings"]
        assert str(tmp_path) not in case["command"]
    assert all("NVIDIA GPU" in case["reason"] for case in cases)
    assert content["machine"]["cores"] and content["command"] == "python gpu_evidence.py --out out --bundles bundles"
    assert list((tmp_path / "bundles").iterdir()) == []


def test_the_steps_that_are_asked_for_are_run_and_no_others(no_gpu: None, tmp_path: Path):
    """With the bundles that they need."""
    options = ["--out", str(tmp_path), "--bundles", str(tmp_path / "bundles"), "--steps", "ort_cuda,machine"]
    assert gpu_evidence.main(options) == 3
    steps = json.loads((tmp_path / "summary.json").read_bytes())["steps"]
    found = [(step["step"], [case["case"] for case in step["cases"]]) for step in steps]
    assert found == [("machine", ["machine"]), ("bundles", ["mini-fp32"]), ("ort_cuda", ["fp32"])]


def test_every_step_has_its_code_and_every_bundle_is_made():
    """A name that is mistyped would be found by a GPU alone."""
    for step in STEPS:
        module, _, function = (step.code or f"{step.name}:run").partition(":")
        assert callable(getattr(import_module(f"actvar.benchmarks.gpu.{module}"), function))
        assert {bundle for case in step.cases for bundle in case.bundles} <= {case.name for case in BUNDLES.cases}
    assert chosen([]) == STEPS and chosen(["machine"]) == (STEPS[0],)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "machine,timing"], "No step is called 'timing'. There are machine, gpu_tests"),
        (["--official-var", "none"], "--official-var none is no folder"),
        (["--libraries", "none"], "--libraries none holds no libactvar_plugins.so"),
        (["--deadline", "0"], "--deadline must be more than 0 seconds"),
    ],
)
def test_wrong_options_are_messages(tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], said: str):
    """No traceback, and exit code 2."""
    assert gpu_evidence.main(["--out", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Exit code 1."""
    (tmp_path / "file").write_text("")
    assert gpu_evidence.main(["--out", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err


# ---- the steps, over stand-ins


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the step of the bundles makes, of a model small enough for a test."""
    from actvar.export.onnx_export import export_bundle, export_graphs

    folder = tmp_path_factory.mktemp("bundles")
    config = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))
    for precision in ("fp32", "fp16"):
        export_bundle(vivid_model(config), folder / f"mini-{precision}", precision, "a test")
    export_graphs(config, folder / "d16-active-fp16", "fp16", "a test, no weights")
    return folder


@pytest.fixture
def places(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A GPU that is not there, TensorRT-RTX on it, and a model that is small."""
    stand_in = HostTensorRT(HostCuda(), rtx=True)
    monkeypatch.setattr(cuda_memory, "cudart", stand_in.cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("actvar.benchmarks.gpu.case.first_gpu", lambda: GPU)
    monkeypatch.setattr(ways.Way, "target", target)
    monkeypatch.setattr(
        ways, "build_plans", lambda bundle, target, options, jobs: build_on_host(bundle, target, options)
    )
    config = read_manifest(bundles / "mini-fp32").model
    checkpoint = SimpleNamespace(path=Path("small.safetensors"), vqvae=None)
    monkeypatch.setattr(correctness, "shipped_checkpoint", lambda name: checkpoint)
    for name, number in (("_BATCH", 1), ("_PICTURES", 2), ("_REPEATS", 4)):
        monkeypatch.setattr(correctness, name, number)
    monkeypatch.setattr(correctness, "load_model", lambda path, vqvae: vivid_model(config))
    monkeypatch.setattr(timings, "_taken_bytes", lambda: 0)
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "scratch").mkdir()
    shutil.copytree(bundles, tmp_path / "bundles")
    return Places(tmp_path / "bundles", tmp_path / "scratch", out)


def target(way: ways.Way, gpu: Gpu | None = None) -> PlanTarget:
    """As `Way.target`, without the library's own list."""
    gpus = (gpu.capability,) if way.at_hand and gpu else way.architectures or ("8.0", "8.9", "12.0")
    return PlanTarget(way.engine, HostTensorRT.__version__, tuple(gpus))


def answer_of(step: Any, case: str, places: Places) -> dict[str, Any]:
    """What a case leaves, put where later steps look for it."""
    file = places.out / "answer.json"
    report = Report(file)
    try:
        step.run(case, places, report)
    finally:
        findings = json.loads(file.read_bytes())["findings"]
        name = step.__name__.rpartition(".")[2]
        record = {"step": name, "cases": [{"case": case, "findings": findings}]}
        (places.out / "summary.json").write_text(json.dumps({"steps": [record, *records_in(places.out)]}))
    return findings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-fp16", "d16-active-fp16"])
def test_a_bundle_that_is_missing_is_made_and_then_left_alone(
    places: Places, name: str, monkeypatch: pytest.MonkeyPatch
):
    """Mini with weights, and with the plans that need no GPU; the presets without, as weights are bound later."""
    built: list[tuple[str, ...]] = []
    monkeypatch.setattr(gpu_bundles, "PRESETS", {"d16": MINI})
    monkeypatch.setattr(gpu_bundles, "find_spec", bool)  # the stand-in has none
    monkeypatch.setattr(gpu_bundles, "build_plans", lambda bundle, target, *_, jobs: built.append(target.gpus))
    shutil.rmtree(places.bundle(name))
    assert answer_of(gpu_bundles, name, places)["was_there"] is False
    manifest = read_manifest(places.bundle(name))
    assert manifest.precision == "fp16" and manifest.model.activation
    assert (manifest.weights.sha256 is None) == (name != "mini-fp16")
    assert built == ([("8.9",), ("8.0",), ("8.0", "8.9", "12.0")] if name == "mini-fp16" else [])
    assert answer_of(gpu_bundles, name, places)["was_there"] is True
    assert read_manifest(places.bundle(name)) == manifest


def test_plans_for_other_gpus_are_tried_all_the_same(places: Places):
    """The runtime would refuse them: they are marked for this GPU, in a copy, and the copy alone."""
    found = answer_of(rtx_answer, "sm89", places)
    assert found["runs"] and found["built_for"] == ["8.9"] and found["capability"] == GPU.capability
    assert set(found["plans"].values()) == {"is loaded and gets a context"}
    assert all(s["equal"] == s["tokens"] for s in found["tokens_of_onnxruntime"]["scales"].values())
    assert not (places.bundle("mini-fp16") / "plans").exists()
    assert ways.way_that_ran(places) == ways.WAYS["sm89"]


def test_a_library_that_refuses_its_plans_is_an_answer_in_its_words(places: Places, monkeypatch: pytest.MonkeyPatch):
    """Which is what the docs are to quote; and nothing after it is tried with such plans."""

    def build(bundle: Path, target: PlanTarget, options: Any, jobs: int) -> PlanManifest:
        plans = build_on_host(bundle, target, options)
        path = plan_folder(bundle, target) / "condition.plan"
        path.write_bytes(b"a plan of another GPU")
        specs = {**plans.plans, "condition": replace(plans.plans["condition"], entry=hash_file(path))}
        return replace(plans, plans=specs)

    monkeypatch.setattr(ways, "build_plans", build)
    found = answer_of(rtx_answer, "sm80", places)
    assert found["runs"] is False and "the magic tag does not match" in found["plans"]["condition"]
    assert "the magic tag does not match" in found["said"]
    with pytest.raises(Skipped, match="No plans ran on this GPU"):
        answer_of(correctness, "fp32", places)


def test_plans_that_are_there_are_not_built_again(places: Places):
    """They come with the bundle; the answer says how many were there."""
    way = ways.WAYS["sm80"]
    bundle = places.bundle("mini-fp16")
    build_on_host(bundle, way.target(GPU), ways.OPTIONS)
    assert answer_of(rtx_answer, "sm80", places)["built_before"] == list(read_manifest(bundle).graphs)


@pytest.mark.slow
def test_correctness_compares_chain_graphs_repeats_and_lanes(places: Places, monkeypatch: pytest.MonkeyPatch):
    """On an engine that is right, all of it holds; the third and fourth time are replayed."""
    answer_of(rtx_answer, "current", places)
    found = answer_of(correctness, "fp32", places)
    assert all(s["equal"] == s["tokens"] for s in found["chain"]["scales"].values())
    assert found["repeats_equal"] == [True] * 4 and found["lanes"] == 2 and found["one_lane_equal"]
    assert found["parity"]["passed"]


@pytest.mark.slow
def test_correctness_finds_an_engine_that_is_wrong(places: Places, monkeypatch: pytest.MonkeyPatch):
    """One that draws other tokens, and one that changes its mind: neither may pass for right."""
    answer_of(rtx_answer, "current", places)
    times = iter(range(100))

    def unsteady(source: Any, what: Any) -> Any:
        pictures = drawn(source, what)
        for picture in pictures:
            picture.token_ids[-1][0] = next(times)
        return pictures

    monkeypatch.setattr(correctness, "drawn", unsteady)
    with pytest.raises(Departure, match=r"other tokens than ONNX Runtime.*not the same bytes.*Two lanes"):
        answer_of(correctness, "fp32", places)


def test_timings_are_of_both_batches_and_hold_the_share_outside(places: Places, monkeypatch: pytest.MonkeyPatch):
    """On a clock by which a graph takes 1 ms and all else 0.1 ms; the floor is what copy and manifest say."""
    now, compute = [0.0], onnxruntime.InferenceSession.run

    def tick(seconds: float) -> float:
        now[0] += seconds
        return now[0]

    def computed(*given: Any) -> Any:
        tick(1e-3)
        return compute(*given)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", computed)
    clock = SimpleNamespace(perf_counter=lambda: tick(1e-4), monotonic=lambda: tick(1e-4))
    monkeypatch.setattr(timings, "time", clock)
    monkeypatch.setattr(timings, "_BATCHES", (1, 2))
    monkeypatch.setattr(timings, "_REPEATS", {1: 3, 2: 2})
    found = {"case": "machine", "findings": {"copy_bytes_per_second": 1e9}}
    (places.out / "summary.json").write_text(
        json.dumps({"steps": [*records_in(places.out), {"step": "machine", "cases": [found]}]})
    )
    answer_of(rtx_answer, "current", places)
    found = answer_of(timings, "d16-active", places)
    for batch, repeats in ((1, 3), (2, 2)):
        figures = found[f"batch_{batch}"]
        assert figures["seconds"]["count"] == repeats and figures["seconds"]["median"] > 0
        assert figures["share_outside_engines"] < 1 and figures["pictures_per_second"]["median"] > 0
    manifest = read_manifest(places.bundle("d16-active-fp16"))
    graphs = len(graph_names(manifest.model))
    assert found["batch_1"]["share_outside_engines"] == pytest.approx(0.1 / (graphs + 0.1))
    read_bytes = sum(manifest.weights.tensors[n].length for g in manifest.graphs.values() for n in g.weights)
    assert found["weights_floor"] == {
        "bytes_read": read_bytes,
        "copy_bytes_per_second": 1e9,
        "seconds": read_bytes / 1e9,
    }
    assert manifest.weights.sha256 is None  # what was prepared stays as it was


def test_a_doubled_engine_draws_the_same_pictures_with_twice_the_runs(places: Places, monkeypatch: pytest.MonkeyPatch):
    """The difference in time is one run of every graph, only if nothing else changes."""
    from actvar.runtime.backends import trt
    from actvar.runtime.sources import open_engines

    bundle = ways.with_plans(places.bundle("mini-fp32"), ways.WAYS["current"], GPU, places.scratch / "doubled")
    counted: list[str] = []
    run = trt.TrtExecutor.run

    def count(executor: trt.TrtExecutor, graph: str, *rest: Any) -> None:
        counted.append(graph)
        run(executor, graph, *rest)

    monkeypatch.setattr(trt.TrtExecutor, "run", count)
    source = open_engines(bundle, 2)
    what = orders(source.model, 2)
    wanted, single = drawn(source, what), len(counted)
    counted.clear()
    twice = drawn(replace(source, engine=doubled.DoubledEngine(source.engine)), what)
    assert same_bytes(twice, wanted) and len(counted) == 2 * single == 2 * len(graph_names(source.model))


def test_official_var_is_skipped_where_no_checkout_was_named(places: Places):
    """Its code is not ours to carry unasked."""
    with pytest.raises(Skipped, match="--official-var"):
        timings.run("d16-official", places, Report(places.out / "answer.json"))


def test_the_summary_compares_what_was_measured_and_nothing_else():
    """Twice the time is half the speed; what has no peer gets no ratio."""

    def figures(seconds: float, rate: float) -> dict[str, Any]:
        spread = {"seconds": {"median": seconds}, "pictures_per_second": {"median": rate}}
        return {"batch_1": {**spread, "share_outside_engines": 0.25}}

    cases = {"d16-dense": figures(0.01, 9.0), "d16-official": figures(0.05, 9.0), "d20-dense": figures(0.02, 9.0)}
    cases["d16-dense"]["weights_floor"] = {"seconds": 0.004}
    lines = list(summary.ratios({("timings", case): found for case, found in cases.items()}))
    assert lines == [
        "d16-dense, batch 1: 10.00 ms, 25.0% of it outside engines; 100.00 pictures a second; 5.00 × official; "
        "2.50 × the time to read the weights",
        "d20-dense, batch 1: 20.00 ms, 25.0% of it outside engines; 50.00 pictures a second",
    ]


def test_the_summary_compares_the_recorded_model_with_official_var_of_the_same_run():
    """And tells what of its time is the GPU's, and what the decoder's."""
    recorded = {
        "seconds": {"median": 0.01},
        "pictures_per_second": {"median": 100.0},
        "gpu_seconds": {"median": 0.008},
        "gpu_seconds_of_steps": [0.001, 0.004, 0.003],
    }
    official = {"seconds": {"median": 0.05}, "pictures_per_second": {"median": 20.0}}
    found = {("torch_times", "d20-static-free"): {"batch_1": recorded}, ("torch_times", "d20-official"): {}}
    found[("torch_times", "d20-official")] = {"batch_1": official}
    assert list(summary.ratios(found)) == [
        "d20-static-free, batch 1: 10.00 ms, by PyTorch, 20.0% of it outside CUDA graphs, 3.00 ms the decoder; "
        "100.00 pictures a second; 5.00 × official"
    ]
