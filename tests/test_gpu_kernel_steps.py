"""The steps of the command for a GPU machine that launch kernels or record the model, over stand-ins.

Part of what `gpu_evidence.py --rehearse` runs. Nothing here says anything about a GPU.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import graphs_on_host
import pytest
import torch
from gpu_on_host import CAPABILITY, NAME
from kernel_library import host_library
from small_models import small_config
from test_kernel_bench import TimedCuda

from actvar.benchmarks.gpu import cache, kernel_runs, launches, timings, torch_times, watched
from actvar.benchmarks.gpu.case import Departure, Places, Report, Skipped
from actvar.benchmarks.gpu.kernel_runs import KernelRuns
from actvar.benchmarks.gpu.steps import RECORDED, STEPS
from actvar.bundle.plans import Gpu
from actvar.config import Activation
from actvar.plugins.kernel_calls import open_kernels
from actvar.recorded.operators import PlainOperators
from actvar.runtime.backends import cuda_memory
from actvar.runtime.backends.cuda_memory import CudaMemory


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Empty folders, a GPU that is not there, and built kernels."""
    monkeypatch.setattr("actvar.benchmarks.gpu.case.first_gpu", lambda: Gpu(NAME, ".".join(map(str, CAPABILITY))))
    for module in (watched, launches):
        monkeypatch.setattr(module, "built_kernels", lambda: Path(host_library()._name))
    return Places(tmp_path, tmp_path, tmp_path)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> TimedCuda:
    """The host in CUDA's place."""
    stand_in = TimedCuda()
    monkeypatch.setattr(cuda_memory, "cudart", stand_in)
    monkeypatch.setattr(cuda_memory.CudaStream, "handle", property(lambda stream: 0))  # what the host's library takes
    return stand_in


def findings(places: Places) -> dict:
    """What the last case has left."""
    return json.loads((places.out / "answer.json").read_bytes())["findings"]


def report(places: Places) -> Report:
    """Of a case."""
    return Report(places.out / "answer.json")


