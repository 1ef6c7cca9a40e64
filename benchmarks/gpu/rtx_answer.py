"""Step: do plans of an engine run on this GPU, which its list of targets may not name? One case for each way.

An answer is an answer whatever it is: `runs`, and what the library said of each plan. A library that takes its process
down with it is caught by the runner.
"""

import logging
import time
from importlib import import_module
from pathlib import Path

from actvar.benchmarks.gpu.case import Places, Report, the_gpu
from actvar.benchmarks.gpu.drawing import agreement, drawn, orders
from actvar.benchmarks.gpu.steps import ANSWERED
from actvar.benchmarks.gpu.ways import WAYS, built, copy_of, marked_for
from actvar.bundle.manifest import MANIFEST_FILE
from actvar.bundle.plans import PlanManifest, plan_folder, read_plan, read_plans
from actvar.errors import ActVARError
from actvar.runtime.backends.trt_library import EngineLibrary
from actvar.runtime.sources import open_engines, open_graphs

_PICTURES = 2
_SAID_LINES = 60


def run(case: str, places: Places, report: Report) -> None:
    """Try one way."""
    way = WAYS[case]
    gpu, said = the_gpu(), _listen()
    report.add(gpu=gpu.name, capability=gpu.capability, said=said)
    bundle = copy_of(places.bundle(ANSWERED), way, gpu, places.scratch / "ways" / case)
    target = plan_folder(bundle, way.target(gpu))
    before = read_plans(target).plans if (target / MANIFEST_FILE).exists() else {}
    began = time.monotonic()
    try:
        folder, plans = built(bundle, way, gpu)
    except ActVARError as error:
        report.add(runs=False, not_built=str(error))
        return
    report.add(built_for=list(plans.target.gpus), version=plans.target.version)
    report.add(built_before=[graph for graph, spec in plans.plans.items() if before.get(graph) == spec])
    report.add(built_here_seconds=round(time.monotonic() - began, 2))
    if not _all_load(EngineLibrary(way.engine, import_module(way.module)), folder, plans, report):
        report.add(runs=False)
        return
    marked_for(folder, plans, gpu)
    try:
        began = time.monotonic()
        engines = open_engines(bundle, _PICTURES)
        pictures = drawn(engines, orders(engines.model, _PICTURES))
    except ActVARError as error:
        report.add(runs=False, not_drawn=str(error))
        return
    report.add(runs=True, opened_and_drawn_seconds=round(time.monotonic() - began, 2))
    graphs = open_graphs(bundle, _PICTURES, threads=0)
    report.add(tokens_of_onnxruntime=agreement(pictures, drawn(graphs, orders(graphs.model, _PICTURES))))


def _all_load(library: EngineLibrary, folder: Path, plans: PlanManifest, report: Report) -> bool:
    """Whether every plan becomes an engine with a context; what the library says of each is reported."""
    answers: dict[str, str] = {}
    for graph, spec in plans.plans.items():
        try:
            answers[graph] = "is loaded and gets no context"
            library.context_of(library.engine_of(read_plan(folder, spec), graph), graph)
            answers[graph] = "is loaded and gets a context"
        except ActVARError as error:
            answers[graph] = str(error)
            return False
        finally:
            report.add(plans=answers)
    return True


def _listen() -> list[str]:
    """All that the library will say."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(said) < _SAID_LINES:
                said.append(record.getMessage()[:500])

    log = logging.getLogger("actvar.runtime.backends.trt_library")
    log.setLevel(logging.DEBUG)
    log.addHandler(Keep())
    return said
