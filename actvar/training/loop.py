"""The loop that every training shares: steps, a progress bar, curves, and a state that survives a kill.

Knows no model and no loss. What a step does is a function of the step's number alone (data and random numbers are
drawn from generators seeded by seed and step), so a run that was killed and resumed ends as an unbroken one.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actvar.console import say
from actvar.errors import ActVARError, UsageError, counted
from actvar.training.curves import Curves
from actvar.training.state import StateFile, Stateful, identity_of
from actvar.training.team import ALONE, Team

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class RunSettings:
    """What any training needs to know; every training adds its own fields.

    `folder` receives `state.pt` (to resume from), `log.jsonl` (one line every `log_every` steps) and, if it is asked
    for, `tensorboard/`. For `precision` see `autocast`.
    """

    folder: Path
    steps: int
    batch: int
    learning_rate: float
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "auto"
    warmup: int = 100
    log_every: int = 20
    save_every: int = 200
    tensorboard: bool = False

    def is_alike(self, done: int) -> bool:
        """Whether the first so many steps are the same whatever `steps` is: the learning rate rises as it does."""
        return done <= self.warmup

    def fallen(self, progress: float) -> float:
        """Share of the peak's learning rate when this share of the steps after the warm-up is done."""
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


_SEEDS_APART = 0x9E3779B1
"""Odd, and far from a fraction of 2^32: the steps of two runs with different seeds do not meet."""
_STREAMS_APART = 0x85EBCA6B
"""The same of two streams."""


def learning_rate_at(step: int, settings: RunSettings) -> float:
    """Linear warm-up, then as the settings have it: a half cosine down to 2 % of the peak, if nothing else."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * settings.fallen(progress)


def step_generator(settings: RunSettings, step: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one step, the same whether or not the run was interrupted before it.

    A step that needs numbers for something else takes them from another stream. PyTorch's generator on a CPU knows the
    low 32 bits of its seed alone, so those are where the run's seed must be.
    """
    return torch.Generator().manual_seed((settings.seed * _SEEDS_APART + stream * _STREAMS_APART + step) % 2**32)


def autocast(device: str, precision: Precision = "auto") -> torch.autocast:
    """Mixed precision in bfloat16, which needs no loss scaling.

    "auto" leaves it out on a CPU that has no bfloat16. There it would be emulated: a step of stage 1 took five times as
    long as in fp32 (AVX2, two cores).
    """
    enabled = has_bfloat16(device) if precision == "auto" else precision == "bf16"
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 itself."""
    return torch.device(device).type != "cpu" or cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def run(
    title: str,
    step: Callable[[int, float], Mapping[str, float | torch.Tensor]],
    parts: Mapping[str, Stateful],
    settings: RunSettings,
    inputs: Mapping[str, str] | None = None,
    team: Team = ALONE,
) -> None:
    """Call `step(number, learning_rate)` until `settings.steps` are done, resuming where an earlier call was stopped.

    Args:
        title: the progress bar's text.
        step: does one update and returns what to log.
        parts: what is saved and restored, by name.
        settings: the run.
        inputs: what the run is of besides, by name; see `actvar.training.fingerprint`.
        team: the processes that take this step together; the main one alone writes files and shows the bar.

    Raises:
        CheckpointError: the folder's state belongs to a run with other settings or inputs, cannot be read or written.
        ActVARError: the loss is no number any more, or the curves cannot be written.
        UsageError: several processes were started for a training that one does alone.
    """
    if team.size == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{title} is trained by one process. Start it without torchrun and accelerate.")
    inputs = {"training": title, **(inputs or {}), "processes": str(team.size)}
    state = StateFile(settings.folder, identity_of(settings, inputs), team)
    first = state.resume(parts, settings.is_alike)
    if team.is_main and first < settings.steps < settings.warmup:
        say(
            f"{title}: the warm-up of {counted(settings.warmup, 'step')} is longer than the {settings.steps} of the "
            f"run, whose learning rate ends at {learning_rate_at(settings.steps - 1, settings):.2g} and never comes to "
            f"{settings.learning_rate:g}. Take a shorter --warmup, or more steps."
        )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True), disable=not team.is_main) as progress,
        Curves(settings.folder, first, settings.tensorboard, team.is_main) as curves,
    ):
        task = progress.add_task(title, total=settings.steps, completed=first)
        for number in range(first, settings.steps):
            learning_rate = learning_rate_at(number, settings)
            values = step(number, learning_rate)
            last = number + 1 == settings.steps
            if number % settings.log_every == 0 or last:
                shown = {name: round(value, 6) for name, value in team.mean(values).items()}
                curves.write(number, {"learning_rate": round(learning_rate, 8), **shown})
                progress.update(task, description=f"{title}  loss {shown['loss']:.4f}")
                if not math.isfinite(shown["loss"]):
                    raise ActVARError(
                        f"The loss is {shown['loss']} at step {number}. "
                        "Start again in another folder with a lower learning rate (--lr)."
                    )
            if (number + 1) % settings.save_every == 0 or last:
                curves.secure()
                state.save(number + 1, parts)
            progress.advance(task)
