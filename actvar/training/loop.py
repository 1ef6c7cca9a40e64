"""The loop that every training shares: steps, a progress bar, a log, and a state that survives a kill.

Knows no model and no loss. What a step does is a function of the step's number alone (data and random numbers are
drawn from generators seeded by seed and step), so a run that was killed and resumed ends as an unbroken one.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actvar.errors import ActVARError, CheckpointError


@dataclass(frozen=True)
class RunSettings:
    """What any training needs to know; every training adds its own fields.

    `folder` receives `state.pt` (to resume from) and `log.jsonl` (one line every `log_every` steps).
    """

    folder: Path
    steps: int
    batch: int
    learning_rate: float
    seed: int = 0
    device: str = "cpu"
    warmup: int = 100
    log_every: int = 20
    save_every: int = 200


class Stateful(Protocol):
    """A model or an optimiser."""

    def state_dict(self) -> Any:
        """Everything to resume from."""

    def load_state_dict(self, state: Any) -> Any:
        """Go back to that."""


def learning_rate_at(step: int, settings: RunSettings) -> float:
    """Linear warm-up, then a half cosine down to 2 % of the peak at the last step."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def step_generator(settings: RunSettings, step: int) -> torch.Generator:
    """The random numbers of one step, the same whether or not the run was interrupted before it."""
    return torch.Generator().manual_seed((settings.seed << 32) + step)


def autocast(device: str) -> torch.autocast:
    """Mixed precision in bfloat16, which needs no loss scaling; fp32 on a CPU that has no bfloat16.

    There it would be emulated: a step of stage 1 took five times as long as in fp32 (AVX2, two cores).
    """
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=has_bfloat16(device))


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
) -> None:
    """Call `step(number, learning_rate)` until `settings.steps` are done, resuming where an earlier call was stopped.

    Args:
        title: the progress bar's text.
        step: does one update and returns what to log.
        parts: what is saved and restored, by name.
        settings: the run; a folder that holds another run's state is refused.

    Raises:
        CheckpointError: the folder's state belongs to a run with other settings, or cannot be read.
    """
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    state_file, log_file = folder / "state.pt", folder / "log.jsonl"
    identity = _identity(settings)
    first = _resume(state_file, identity, parts) if state_file.exists() else 0

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, open(log_file, "a", encoding="utf-8") as log:
        task = progress.add_task(title, total=settings.steps, completed=first)
        for number in range(first, settings.steps):
            learning_rate = learning_rate_at(number, settings)
            values = step(number, learning_rate)
            last = number + 1 == settings.steps
            if number % settings.log_every == 0 or last:
                shown = {name: round(float(torch.as_tensor(value).detach()), 6) for name, value in values.items()}
                log.write(json.dumps({"step": number, "learning_rate": round(learning_rate, 8), **shown}) + "\n")
                log.flush()
                progress.update(task, description=f"{title}  loss {shown['loss']:.4f}")
                if not math.isfinite(shown["loss"]):
                    raise ActVARError(
                        f"The loss is {shown['loss']} at step {number}. Resume with a lower --learning-rate."
                    )
            if (number + 1) % settings.save_every == 0 or last:
                _save(state_file, number + 1, identity, parts)
            progress.advance(task)


def _identity(settings: RunSettings) -> dict[str, Any]:
    """What must be equal for a state to be resumed: everything but where and how often it is written."""
    fields = {name: str(value) for name, value in asdict(settings).items()}
    return {name: fields[name] for name in fields if name not in ("folder", "device", "log_every", "save_every")}


def _resume(state_file: Path, identity: dict[str, Any], parts: Mapping[str, Stateful]) -> int:
    try:
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        saved = state["identity"]
    except Exception as error:
        raise CheckpointError(f"{state_file} cannot be read ({error}). Remove it to start again.") from error
    if saved != identity:
        other = {name: (saved.get(name), identity.get(name)) for name in {*saved, *identity}}
        changed = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in sorted(other.items()) if a != b)
        raise CheckpointError(
            f"{state_file.parent} holds another run ({changed}). Choose another folder, or remove that one."
        )
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    return state["step"]


def _save(state_file: Path, step: int, identity: dict[str, Any], parts: Mapping[str, Stateful]) -> None:
    temporary = state_file.with_suffix(".tmp")
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, "identity": identity, "parts": states}, temporary)
    os.replace(temporary, state_file)
