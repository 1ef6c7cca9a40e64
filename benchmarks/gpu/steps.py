"""The steps in order of importance, with their cases and the seconds that each case may take. Plain Python."""

from actvar.benchmarks.gpu.step_runner import Case, Step

PRESETS = ("d16", "d20")
DENSE, ACTIVE, OFFICIAL, COMPILED = "dense", "active", "official", "compiled"
OURS = (DENSE, ACTIVE)
LATENCY_BATCH, THROUGHPUT_BATCH = 1, 64

ANSWERED = "mini-fp16"
"""The bundle whose plans are tried in every way."""

_ENGINE, _TORCH = ("cuda.bindings", "onnxruntime"), ("cuda.bindings", "torch")


def _answer(way: str) -> Case:
    engine = "tensorrt" if way == "tensorrt" else "tensorrt_rtx"
    return Case(way, 120 if way == "current" else 60, (*_ENGINE, engine, "onnx_graphsurgeon"), (ANSWERED,))


def _timing(preset: str, who: str) -> Case:
    return Case(
        f"{preset}-{who}", 180 if who == COMPILED else 120, _TORCH, (f"{preset}-{who}-fp16",) if who in OURS else ()
    )


STEPS = (
    Step("machine", (Case("machine", 40, gpu=False),)),
    Step("rtx_answer", tuple(_answer(way) for way in ("current", "sm80", "sm89", "default", "tensorrt"))),
    Step(
        "correctness",
        tuple(
            Case(precision, 90, (*_ENGINE, "torch", "polygraphy"), (f"mini-{precision}",))
            for precision in ("fp32", "fp16")
        ),
    ),
    Step("gpu_tests", (Case("pytest", 120, ("pytest", "torch", "onnxruntime")),)),
    Step("kernels", (Case("bench", 120, _TORCH),)),
    Step(
        "timings",
        (
            *(_timing(preset, who) for preset in PRESETS for who in (DENSE, OFFICIAL, ACTIVE)),
            *(_timing(preset, COMPILED) for preset in PRESETS),
        ),
    ),
    Step("ort_cuda", (Case("fp32", 60, _ENGINE, ("mini-fp32",)),)),
)
