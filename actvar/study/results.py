"""Finished cells as files, one small JSON each, which are committed: what is there need not be made again.

A file says by which settings it was made. One that was made by others is refused by name, never mixed in. Plain Python.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actvar.bundle.json_form import FormReader, write_json
from actvar.errors import ActVARError, BundleError
from actvar.study.budget import Budget
from actvar.study.matrix import Cell

FORMAT, VERSION = "actvar-study-cell", 1
RECIPE = 1
"""Goes up with every change of the code that changes what a cell comes to: cells of both must not be mixed."""
_FIELDS = "format version cell row seed settings metrics seconds made_by sha256"
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


def settings_of(cell: Cell, budget: Budget, teacher: str) -> dict[str, Any]:
    """Everything that decides a cell's result.

    Args:
        cell: its row and seed.
        budget: of the study.
        teacher: SHA-256 of its weights.
    """
    row = {name: value for name, value in asdict(cell.row).items() if name != "words"}
    plain = {"recipe": RECIPE, "row": row, "seed": cell.seed, "budget": asdict(budget), "teacher": teacher}
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
    reader = FormReader(file, _ADVICE)
    data = reader.of_format(reader.load(), FORMAT, VERSION)
    values = reader.fields("the cell", data, _FIELDS)
    reader.check_hash(data)
    result = Result(*values[2:-1])
    if file != result_file(file.parent, result.cell):
        raise reader.refuse("cell", repr(file.stem), result.cell)
    return result


def read_results(folder: Path, cells: Iterable[Cell]) -> dict[str, Result]:
    """Those of the cells that are finished, by name."""
    files = {cell.name: result_file(folder, cell.name) for cell in cells}
    return {name: read_result(file) for name, file in files.items() if file.exists()}


def require_settings(result: Result, wanted: Mapping[str, Any], folder: Path) -> None:
    """Make sure that a finished cell is one of this study.

    Raises:
        BundleError: it was made by other settings.
    """
    if result.settings == wanted:
        return
    found, expected = _flat(result.settings), _flat(wanted)
    names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    changed = ", ".join(f"{name} {found.get(name)} -> {expected.get(name)}" for name in names)
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
