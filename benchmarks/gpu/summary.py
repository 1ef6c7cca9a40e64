"""What a run of all steps found, in lines for people: what became of each case, and how the times compare."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actvar.benchmarks.gpu.step_runner import line
from actvar.benchmarks.gpu.steps import COMPILED, LATENCY_BATCH, OFFICIAL, OURS, RECORDED, THROUGHPUT_BATCH

Records = Sequence[Mapping[str, Any]]

_OURS = {"timings": OURS, "torch_times": RECORDED}


def summary(records: Records) -> str:
    """The whole text."""
    lines = [line(record["step"], case) for record in records for case in record["cases"]]
    found = {(record["step"], case["case"]): case.get("findings", {}) for record in records for case in record["cases"]}
    answers = [
        f"{way}: {'runs' if answer['runs'] else 'does not run'}"
        for (step, way), answer in found.items()
        if step == "rtx_answer" and "runs" in answer
    ]
    return "\n".join([*lines, *(["", "Plans on this GPU. " + "; ".join(answers)] if answers else []), *ratios(found)])


def ratios(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> Iterator[str]:
    """How many times as fast as official VAR, eager and compiled, we are, where both were measured."""
    peers = {case: figures for (_, case), figures in found.items() if case.endswith((OFFICIAL, COMPILED))}
    for (step, case), figures in found.items():
        preset, _, who = case.partition("-")
        for batch in (LATENCY_BATCH, THROUGHPUT_BATCH):
            ours = figures.get(f"batch_{batch}")
            if who not in _OURS.get(step, ()) or not ours:
                continue
            seconds = ours["seconds"]["median"]
            parts = [f"{case}, batch {batch}: {seconds * 1e3:.2f} ms, {_told(step, ours)}"]
            parts.append(f"{_speed(ours, batch):.2f} pictures a second")
            for peer in (OFFICIAL, COMPILED):
                if theirs := peers.get(f"{preset}-{peer}", {}).get(f"batch_{batch}"):
                    parts.append(f"{_speed(ours, batch) / _speed(theirs, batch):.2f} × {peer}")
            floor = figures.get("weights_floor", {}).get("seconds")
            if floor and batch == LATENCY_BATCH:
                parts.append(f"{seconds / floor:.2f} × the time to read the weights")
            yield "; ".join(parts)


def _told(step: str, ours: Mapping[str, Any]) -> str:
    """Where the time goes."""
    if step == "timings":
        return f"{ours['share_outside_engines']:.1%} of it outside engines"
    outside, decoder = 1 - ours["gpu_seconds"]["median"] / ours["seconds"]["median"], ours["gpu_seconds_of_steps"][-1]
    return f"by PyTorch, {outside:.1%} of it outside CUDA graphs, {decoder * 1e3:.2f} ms the decoder"


def _speed(figures: Mapping[str, Any], batch: int) -> float:
    """Pictures a second: of single batches where latency counts, of several under way where throughput does."""
    if batch == LATENCY_BATCH:
        return batch / float(figures["seconds"]["median"])
    return float(figures["pictures_per_second"]["median"])
