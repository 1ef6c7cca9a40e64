"""A run's curves: a line of JSON for every logged step, and TensorBoard's files where they are asked for.

A value that is no number, such as a loss that has run away, is null. What a killed run wrote after its last state is
taken back when it is resumed: no step stands there twice.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO

from actvar.bundle.json_form import parse_json
from actvar.console import say
from actvar.errors import ActVARError
from actvar.files import opened, written_whole

_LONGEST = 1 << 16  # bytes of a line; what is longer is none of ours


def require_tensorboard() -> Any:
    """TensorBoard's writer.

    Raises:
        ActVARError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ActVARError(
            f"The package {error.name} is needed to write curves for TensorBoard, and is not installed. "
            "Install it with: pip install 'actvar-trt[train]'"
        ) from None
    return SummaryWriter


class Curves:
    """`log.jsonl` and `tensorboard/` in a run's folder.

    Args:
        folder: of the run, which is there.
        first: the step that the run goes on with.
        tensorboard: also write for TensorBoard.
        writes: False for a process that leaves it to another.
    """

    def __init__(self, folder: Path, first: int, tensorboard: bool, writes: bool = True):
        self._path = folder / "log.jsonl"
        self._file: TextIO | None = None
        self._board: Any = None
        if not writes:
            return
        board = require_tensorboard() if tensorboard else None
        try:
            self._take_back(first)
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
            # TensorBoard itself forgets what earlier files say of the steps from purge_step on.
            self._board = board and board(str(folder / "tensorboard"), purge_step=first or None)
        except OSError as error:
            raise self._unwritten(error) from None

    def __enter__(self) -> "Curves":
        """For `with`."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close what is open."""
        if self._file:
            with suppress(OSError):  # what could not be written is still waiting, and was told
                self._file.close()
        if self._board:
            self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One step's values.

        Raises:
            ActVARError: they cannot be written.
        """
        if self._file is None:
            return
        try:
            plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._file.write(json.dumps({"step": step, **plain}) + "\n")
            self._file.flush()
            if self._board:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            raise self._unwritten(error) from None

    def secure(self) -> None:
        """See to it that what was written is on the disk: a state must not be newer than its curves."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise self._unwritten(error) from None
        if self._board:
            self._board.flush()

    def _take_back(self, first: int) -> None:
        """Leave out the steps from `first` on, a line that broke off, and what is no line of ours."""
        if not os.path.lexists(self._path):
            return
        with opened(self._path, "Remove it: only curves are in it.") as file:
            kinds = [_is_kept(line, first) for line in _lines(file)]
            if all(kinds):
                return
            file.seek(0)
            with written_whole(self._path) as kept:
                kept.writelines(line for line, is_kept in zip(_lines(file), kinds, strict=True) if is_kept)
        if odd := sum(is_kept is None for is_kept in kinds[:-1]):
            say(f"{self._path}: {odd} lines that are none of a run's were left out.")

    def _unwritten(self, error: OSError) -> ActVARError:
        return ActVARError(
            f"{self._path} cannot be written: {error.strerror}. Make room, and run the same command again: it goes on "
            "from its last state."
        )


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, those that are far too long in pieces."""
    while line := file.readline(_LONGEST):
        yield line


def _is_kept(line: bytes, first: int) -> bool | None:
    """Whether a line is of a step before `first`; None for what is no line of a step."""
    try:
        step = parse_json(line)["step"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return step < first if type(step) is int and step >= 0 and line.endswith(b"\n") else None
