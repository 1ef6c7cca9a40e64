"""Step: PyTorch under CUDA graphs, beside official VAR in the same run. A case is a depth and who draws: d20-tokens.

`dense` is the VAR; `tokens` leaves tokens out at the last two scales, `static` experts, too, the same for all tokens;
`-free` is the same model guidance-free. All weights are random. Times are the host's, from classes to pixels in its
memory; those of the GPU alone are of the recorded steps, by its own clock, the decoder's apart.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from actvar.benchmarks.gpu.case import Places, Report, the_gpu
from actvar.benchmarks.gpu.steps import COMPILED, LATENCY_BATCH, OFFICIAL, THROUGHPUT_BATCH
from actvar.benchmarks.gpu.timings import official, seconds_of, spread
from actvar.config import PRESETS, STATIC, Activation, ModelConfig
from actvar.drawers import ToDraw
from actvar.models.actvar import ActVAR, without_values
from actvar.plugins.torch.choice import operators_for
from actvar.recorded.model import RecordedModel
from actvar.recorded.recorders import CudaGraphs, Recorder
from actvar.recorded.weights import Precision

_FORMS: dict[str, Activation | None] = {
    "dense": None,
    "tokens": Activation(expert_rates=(1.0, 1.0)),
    "static": Activation(expert_choice=STATIC),
}
_REPEATS = {LATENCY_BATCH: 20, THROUGHPUT_BATCH: 3}
_BATCHES = (LATENCY_BATCH, THROUGHPUT_BATCH)
_PRECISION: Precision = "fp16"
_DEVICE = "cuda"


def run(case: str, places: Places, report: Report) -> None:
    """Time one of them."""
    preset, who = case.split("-", 1)
    if who in (OFFICIAL, COMPILED):
        official(preset, who == COMPILED, places, report)
        return
    config = of_form(PRESETS[preset], who)
    began = time.perf_counter()
    network = _random_network(config)
    operators, name = operators_for(config, the_gpu().capability)
    drawer = RecordedModel(network, _PRECISION, _DEVICE, operators, _recorder(), max(_BATCHES))
    del network
    report.add(
        torch=torch.__version__, precision=_PRECISION, operators=name, opened_seconds=time.perf_counter() - began
    )
    for batch in _BATCHES:
        report.add(**{f"batch_{batch}": _timed(drawer, batch)})


def of_form(model: ModelConfig, who: str) -> ModelConfig:
    """A preset as `dense`, `tokens` or `static`, maybe guidance-free."""
    form, _, free = who.partition("-")
    return replace(model, activation=_FORMS[form], guided_scales=0 if free else None)


def _timed(drawer: RecordedModel, batch: int) -> dict[str, Any]:
    """One batch at a time: by the host's clock, and of that the GPU's time at the recorded steps."""
    wanted = [ToDraw(number * drawer.config.num_classes // batch, 0, number) for number in range(batch)]
    began = time.perf_counter()

    def draw() -> None:
        drawer.draw(wanted, drawer.config.sampling)

    draw()
    recorded = time.perf_counter() - began
    seconds = seconds_of(draw, 2, _REPEATS[batch])
    steps = drawer.steps_of(batch)
    on_gpu = [_on_gpu(steps) for _ in range(_REPEATS[batch])]
    parts = [list(each) for each in zip(*on_gpu, strict=True)]
    return {
        "seconds": spread(seconds),
        "pictures_per_second": spread([batch / each for each in seconds]),
        "seconds_with_recording": recorded,
        "gpu_seconds": spread([sum(each) for each in on_gpu]),
        "gpu_seconds_of_steps": [spread(each)["median"] for each in parts],
        "device_bytes": _reserved(),
    }


def _on_gpu(steps: tuple[Callable[[], None], ...]) -> list[float]:
    """Seconds of each step, one after another."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
    marks[0].record()
    for step, mark in zip(steps, marks[1:], strict=True):
        step()
        mark.record()
    marks[-1].synchronize()
    return [one.elapsed_time(other) / 1e3 for one, other in pairwise(marks)]


def _reserved() -> int:
    """Bytes of the GPU's memory that PyTorch has taken."""
    return torch.cuda.max_memory_reserved()


def _recorder() -> Recorder:
    return CudaGraphs()


@torch.no_grad()
def _random_network(config: ModelConfig) -> ActVAR:
    """Made on the GPU: values of the size that a trained model's have."""
    with without_values():
        network = ActVAR(config)
    network = network.to_empty(device=_DEVICE).eval().requires_grad_(False)
    generator = torch.Generator(_DEVICE).manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(float("norm" in name and name.endswith("weight")))
    return network
