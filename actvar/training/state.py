"""A run's state on disk: whole or not at all, as it was written, and of this run or refused.

`state.pt` is what `torch.save` writes, and behind it a line with the SHA-256 of all that: PyTorch itself compares no
checksum, and a changed weight would be trained on.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast

import torch

from actvar.checkpoint.torch_file import measure_archive
from actvar.errors import BundleError, CheckpointError, counted, shown
from actvar.files import opened, written_whole
from actvar.training.state_form import require_form
from actvar.training.team import Team

_SEAL_BEGINS = b"\nsha256 "
_SEAL = len(_SEAL_BEGINS) + 64 + len("\n")
_BLOCK = 1 << 20
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

    def resume(self, parts: Mapping[str, Stateful], alike: Callable[[int], bool] = lambda done: False) -> int:
        """Bring the parts back to where they were saved; returns how many steps are done, 0 for a new run.

        Args:
            parts: by name.
            alike: whether the first so many steps are the same in a run of any length; then that may have changed.

        Raises:
            CheckpointError: it is of another run, was changed, cannot be read, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(self.path):
                return 0
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be used: {error.strerror}. Name another folder.") from None
        try:
            with opened(self.path, "Remove it to start again.") as file:
                size = _require_seal(file)
                with mmap(file.fileno(), size, access=ACCESS_READ) as data:
                    measure_archive(data)
                state = torch.load(file, map_location="cpu", weights_only=True)
            saved, states, step = state["identity"], state["parts"], state["step"]
            if type(step) is not int or step < 0 or not all(type(x) is str for pair in saved.items() for x in pair):
                raise ValueError("it does not say of which run it is, or how far that is")
        except BundleError as error:
            raise CheckpointError(str(error)) from None
        except Exception as error:  # of a broken file, torch.load may raise anything
            raise self._unusable(error) from None
        self._require_same(saved, step, alike)
        try:
            for name, part in parts.items():
                require_form(states[name], part, name)
            for name, part in parts.items():
                self.team.load(part, states[name])
        except Exception as error:  # and so may whoever is given what was in it
            raise self._unusable(error) from None
        return step

    def _unusable(self, error: Exception) -> CheckpointError:
        reason = shown((str(error).splitlines() or [""])[0].strip(" .")) or type(error).__name__
        return CheckpointError(f"{self.path} cannot be read ({reason}). Remove it to start again.")

    def save(self, step: int, parts: Mapping[str, Stateful]) -> None:
        """Write the state after so many steps in place of the one before, which stays until the new one is whole.

        Raises:
            CheckpointError: it cannot be written; the one before is still there.
        """
        states = {name: self.team.whole(part.state_dict()) for name, part in parts.items()}
        if self.team.is_main:
            self._write(_with_texts_shared({"step": step, "identity": dict(self.identity), "parts": states}))
        self.team.wait()

    def _write(self, state: dict[str, Any]) -> None:
        try:
            with written_whole(self.path) as file:
                sealing = _Sealing(file)
                torch.save(state, cast(IO[bytes], sealing))
                file.write(sealing.seal)
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

    def _require_same(self, saved: Mapping[str, str], done: int, alike: Callable[[int], bool]) -> None:
        names = sorted({*saved, *self.identity})
        pairs = {name: (saved.get(name), self.identity.get(name)) for name in names}
        changed = {shown(name): (shown(was), shown(now)) for name, (was, now) in pairs.items() if was != now}
        if changed.keys() == {"steps"}:
            self._require_length(*changed["steps"], done, alike(done))
        elif changed:
            said = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in changed.items())
            raise CheckpointError(
                f"{self.folder} holds another run ({said}). Choose another folder, or remove that one."
            )
        elif done > int(self.identity["steps"]):
            raise self._unusable(
                ValueError(f"it is of step {done}, and the run has {counted(int(self.identity['steps']), 'step')}")
            )

    def _require_length(self, was: str, now: str, done: int, alike: bool) -> None:
        """A run whose length was changed is gone on with while it is still what one of the new length would be."""
        if alike and done <= int(now):
            return
        so_far = f"{counted(done, 'step')} {'is' if done == 1 else 'are'} done"
        raise CheckpointError(
            f"{self.folder} holds another run (steps {was} -> {now}): {so_far}, and after the warm-up the learning "
            f"rate falls so as to end at the last of {was}. Ask for as many as before, or train a longer one, from the "
            "start or from what this one leaves, in another folder."
        )


class _Sealing:
    """Writes into a file, and knows the line that then belongs at its end."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """For `torch.save`, which writes from the first byte to the last."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """For `torch.save`."""
        self._file.flush()

    @property
    def seal(self) -> bytes:
        """Of all that was written."""
        return _seal(self._digest)


def _seal(digest: "hashlib._Hash") -> bytes:
    return _SEAL_BEGINS + f"{digest.hexdigest()}\n".encode()


def _require_seal(file: BinaryIO) -> int:
    """Hold a file to the hash at its end, and go back to its beginning; returns the bytes before the hash.

    Raises:
        ValueError: it is another's, or there is none.
    """
    size = os.fstat(file.fileno()).st_size - _SEAL
    file.seek(max(size, 0))
    found = file.read(_SEAL)
    if size < 0 or not found.startswith(_SEAL_BEGINS):  # looked at first: a hole of a terabyte takes an hour to hash
        raise ValueError("it does not end with its SHA-256: it was cut short, or is of an earlier version")
    file.seek(0)
    left, digest = size, hashlib.sha256()
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        digest.update(block)
        left -= len(block)
    if found != _seal(digest):
        raise ValueError("it was changed since it was written: its SHA-256 is another")
    file.seek(0)
    return size


def _with_texts_shared(state: Any) -> Any:
    """The same state, with one object for equal texts.

    A pickle holds an object once, and refers to it from then on. A name that was read from a state is not the object
    that the code names: without this a run that was stopped would end with other bytes than one that was not.
    """
    if isinstance(state, dict):
        shared = copy(state)  # of its own type, with what a network's state notes beside its tensors
        shared.clear()
        shared.update((_with_texts_shared(name), _with_texts_shared(value)) for name, value in state.items())
        return shared
    if isinstance(state, (list, tuple)):
        return type(state)(map(_with_texts_shared, state))
    return sys.intern(state) if type(state) is str else state