def tool(places: Places, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of this name on the PATH."""
    path = places.scratch / name
    path.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(places.scratch))


# ---- watched


def test_every_run_launches_its_kernels(cuda: TimedCuda, monkeypatch: pytest.MonkeyPatch):
    """All that the tools are to watch, in this process, and the command around them."""
    launched: list[str] = []
    kernels = open_kernels(Path(host_library()._name))
    monkeypatch.setattr(kernel_runs, "open_kernels", lambda: kernels)
    launch = type(kernels).launch
    monkeypatch.setattr(type(kernels), "launch", lambda self, *given: (launched.append(given[0]), launch(self, *given)))
    names = KernelRuns(kernels, memory := CudaMemory(), memory.stream()).named
    monkeypatch.setattr(sys, "argv", ["kernel_runs", *names])
    kernel_runs.main()
    assert {name for names in watched.CHECKED.values() for name in names} == set(names) and len(names) == 10
    functions = ("TokenSelect", "TokenGather", "TokenScatter", "TokenGatherNorm", "TokenScatterGated")
    assert {f"actvar{name}" for name in (*functions, "ExpertRoute", "ExpertOrder", "RoutedFfn")} == set(launched)


def test_the_sanitizer_watches_every_kernel(places: Places, monkeypatch: pytest.MonkeyPatch):
    """Its verdict is in the answer; what it finds, and an end without a verdict, are departures."""
    (step,) = (step for step in STEPS if step.name == "sanitizer")
    assert {case.name for case in step.cases} == watched.CHECKED.keys()
    with pytest.raises(Skipped, match="no compute-sanitizer on the PATH"):
        monkeypatch.setenv("PATH", str(places.scratch))
        watched.sanitizer("memcheck", places, report(places))
    tool(places, "compute-sanitizer", "print(sys.argv[1:]); print('== ERROR SUMMARY: 0 errors')", monkeypatch)
    watched.sanitizer("memcheck", places, report(places))
    found = findings(places)
    assert found["exit_code"] == 0 and "kernel_runs" in found["output"][0] and "'memcheck'" in found["output"][0]
    assert found["runs"] == list(watched.CHECKED["memcheck"])
    tool(places, "compute-sanitizer", "print('== ERROR SUMMARY: 2 errors'); sys.exit(9)", monkeypatch)
    with pytest.raises(Departure, match="racecheck found something: == ERROR SUMMARY: 2 errors"):
        watched.sanitizer("racecheck", places, report(places))
    tool(places, "compute-sanitizer", "sys.exit(1)", monkeypatch)
    with pytest.raises(Departure, match="ended with 1 and no verdict"):
        watched.sanitizer("racecheck", places, report(places))


def test_a_profile_says_what_the_kernels_reach(places: Places, monkeypatch: pytest.MonkeyPatch):
    """As ncu's table has it; where the driver keeps its counters, that is said."""
    rows = [f'print(\'"0","{metric}","%","1{i}.5"\')' for i, metric in enumerate(watched.METRICS.values())]
    header = 'print(\'==PROF== Connected\\n"ID","Metric Name","Metric Unit","Metric Value"\')'
    tool(places, "ncu", "\n".join([header, *rows]), monkeypatch)
    watched.profile("hidden", places, report(places))
    found = findings(places)["shares_of_peak_in_per_cent"]
    assert found == {name: 10.5 + i for i, name in enumerate(watched.METRICS)}
    tool(places, "ncu", "print('==ERROR== ERR_NVGPUCTRPERM'); sys.exit(1)", monkeypatch)
    with pytest.raises(Skipped, match="to the administrator alone"):
        watched.profile("output", places, report(places))
    tool(places, "ncu", "print('no table')", monkeypatch)
    with pytest.raises(Departure, match="gave 0 of 4 figures"):
        watched.profile("output", places, report(places))


# ---- launches


def test_launches_are_timed_one_by_one_and_recorded(places: Places, cuda: TimedCuda, monkeypatch: pytest.MonkeyPatch):
    """Through the runtime's own recording; where that fails there is no figure of a replay."""
    for name, number in (("_KERNELS", 5), ("_REPEATS", 2)):
        monkeypatch.setattr(launches, name, number)
    launches.run("graph", places, report(places))
    found = findings(places)
    assert found["captured"] and found["kernels"] == 5
    assert found["replayed_seconds"] == 1e-3 and found["seconds_a_kernel"] == pytest.approx(2e-4)
    monkeypatch.setattr(cuda_memory.CudaStream, "record", lambda stream, work: None)
    with pytest.raises(Departure, match="not recorded"):
        launches.run("graph", places, report(places))
    assert not findings(places)["captured"] and "replayed_seconds" not in findings(places)


def test_copies_into_the_cache_are_timed_beside_plain_ones(
    places: Places, cuda: TimedCuda, monkeypatch: pytest.MonkeyPatch
):
    """Of every scale, with its bytes: keys and values of all blocks, rows and heads."""
    config = small_config((1, 2, 3))
    monkeypatch.setattr(cache, "PRESETS", {"small": config})
    monkeypatch.setattr(cache, "_BATCHES", (1, 3))
    cache.run("small", places, report(places))
    found = findings(places)
    for batch in (1, 3):
        of_batch = found[f"batch_{batch}"]
        each = config.depth * 2 * 2 * batch * config.heads * 64 * 2
        assert [scale["bytes"] for scale in of_batch["scales"]] == [1 * each, 4 * each, 9 * each]
        assert of_batch["rows_seconds"] == of_batch["plain_seconds"] == pytest.approx(3e-3)


# ---- PyTorch


def test_the_recorded_model_is_timed_in_all_its_forms(places: Places, monkeypatch: pytest.MonkeyPatch):
    """Both batch sizes, the GPU's time of every step, and the decoder's the last."""
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 2.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    monkeypatch.setattr(torch_times, "_reserved", lambda: 0)
    monkeypatch.setattr(torch_times, "_recorder", lambda: graphs_on_host.record)
    monkeypatch.setattr(torch_times, "operators_for", lambda *given: (PlainOperators(), "PyTorch"))
    monkeypatch.setattr(torch_times, "PRESETS", {"d20": small_config((1, 2, 3))})
    forms = {"dense": None, "tokens": Activation(16, (2, 3), (0.75, 0.75), (1.0, 1.0))}
    forms["static"] = Activation(16, (2, 3), (0.75, 0.75), (0.5, 0.5), expert_choice="static")
    assert forms.keys() == torch_times._FORMS.keys()
    monkeypatch.setattr(torch_times, "_FORMS", forms)
    monkeypatch.setattr(torch_times, "_DEVICE", "cpu")
    monkeypatch.setattr(torch_times, "_BATCHES", (1, 2))
    monkeypatch.setattr(torch_times, "_REPEATS", {1: 2, 2: 1})
    (step,) = (step for step in STEPS if step.name == "torch_times")
    cases = [case.name for case in step.cases]
    assert [case for case in cases if case.partition("-")[2] in RECORDED] == [f"d20-{form}" for form in RECORDED]
    for case in ("d20-static", "d20-tokens-free", "d20-dense"):
        torch_times.run(case, places, report(places))
        found = findings(places)
        for batch in (1, 2):
            figures = found[f"batch_{batch}"]
            assert figures["gpu_seconds_of_steps"] == [2e-3] * 5 and figures["gpu_seconds"]["median"] == 1e-2
            assert figures["pictures_per_second"]["count"] == 3 - batch


def test_the_forms_are_those_that_the_paper_and_we_compare():
    """Tokens alone; static experts beside tokens; and each without guidance."""
    model = torch_times.PRESETS["d20"]
    assert torch_times.of_form(model, "dense") == model
    assert torch_times.of_form(model, "tokens").activation.expert_rates == (1.0, 1.0)
    free = torch_times.of_form(model, "static-free")
    assert free.activation.expert_choice == "static" and free.activation.token_rates == (0.75, 0.75)
    assert free.guided_scales == 0


def test_official_var_is_timed_in_the_same_step(places: Places, monkeypatch: pytest.MonkeyPatch):
    """Where its checkout is given."""
    with pytest.raises(Skipped, match="--official-var"):
        torch_times.run("d20-official", places, report(places))
    given = []
    monkeypatch.setattr(torch_times, "official", lambda *what: given.append(what[:2]))
    for who in ("official", "compiled"):
        torch_times.run(f"d20-{who}", places, report(places))
    assert given == [("d20", False), ("d20", True)] and timings.official
