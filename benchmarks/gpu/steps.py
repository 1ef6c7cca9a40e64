"""The steps in order of importance, with their cases and the seconds that each case may take. Plain Python."""

from collections.abc import Collection
from dataclasses import replace

from actvar.benchmarks.gpu.step_runner import Case, Step

PRESETS = ("d16", "d20")
DENSE, ACTIVE, OFFICIAL, COMPILED = "dense", "active", "official", "compiled"
OURS = (DENSE, ACTIVE)
LATENCY_BATCH, THROUGHPUT_BATCH = 1, 64

ANSWERED = "mini-fp16"
"""The bundle whose plans are tried in every way."""

_ENGINE, _TORCH = ("cuda.bindings", "onnxruntime"), ("cuda.bindings", "torch")
_COMPARED = (*_ENGINE, "torch", "polygraphy")


def _answer(way: str) -> Case:
    engine = "tensorrt" if way == "tensorrt" else "tensorrt_rtx"
    return Case(way, 120 if way == "current" else 60, (*_ENGINE, engine, "onnx_graphsurgeon"), (ANSWERED,))


def _timing(preset: str, who: str) -> Case:
    return Case(
        f"{preset}-{who}", 180 if who == COMPILED else 120, _TORCH, (f"{preset}-{who}-fp16",) if who in OURS else ()
    )


BUNDLES = Step(
    "bundles",
    tuple(
        Case(name, 900, ("torch", "onnx"))
        for name in ("mini-fp32", ANSWERED, *(f"{preset}-{who}-fp16" for preset in PRESETS for who in OURS))
    ),
    counts=False,
)
STEPS = (
    BUNDLES,
    Step("machine", (Case("machine", 40, gpu=False),)),
    Step("rtx_answer", tuple(_answer(way) for way in ("current", "sm80", "sm89", "default", "tensorrt"))),
    Step(
        "correctness",
        tuple(Case(precision, 90, _COMPARED, (f"mini-{precision}",)) for precision in ("fp32", "fp16")),
    ),
    Step("gpu_tests", (Case("pytest", 120, ("pytest", "torch", "onnxruntime")),), "project:gpu_tests"),
    Step("kernels", (Case("bench", 120, _TORCH),), "project:kernels"),
    Step(
        "timings",
        (
            *(_timing(preset, who) for preset in PRESETS for who in (DENSE, OFFICIAL, ACTIVE)),
            *(_timing(preset, COMPILED) for preset in PRESETS),
        ),
    ),
    Step("ort_cuda", (Case("fp32", 60, _COMPARED, ("mini-fp32",)),), "correctness:cuda_provider"),
)


def chosen(names: Collection[str]) -> tuple[Step, ...]:
    """The steps of these names, all if there are none, after those of the bundles that they need."""
    steps = [step for step in STEPS if step.name in names] or STEPS
    if BUNDLES in steps:
        return tuple(steps)
    needed = {bundle for step in steps for case in step.cases for bundle in case.bundles}
    cases = tuple(case for case in BUNDLES.cases if case.name in needed)
    return (replace(BUNDLES, cases=cases), *steps) if cases else tuple(steps)
