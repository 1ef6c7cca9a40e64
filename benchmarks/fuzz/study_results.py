"""Finished cells of a study."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from actvar.benchmarks.fuzz.changes import change_file, change_json
from actvar.study.budget import BUDGETS
from actvar.study.figures import Figures
from actvar.study.matrix import CELLS, DENSE, FULL, Cell
from actvar.study.page import page
from actvar.study.plots import drawings
from actvar.study.results import Result, read_results, require_settings, settings_of, write_result

_ROWS = (FULL, "fixed-tokens", "static-experts", "t50-25-e50", "experts-4", DENSE)
_TEACHER = "0" * 64


def _cells() -> list[Cell]:
    return [cell for cell in CELLS if cell.row.name in _ROWS and cell.seed < 2]


def _held_out(kl: float) -> dict[str, Any]:
    agreement = {"share": 0.8, "chance": 0.75}
    return {
        "cross_entropy": 1.5, "kl": kl, "kl_by_scale": [kl / 2] * 10, "block_mse": 0.04, "tokens": agreement,
        "experts": agreement, "load": [0.7, 1.2],
    }  # fmt: skip


def samples(folder: Path) -> list[Path]:
    """Twelve cells in a folder."""
    for number, cell in enumerate(_cells()):
        metrics: dict[str, Any] = {"saved": {"linear": 0.1 + number / 100, "all": 0.23, "printed": 0.05}}
        if cell.row.trained:
            metrics |= {"fresh": _held_out(1.1), "stage1": _held_out(0.6)}
        metrics |= {
            "stage2": {**_held_out(0.3 + number / 100), **({} if cell.row.trained else {"kl": 0.0, "load": None})},
            "drawn": {"class_accuracy": 0.99, "frechet_distance": 0.6 + number / 50, "wrong_pictures": [[3, 5]]},
        }
        seconds = {"held_out": 9.0, "drawing": 13.2, "resumed": 0.0}
        if cell.row.trained:
            seconds |= {"stage1": 13.0, "stage2": 31.0}
        settings = settings_of(cell, BUDGETS["cpu"], _TEACHER)
        made_by = {"commit": "0123abc", "machine": "a machine"}
        write_result(
            folder / "results", Result(cell.name, cell.row.name, cell.seed, settings, metrics, seconds, made_by)
        )
    return [folder / "results"]


def mutate(path: Path, rng: random.Random) -> None:
    """Change one cell."""
    file = rng.choice(sorted(path.iterdir()))
    if rng.random() < 0.7:
        change_json(file, rng)
    else:
        change_file(file, rng)


def read(path: Path) -> None:
    """List what is done, see whether it is of this study, and write the page."""
    found = read_results(path, CELLS)
    for cell in _cells():
        if cell.name in found:
            f"{found[cell.name].metrics['drawn']['frechet_distance']:.3f}"
    plots = drawings(Figures(list(found.values())))
    others = [replace(result) for result in found.values()]
    page(list(found.values()), "actvar-trt study", list(plots), others).encode()
    for cell in _cells():
        if cell.name in found:
            require_settings(found[cell.name], settings_of(cell, BUDGETS["cpu"], _TEACHER), path)
