"""One cell: a student is made of the teacher by both stages, measured on held-out pictures, and draws its own.

Stopped at any time, it goes on from the trainings' own states when it is called again.

Letters in shapes: N pictures, F features.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actvar.data.glyphs import balanced_classes
from actvar.distill.stages import StageSettings, student_of, train_stage1, train_stage2
from actvar.evaluation.draws import generated_pictures
from actvar.evaluation.frechet import FeatureStatistics, frechet_distance
from actvar.evaluation.glyph_report import judge
from actvar.evaluation.paper_savings import savings
from actvar.models.actvar import ActVAR, empty_model
from actvar.models.var import VAR
from actvar.study.budget import Budget
from actvar.study.held_out import HeldOut, measure
from actvar.study.inputs import Inputs
from actvar.study.matrix import Cell

_DRAWN_AT_ONCE = 50
_SAVE_EVERY = 20  # steps that a kill may cost
_WRONG_SHOWN = 20


@dataclass(frozen=True)
class Measured:
    """Metrics and seconds as `actvar.study.results.Result` holds them.

    The metrics are `saved` (share of the transformer's operations, three counts), `fresh`, `stage1` and `stage2`
    (`HeldOut` of the student before, between and after the stages), and `drawn` (the judge of its pictures).
    """

    metrics: dict[str, Any]
    seconds: dict[str, float]


class _Clock:
    """Wall time by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)


def run_cell(cell: Cell, budget: Budget, inputs: Inputs, folder: Path, device: str = "cpu") -> Measured:
    """Train, measure and draw.

    Args:
        cell: the row and its seed.
        budget: how long.
        inputs: the same for all cells.
        folder: for the states of the trainings.
        device: where to work.
    """
    config = cell.row.model(inputs.teacher.config)
    clock, metrics = _Clock(), {"saved": asdict(savings(config))}
    resumed = folder.exists()
    student = inputs.teacher.var
    if cell.row.trained:
        student = student_of(inputs.teacher.var, config, cell.seed)
        student = _distil(student.to(device), cell, budget, inputs, folder, device, clock, metrics)
    with clock.part("held_out"):
        metrics["stage2"] = _held_out(student, cell, inputs)
    with clock.part("drawing"):
        metrics["drawn"] = _judge(student, cell.seed, budget, inputs)
    return Measured(metrics, {**clock.seconds, "resumed": float(resumed)})


def _distil(
    student: VAR,
    cell: Cell,
    budget: Budget,
    inputs: Inputs,
    folder: Path,
    device: str,
    clock: _Clock,
    metrics: dict[str, Any],
) -> VAR:
    """Both stages; the first is left out where nothing is chosen."""
    teacher, quantizer = inputs.teacher.var, inputs.teacher.vqvae.quantize

    def settings(name: str, steps: int, learning_rate: float) -> StageSettings:
        return StageSettings(
            folder=folder / name,
            steps=steps,
            batch=budget.batch,
            learning_rate=learning_rate,
            warmup=budget.warmup,
            seed=cell.seed,
            device=device,
            save_every=_SAVE_EVERY,
            labels=cell.row.labels,
            alpha=cell.row.alpha,
            expert_order=cell.row.expert_order,
            precision="fp32",  # whatever the machine has: cells of several must be alike
        )

    with clock.part("held_out"):
        metrics["fresh"] = _held_out(student, cell, inputs)
    if any(student.config.is_active(si) for si in range(len(student.config.schedule))):
        with clock.part("stage1"):
            first = settings("stage1", budget.stage1_steps, budget.stage1_rate)
            student = train_stage1(teacher, student, first, inputs.store, quantizer)
        with clock.part("held_out"):
            metrics["stage1"] = _held_out(student, cell, inputs)
    with clock.part("stage2"):
        second = settings("stage2", budget.stage2_steps, budget.stage2_rate)
        return train_stage2(teacher, student, second, inputs.store, quantizer)


def _held_out(student: VAR, cell: Cell, inputs: Inputs) -> dict[str, Any]:
    teacher, labels = inputs.teacher, cell.row.labels
    found: HeldOut = measure(student.eval(), teacher.var, teacher.vqvae.quantize, inputs.held_out, labels)
    return asdict(found)


def _judge(student: VAR, seed: int, budget: Budget, inputs: Inputs) -> dict[str, Any]:
    """Pictures of this seed, the same random numbers for all rows, and what the judge says of them."""
    model: ActVAR = empty_model(student.config)
    model.var, model.vqvae = student, inputs.teacher.vqvae
    draw = generated_pictures(model, model.config.sampling, seed)
    named_N, features_NF = judge(inputs.classifier, draw, budget.drawn_pictures, _DRAWN_AT_ONCE)
    wrong_N = np.flatnonzero(named_N != balanced_classes(np.arange(len(named_N))))
    return {
        "class_accuracy": 1 - len(wrong_N) / len(named_N),
        "frechet_distance": frechet_distance(FeatureStatistics.of(features_NF), inputs.reference),
        "wrong_pictures": [[int(number), int(named_N[number])] for number in wrong_N[:_WRONG_SHOWN]],
    }
