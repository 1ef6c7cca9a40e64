"""A run's curves: a line of JSON for every logged step, and TensorBoard's files where they are asked for.

What a killed run wrote after its last state is taken back when it is resumed: no step stands there twice.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from actvar.errors import ActVARError
from actvar.files import written_whole


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
            self._file.write(json.dumps({"step": step, **values}) + "\n")
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
        """Leave out the steps from `first` on, and a line that broke off."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _step(line) < first]
        if kept != lines:
            with written_whole(self._path) as file:
                file.write("".join(kept).encode())

    def _unwritten(self, error: OSError) -> ActVARError:
        return ActVARError(
            f"{self._path} cannot be written: {error.strerror}. Make room, and run the same command again: it goes on "
            "from its last state."
        )


def _step(line: str) -> float:
    """The step that a line is of; endless for what is no line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
