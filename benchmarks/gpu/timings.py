"""Step: how fast, beside official VAR in the same run. A case is a depth and who draws: d16-dense, d16-official, ...

All times are the host's, from classes to pictures in its memory: one batch at a time for latency, several under way for
throughput. All weights are random. Ratios are the result (`summary.py`); times of another run are of another machine.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from actvar.benchmarks.gpu.case import Places, Report, Skipped, the_gpu
from actvar.benchmarks.gpu.doubled import DoubledEngine
from actvar.benchmarks.gpu.drawing import SEED, orders
from actvar.benchmarks.gpu.steps import COMPILED, LATENCY_BATCH, OURS, THROUGHPUT_BATCH
from actvar.bundle.manifest import Manifest
from actvar.config import PRESETS
from actvar.errors import ActVARError
from actvar.runtime.pipeline import GraphSource

_BATCHES = (LATENCY_BATCH, THROUGHPUT_BATCH)
_REPEATS = {LATENCY_BATCH: 30, THROUGHPUT_BATCH: 5}
_STREAMED_BATCHES, _STREAMS = 4, 3
_GRAPHS_UNTIL_RECORDED = 2  # chains of one lane before it replays


def run(case: str, places: Places, report: Report) -> None:
    """Time one of them."""
    preset, who = case.split("-")
    if who in OURS:
        _engines(preset, who, places, report)
    else:
        official(preset, who == COMPILED, places, report)


# ---- ours


def _engines(preset: str, who: str, places: Places, report: Report) -> None:
    from actvar.benchmarks.gpu.ways import way_that_ran, with_plans
    from actvar.export.binder import bind_random
    from actvar.runtime.sources import open_engines

    gpu, way = the_gpu(), way_that_ran(places)
    began = time.monotonic()
    bundle = with_plans(places.bundle(f"{preset}-{who}-fp16"), way, gpu, places.scratch / "timings")
    plans_built = time.monotonic()
    manifest = bind_random(bundle)
    report.add(engine=way.engine, built_for=list(way.target(gpu).gpus), jobs=os.cpu_count())
    report.add(built_seconds=round(plans_built - began, 2), bound_seconds=round(time.monotonic() - plans_built, 2))
    before = _taken_bytes()
    engines = open_engines(bundle, THROUGHPUT_BATCH)
    report.add(device_bytes={"before": before, "opened": _taken_bytes() - before})
    for batch in _BATCHES:
        figures = _timed(replace(engines, batch_size=batch), batch)
        report.add(**{f"batch_{batch}": {**figures, "device_bytes": _taken_bytes() - before}})
    report.add(weights_floor=_weights_floor(manifest, places))


def _taken_bytes() -> int:
    """Bytes of the GPU's memory that are not free; CUDA's own share is among them from the first call on."""
    from cuda.bindings import runtime as cudart

    error, free, total = cudart.cudaMemGetInfo()
    if error != cudart.cudaError_t.cudaSuccess:
        raise ActVARError(f"CUDA does not say how much memory is free: {error}.")
    return int(total - free)


def _timed(engines: GraphSource, batch: int) -> dict[str, Any]:
    """One batch at a time; with every graph doubled, for the share outside; then several under way."""
    what = orders(engines.model, batch)
    sampling, lanes = engines.model.sampling, engines.engine.lanes

    def draw_with(source: GraphSource, batches: int) -> Callable[[], None]:
        def draw() -> None:
            for _ in source.draw(what * batches, sampling, SEED):
                pass

        return draw

    warm = lanes * (_GRAPHS_UNTIL_RECORDED + 1)
    single = seconds_of(draw_with(engines, 1), warm, _REPEATS[batch])
    doubled = seconds_of(draw_with(replace(engines, engine=DoubledEngine(engines.engine)), 1), warm, _REPEATS[batch])
    inside = float(np.median(doubled) - np.median(single))
    streamed = seconds_of(draw_with(engines, _STREAMED_BATCHES), 1, _STREAMS)
    return {
        "seconds": spread(single),
        "seconds_inside_engines": inside,
        "share_outside_engines": 1 - inside / float(np.median(single)),
        "pictures_per_second": spread([batch * _STREAMED_BATCHES / seconds for seconds in streamed]),
    }


def _weights_floor(manifest: Manifest, places: Places) -> dict[str, Any]:
    """The time in which a copy on this GPU would read the weights as often as the graphs of one chain do."""
    stored = manifest.weights.tensors
    read = sum(stored[name].length for graph in manifest.graphs.values() for name in graph.weights)
    speed = places.findings("machine").get("machine", {}).get("copy_bytes_per_second")
    return {"bytes_read": read, "copy_bytes_per_second": speed, "seconds": read / speed if speed else None}


# ---- official VAR


def official(preset: str, compiled: bool, places: Places, report: Report) -> None:
    """VAR's own code in fp16, as it is or through torch.compile.

    Raises:
        Skipped: no checkout of it was named.
    """
    if places.official_var is None:
        raise Skipped("No checkout of official VAR was named (--official-var).")
    import torch

    from actvar.benchmarks.pictures.peers import Where, open_official

    where = Where(os.cpu_count() or 1, "cuda", "fp16")
    peer = open_official(places.official_var, PRESETS[preset], compiled, where)
    report.add(torch=torch.__version__, compiled=compiled, attention=_attention())
    for batch in _BATCHES:
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        seconds = seconds_of(_draws_of(peer, batch), 3, _REPEATS[batch] // (3 if batch == LATENCY_BATCH else 1))
        report.add(
            **{
                f"batch_{batch}": {
                    "seconds": spread(seconds),
                    "seconds_with_warm_up": time.perf_counter() - began,
                    "pictures_per_second": spread([batch / each for each in seconds]),
                    "device_bytes": torch.cuda.max_memory_reserved(),
                }
            }
        )


def _attention() -> dict[str, bool]:
    """Which of the fast kernels that VAR's code looks for it has found."""
    import sys

    names = ("flash_attn_func", "memory_efficient_attention", "dropout_add_layer_norm", "fused_mlp_func")
    return {name: getattr(sys.modules["models.basic_var"], name, None) is not None for name in names}


def _draws_of(peer: Any, batch: int) -> Callable[[], None]:
    numbers = iter(range(0, 1 << 40, batch))

    def draw() -> None:
        peer.draw(next(numbers), batch, looked_into=False)

    return draw


# ---- figures


def seconds_of(draw: Callable[[], None], warm: int, repeats: int) -> list[float]:
    """Of each of the repeats, after some that do not count."""
    for _ in range(warm):
        draw()
    return list(_laps(draw, repeats))


def _laps(draw: Callable[[], None], repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        began = time.perf_counter()
        draw()
        yield time.perf_counter() - began


def spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles and extremes."""
    low, lower, median, upper, high = (float(value) for value in np.percentile(values, (0, 25, 50, 75, 100)))
    return {"median": median, "quartiles": [lower, upper], "extremes": [low, high], "count": len(values)}
