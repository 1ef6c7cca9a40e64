"""A run's state on disk: whole or not at all, and of this run or refused."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from actvar.errors import CheckpointError
from actvar.files import written_whole
from actvar.training.team import Team

_WHEREABOUTS = ("folder", "device", "log_every", "save_every", "tensorboard")


class Stateful(Protocol):
    """A model, an optimiser, an average."""

    def state_dict(self) -> Any:
        """Everything to resume from."""

    def load_state_dict(self, state: Any) -> Any:
        """Go back to that."""


def identity_of(settings: Any, inputs: Mapping[str, str]) -> dict[str, str]:
    """What must be equal for a state to be resumed: all settings but where and how often it is written, and inputs.

    Args:
        settings: a `RunSettings`.
        inputs: what the run is of besides, by name.
    """
    fields = {name: str(value) for name, value in asdict(settings).items() if name not in _WHEREABOUTS}
    return {**fields, **inputs}


@dataclass(frozen=True)
class StateFile:
    """`state.pt` in a run's folder. Every process reads it, the main one writes it."""

    folder: Path
    identity: Mapping[str, str]
    team: Team

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / "state.pt"

    def resume(self, parts: Mapping[str, Stateful]) -> int:
        """Bring the parts back to where they were saved; returns how many steps are done, 0 for a new run.

        Raises:
            CheckpointError: it is of another run, cannot be read, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.team.is_main:
                for remains in self.folder.glob(f".{self.path.name}.*.tmp"):  # of a process that was killed here
                    remains.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be used: {error.strerror}. Name another folder.") from None
        if not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            saved, states, step = state["identity"], state["parts"], state["step"]
        except Exception as error:  # of a broken file, torch.load may raise anything
            raise CheckpointError(f"{self.path} cannot be read ({error}). Remove it to start again.") from error
        self._require_same(saved)
        for name, part in parts.items():
            self.team.load(part, states[name])
        return step

    def save(self, step: int, parts: Mapping[str, Stateful]) -> None:
        """Write the state after so many steps in place of the one before, which stays until the new one is whole.

        Raises:
            CheckpointError: it cannot be written; the one before is still there.
        """
        states = {name: self.team.whole(part.state_dict()) for name, part in parts.items()}
        if self.team.is_main:
            self._write({"step": step, "identity": dict(self.identity), "parts": states})
        self.team.wait()

    def _write(self, state: dict[str, Any]) -> None:
        try:
            with written_whole(self.path) as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of some of the former
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            if not isinstance(cause, OSError):
                raise
            if self.path.exists():
                advice = "The state before it is whole: make room, and the same command goes on from there."
            else:
                advice = "There is no state before it: make room, and run the same command again."
            raise CheckpointError(f"{self.path} cannot be written: {cause.strerror}. {advice}") from None

    def _require_same(self, saved: Mapping[str, str]) -> None:
        if saved == self.identity:
            return
        names = sorted({*saved, *self.identity})
        pairs = {name: (saved.get(name), self.identity.get(name)) for name in names}
        changed = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in pairs.items() if was != now)
        raise CheckpointError(
            f"{self.folder} holds another run ({changed}). Choose another folder, or remove that one."
        )
