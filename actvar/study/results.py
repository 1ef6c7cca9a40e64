"""Finished cells as files, one small JSON each, which are committed: what is there need not be made again.

A file says by which settings it was made. One that was made by others is refused by name, never mixed in. A file may
come from anywhere, so all that tables and plots take from it is held to its form first. Plain Python.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from actvar.bundle.json_form import FormReader, write_json
from actvar.distill.label_choice import LEARNED
from actvar.errors import ActVARError, BundleError, shown
from actvar.study.budget import Budget
from actvar.study.matrix import Cell

FORMAT, VERSION = "actvar-study-cell", 1
ONE_ORDER, RECIPE = 1, 2
"""Goes up with every change of the code that changes what a cell comes to: cells of both must not be mixed. By the
first, all seeds saw the training pictures in one order."""
_FIELDS = "format version cell row seed settings metrics seconds made_by sha256"
_HELD_OUT = "cross_entropy kl kl_by_scale block_mse tokens experts load"
_SECONDS = ("stage1", "stage2", "held_out", "drawing", "resumed")
_MAX_SEED, _MAX_SCALES, _MAX_WRONG = 1 << 31, 64, 1000
_LEAST, _MOST = 1e-12, 1e9  # of a metric that is not 0: the ratio of two is still a number
_ROUNDING = 1e-6  # of a share
_CHANGES = 8  # of the settings that are named
_ADVICE = "Take it from git again, or remove it to have the cell made anew."


@dataclass(frozen=True)
class Result:
    """What is known of a finished cell.

    Attributes:
        cell: its name.
        row: its row's name.
        seed: its seed.
        settings: all that decides the metrics, as plain JSON; see `settings_of`.
        metrics: by name; see `actvar.study.cell`.
        seconds: wall time by part; `resumed` is 1 where a part was begun by an earlier process and counts less.
        made_by: commit, machine and versions.
    """

    cell: str
    row: str
    seed: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    seconds: Mapping[str, float]
    made_by: Mapping[str, str]


def settings_of(cell: Cell, budget: Budget, teacher: str, recipe: int = RECIPE) -> dict[str, Any]:
    """Everything that decides a cell's result.

    Args:
        cell: its row and seed.
        budget: of the study.
        teacher: SHA-256 of its weights.
        recipe: that of the code; of a finished cell its own.
    """
    row = {name: value for name, value in asdict(cell.row).items() if name != "words"}
    if cell.row.expert_order == LEARNED:
        del row["expert_order"]  # as it was when there was no other
    plain = {"recipe": recipe, "row": row, "seed": cell.seed, "budget": asdict(budget), "teacher": teacher}
    return json.loads(json.dumps(plain))  # tuples as lists, as a file gives them back


def result_file(folder: Path, name: str) -> Path:
    """Where a cell of this name is written."""
    return folder / f"{name}.json"


def write_result(folder: Path, result: Result) -> None:
    """Write a finished cell, whole or not at all.

    Raises:
        ActVARError: it cannot be written.
    """
    file = result_file(folder, result.cell)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"format": FORMAT, "version": VERSION, **asdict(result)})
    except OSError as error:
        raise ActVARError(f"{file} cannot be written: {error.strerror}. Name another folder with --results.") from None


def read_result(file: Path) -> Result:
    """Read a finished cell.

    Raises:
        BundleError: it is unreadable, edited, or of another form.
    """
    return _ResultReader(file, _ADVICE).result()


class _ResultReader(FormReader):
    """Holds a cell's file to its form."""

    def result(self) -> Result:
        """The whole file."""
        data = self.of_format(self.load(), FORMAT, VERSION)
        values = self.fields("the cell", data, _FIELDS)
        self.check_hash(data)
        result = Result(*values[2:-1])
        self.one_of("cell", result.cell, (self.path.name.removesuffix(".json"),))
        self.one_of("cell", result.cell, (f"{self.text('row', result.row)}-seed{self.seed(result.seed)}",))
        self.settings(result.settings)
        self.metrics(result.metrics)
        for name, seconds in self.object("seconds", result.seconds, len(_SECONDS)).items():
            self.one_of("a name in seconds", name, _SECONDS)
            self.number(f"seconds.{name}", seconds, 0, _MOST)
        if "resumed" not in result.seconds:
            raise self.refuse("seconds", "an object with the field 'resumed'", result.seconds)
        for name, words in zip(
            ("commit", "machine"), self.fields("made_by", result.made_by, "commit machine"), strict=True
        ):
            self.text(f"made_by.{name}", words)
        return result

    def seed(self, value: Any) -> int:
        return self.integer("seed", value, 0, _MAX_SEED)

    def settings(self, data: Any) -> None:
        """The budget is shown; the rest is compared."""
        recipe, row, seed, budget, _ = self.fields("settings", data, "recipe row seed budget teacher")
        self.integer("settings.recipe", recipe, 0, _MAX_SEED)
        self.seed(seed)
        self.object("settings.row", row, 16)
        names = " ".join(each.name for each in fields(Budget))
        for name, value in zip(names.split(), self.fields("settings.budget", budget, names), strict=True):
            self.number(f"settings.budget.{name}", value, 0, _MOST)
        self.integer("settings.budget.stage2_steps", budget["stage2_steps"], 0, _MAX_SEED)

    def metrics(self, data: Any) -> None:
        """What every cell has, and what only those have that were trained."""
        self.object("metrics", data, 5)
        known = ("saved", "fresh", "stage1", "stage2", "drawn")
        for name in data:
            self.one_of("a name in metrics", name, known)
        for name in ("saved", "stage2", "drawn"):
            if name not in data:
                raise self.refuse("metrics", f"an object with the field {name!r}", sorted(data))
        for name, share in zip(
            ("linear", "all", "printed"), self.fields("saved", data["saved"], "linear all printed"), strict=True
        ):
            self.number(f"metrics.saved.{name}", share, -1, 1)
        for stage in known[1:4]:
            if stage in data:
                self.held_out(f"metrics.{stage}", data[stage])
        accuracy, distance, wrong = self.fields(
            "drawn", data["drawn"], "class_accuracy frechet_distance wrong_pictures"
        )
        self.number("metrics.drawn.class_accuracy", accuracy, 0, 1 + _ROUNDING)
        self.metric("metrics.drawn.frechet_distance", distance)
        for pair in self.items("metrics.drawn.wrong_pictures", wrong, 0, _MAX_WRONG):
            for number in self.items("metrics.drawn.wrong_pictures", pair, 2, 2):
                self.integer("metrics.drawn.wrong_pictures", number, 0, _MAX_SEED)

    def held_out(self, where: str, data: Any) -> None:
        """What `HeldOut` has."""
        entropy, kl, kl_by_scale, mse, tokens, experts, load = self.fields(where, data, _HELD_OUT)
        for name, value in (("cross_entropy", entropy), ("kl", kl), ("block_mse", mse)):
            self.metric(f"{where}.{name}", value)
        for value in self.items(f"{where}.kl_by_scale", kl_by_scale, 1, _MAX_SCALES):
            self.metric(f"{where}.kl_by_scale", value)
        for name, agreement in (("tokens", tokens), ("experts", experts)):
            if agreement is not None:
                for share in self.fields(f"{where}.{name}", agreement, "share chance"):
                    self.number(f"{where}.{name}", share, 0, 1 + _ROUNDING)
        if load is not None:
            for value in self.items(f"{where}.load", load, 2, 2):
                self.number(f"{where}.load", value, 0, _MOST)

    def metric(self, where: str, value: Any) -> None:
        """A figure of which ratios are taken. Rounding may leave one below 0."""
        if self.number(where, value, -_MOST, _MOST) and abs(value) < _LEAST:
            raise self.refuse(where, f"0, or at least {_LEAST:g}", value)


def read_results(folder: Path, cells: Iterable[Cell]) -> dict[str, Result]:
    """Those of the cells that are finished, by name."""
    files = {cell.name: result_file(folder, cell.name) for cell in cells}
    return {name: read_result(file) for name, file in files.items() if os.path.lexists(file)}


def require_settings(result: Result, wanted: Mapping[str, Any], folder: Path) -> None:
    """Make sure that a finished cell is one of this study.

    Raises:
        BundleError: it was made by other settings.
    """
    if result.settings == wanted:
        return
    found, expected = _flat(result.settings), _flat(wanted)
    names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    changed = ", ".join(
        f"{shown(name, 60)} {shown(str(found.get(name)), 60)} -> {expected.get(name)}" for name in names[:_CHANGES]
    )
    raise BundleError(
        f"{result_file(folder, result.cell)} was made by other settings ({changed}). "
        f"Make it anew with --rerun {result.cell}, or name another folder with --results."
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested objects by their path."""
    if not isinstance(value, Mapping):
        return {name: value}
    pairs = (_flat(item, f"{name}.{key}" if name else key) for key, item in value.items())
    return {path: leaf for pair in pairs for path, leaf in pair.items()}
