"""Step: what it costs to put a scale's keys and values into the cache, which an engine writes beside it.

Each of their rows of tokens has its place between those of other scales, so a copy is of many short rows: 102,400 of
128 bytes at d20's first scale and 64 pictures. Beside it: one plain copy of as many bytes, which is what is lost at
least, unless the graphs write in place.
"""

from functools import partial
from statistics import median

from actvar.benchmarks.gpu.case import Places, Report
from actvar.benchmarks.gpu.steps import LATENCY_BATCH, THROUGHPUT_BATCH
from actvar.config import HEAD_WIDTH, PRESETS, ModelConfig
from actvar.runtime.backends.cuda_memory import CudaMemory
from actvar.runtime.backends.memory import Rows

_BATCHES = LATENCY_BATCH, THROUGHPUT_BATCH
_REPEATS = 10
_ITEM = 2 * HEAD_WIDTH  # bytes of one token's keys, or values, of one head, in fp16


def run(case: str, places: Places, report: Report) -> None:
    """The copies of every scale, for one picture and for many."""
    memory = CudaMemory()
    for batch in _BATCHES:
        found = _of_batch(memory, PRESETS[case], batch)
        sums = {f"{name}_seconds": sum(each[f"{name}_seconds"] for each in found) for name in ("rows", "plain")}
        report.add(**{f"batch_{batch}": {"scales": found, **sums}})


def _of_batch(memory: CudaMemory, model: ModelConfig, batch: int) -> list[dict[str, float]]:
    """Of every scale the bytes, and the seconds of both copies."""
    stream, tokens = memory.stream(), model.schedule.tokens
    rows = Rows(copied := model.row_groups(0) * batch * model.heads, copied, planes=2 * model.depth)
    pitch, most = sum(tokens) * _ITEM, max(tokens) * _ITEM
    cache, made = (memory.allocate(rows.planes * rows.copied * each) for each in (pitch, most))
    found: list[dict[str, float]] = []
    for start, count in zip(model.schedule.starts, tokens, strict=True):
        width = count * _ITEM
        whole, target = rows.planes * rows.copied * width, cache.address + start * _ITEM
        by_rows = partial(stream.copy_rows, target, pitch, made.address, width, rows)
        plain = partial(stream.copy, cache.address, made.address, whole)
        ways = {"rows_seconds": by_rows, "plain_seconds": plain}
        taken = {name: median(stream.seconds(way) for _ in range(_REPEATS)) for name, way in ways.items()}
        found.append({"bytes": whole, **taken})
    return found
