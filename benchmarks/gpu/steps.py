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

FORMS = ("dense", "tokens", "static")
RECORDED = (*FORMS, *(f"{form}-free" for form in FORMS))
"""Of the model under CUDA graphs: see `torch_times.py`."""

_ENGINE, _TORCH = ("cuda.bindings", "onnxruntime"), ("cuda.bindings", "torch")
_TIMED = "d20"
"""What is timed under CUDA graphs, with official VAR in the same run."""
_KERNELS = ("cuda.bindings",)
_COMPARED = (*_ENGINE, "torch", "polygraphy")


def _answer(way: str) -> Case:
    engine = "tensorrt" if way == "tensorrt" else "tensorrt_rtx"
    return Case(way, 120 if way == "current" else 60, (*_ENGINE, engine, "onnx_graphsurgeon"), (ANSWERED,))


def _timing(preset: str, who: str) -> Case:
    return Case(
        f"{preset}-{who}", 180 if who == COMPILED else 120, _TORCH, (f"{preset}-{who}-fp16",) if who in OURS else ()
    )


def _new(preset: str, who: str) -> bool:
    """Whether a peer was not timed beside the recorded model."""
    return who in OURS or preset != _TIMED


BUNDLES = Step(
    "bundles",
    tuple(
        Case(name, 900, ("torch", "onnx"))
        for name in ("mini-fp32", ANSWERED, *(f"{preset}-{who}-fp16" for preset in PRESETS for who in OURS))
    ),
    counts=False,
)
STEPS = (
    Step("machine", (Case("machine", 40, gpu=False),)),
    Step("gpu_tests", (Case("pytest", 120, ("pytest", "torch", "onnxruntime")),), "project:gpu_tests"),
    Step("sanitizer", (Case("memcheck", 40, _KERNELS), Case("racecheck", 40, _KERNELS)), "watched:sanitizer"),
    Step("kernels", (Case("bench", 150, _TORCH),), "project:kernels"),
    Step("profile", tuple(Case(kernel, 30, _KERNELS) for kernel in ("hidden", "output")), "watched:profile"),
    Step("launches", (Case("graph", 20, _KERNELS),)),
    Step("cache", (Case(_TIMED, 20, _KERNELS),)),
    Step(
        "torch_times",
        (
            *(Case(f"{_TIMED}-{form}", 40, ("torch",)) for form in FORMS),
            Case(f"{_TIMED}-{OFFICIAL}", 60, ("torch",)),
            *(Case(f"{_TIMED}-{form}-free", 40, ("torch",)) for form in FORMS),
            Case(f"{_TIMED}-{COMPILED}", 150, ("torch",)),
        ),
    ),
    BUNDLES,
    Step("rtx_answer", tuple(_answer(way) for way in ("current", "sm80", "sm89", "default", "tensorrt"))),
    Step(
        "correctness",
        tuple(Case(precision, 90, _COMPARED, (f"mini-{precision}",)) for precision in ("fp32", "fp16")),
    ),
    Step(
        "timings",
        (
            *(_timing(preset, who) for preset in PRESETS for who in (DENSE, OFFICIAL, ACTIVE) if _new(preset, who)),
            *(_timing(preset, COMPILED) for preset in PRESETS if _new(preset, COMPILED)),
        ),
    ),
    Step("ort_cuda", (Case("fp32", 60, _COMPARED, ("mini-fp32",)),), "correctness:cuda_provider"),
)


def chosen(names: Collection[str]) -> tuple[Step, ...]:
    """The steps of these names, all if there are none; before the first that needs bundles, those are made."""
    steps = [step for step in STEPS if step.name in names] or STEPS
    if BUNDLES in steps:
        return tuple(steps)
    needed = {bundle for step in steps for case in step.cases for bundle in case.bundles}
    cases = tuple(case for case in BUNDLES.cases if case.name in needed)
    first = next((i for i, step in enumerate(steps) if any(case.bundles for case in step.cases)), 0)
    return (*steps[:first], *([replace(BUNDLES, cases=cases)] if cases else []), *steps[first:])
