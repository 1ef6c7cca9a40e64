"""A run of numbered pictures, as the commands that draw many have it: what it is of, drawn here, and its .npz."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import typer

from actvar.classes import ALL, choose_classes
from actvar.cli.options import chosen_precision
from actvar.cli.source import Engine
from actvar.config import ModelConfig, Sampling
from actvar.console import counting, say
from actvar.errors import ActVARError, counted
from actvar.evaluation.picture_run import PIECE, NumberedRun, PictureRun, RunSpec, Shard
from actvar.evaluation.picture_sets import write_npz
from actvar.naming import NamedModel
from actvar.reports import said_if_replaced
from actvar.runtime.pictures import PictureSource
from actvar.runtime.pipeline import GraphSource

Draw = Callable[[Callable[[int], None]], None]
"""Draws what is missing, and tells how many more pictures are there."""


def classes_in_turn(model: ModelConfig, wanted: Sequence[str] | None) -> tuple[int, ...]:
    """The classes that a run goes through, as `RunSpec.class_ids` has them: nothing where they are all.

    Raises:
        UsageError: a text names no class of the model's.
    """
    chosen = tuple(choose_classes(model, wanted or [ALL]))
    return () if chosen == tuple(range(model.num_classes)) else chosen


def source_spec(
    source: PictureSource,
    named: NamedModel,
    engine: Engine,
    count: int,
    seed: int,
    sampling: Sampling,
    class_ids: tuple[int, ...],
) -> RunSpec:
    """What a run is of; weights and precision are those that are really there, whatever the options say."""
    if isinstance(source, GraphSource):
        weights, precision = source.engine.manifest.weights.sha256 or "", source.engine.manifest.precision
    else:
        assert named.checkpoint  # what is no graphs is drawn from one
        weights, precision = named.checkpoint.digest(), chosen_precision(engine.precision, engine.fp16) or "fp32"
    return run_spec(source.model, weights, precision, engine, count, seed, sampling, class_ids)


def run_spec(
    model: ModelConfig,
    weights: str,
    precision: str,
    engine: Engine,
    count: int,
    seed: int,
    sampling: Sampling,
    class_ids: tuple[int, ...],
) -> RunSpec:
    """The same of weights that nobody has opened here."""
    active = model.activation
    guided = "" if model.guided_scales is None else f", {counted(model.guided_scales, 'scale')} guided"
    decoder = ", small decoder" if model.small_decoder else ""
    return RunSpec(
        weights=weights,
        activation=(str(active) if active else "dense") + guided + decoder,
        precision=precision,
        backend=engine.backend,
        device=engine.place,
        classes=model.num_classes,
        side=model.picture_size,
        count=count,
        seed=seed,
        smooth=model.smooth,
        **asdict(sampling),
        class_ids=class_ids,
    )


def draw_run(run: NumberedRun, part: Shard, draw: Draw, with_speed: bool = False) -> None:
    """Draw what is missing, and say how far the run is, however this ends."""
    wanted, missing = (sum(piece.count for piece in of(part)) for of in (run.pieces, run.missing))
    if missing < wanted:
        say(f"{wanted - missing} of {counted(wanted, 'picture')} are in {run.folder} already.")
    drawn, started = 0, time.perf_counter()
    try:
        with counting("Drawing", wanted, wanted - missing) as advance:

            def count(more: int) -> None:
                nonlocal drawn
                drawn += more
                advance(more)

            if missing:
                draw(count)
    finally:
        seconds = time.perf_counter() - started
        if with_speed and drawn:
            speed = drawn / seconds
            say(f"{counted(drawn, 'picture')} drawn in {seconds:.1f} s, {speed:.3f} pictures per second.")
        say(f"{run.kept(part)} of {counted(run.spec.count, 'picture')} are in {run.folder}.")


def write_run_npz(run: PictureRun, path: Path, option: str, quietly: bool, with_labels: bool = False) -> None:
    """Write all pictures of a run as the ADM suite reads them.

    Raises:
        ActVARError: a picture is missing, or the file cannot be written; another can be named by the option.
    """
    labels_N = np.array([run.spec.class_of(i) for i in range(run.spec.count)], np.int64) if with_labels else None
    try:
        with said_if_replaced(path), counting("Writing", run.spec.count) as advance:
            write_npz(path, run.shape, _told(run.batches(PIECE), advance), labels_N)
    except OSError as error:
        raise ActVARError(
            f"{path} cannot be written: {error.strerror or error}. The pictures are kept in {run.folder}: make room or "
            f"name another file with {option}, and give the same command again."
        ) from None
    typer.echo(f"{path}: {counted(run.spec.count, 'picture')}, for guided-diffusion's evaluator.py", err=quietly)


def _told(batches: Iterator[np.ndarray], advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    for batch_NHW3 in batches:
        yield batch_NHW3
        advance(len(batch_NHW3))
