"""`actvar-trt study`: the paper's tables at mini scale, one cell at a time, and the page about them."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from rich.table import Table

from actvar.checkpoint.files import shipped_checkpoint
from actvar.cli.options import (
    TorchDeviceOption,
    batch_size_option,
    count_option,
    model_option,
    output_option,
    training_option,
)
from actvar.console import tell
from actvar.errors import UsageError, counted, needs
from actvar.plotting import where_possible
from actvar.provenance import pasteable
from actvar.reports import show, write_report
from actvar.runtime.machine import this_machine
from actvar.study.budget import BUDGETS, Budget
from actvar.study.figures import Figures
from actvar.study.matrix import ALL_CELLS, CELLS, Cell
from actvar.study.page import page
from actvar.study.plots import drawings
from actvar.study.results import RECIPE, Result, read_results, require_settings, settings_of, write_result
from actvar.study.runner import Plan, run

EXAMPLES = """Examples:

actvar-trt study --preset mini --minutes 90

actvar-trt study --list

actvar-trt study --report

actvar-trt study --budget gpu --device cuda"""

_RESULTS = Path("benchmarks/results")
_BUDGETS = "the budget's"
_steps_option = partial(training_option, min=1, show_default=_BUDGETS)


def study(
    *,
    preset: Annotated[
        Literal["mini"], model_option(help="Which study: mini is of VAR-mini, the teacher, on Glyphs-100.")
    ] = "mini",
    only: Annotated[
        list[str] | None,
        model_option(metavar="ROW|CELL", show_default="all", help="Cells to make and show; may be given often."),
    ] = None,
    rerun: Annotated[
        list[str] | None, model_option(metavar="CELL", help="Make a finished cell anew; may be given often.")
    ] = None,
    budget: Annotated[
        Literal["cpu", "gpu"], training_option(help="How long each cell is trained: for two CPU cores, or for a GPU.")
    ] = "cpu",
    stage1_steps: Annotated[int | None, _steps_option(help="Updates of stage 1.")] = None,
    stage2_steps: Annotated[int | None, _steps_option(help="Updates of stage 2.")] = None,
    batch_size: Annotated[
        int | None, batch_size_option("Pictures an update.", panel="Training", show_default=_BUDGETS)
    ] = None,
    minutes: Annotated[
        float | None,
        training_option(min=0, show_default="no limit", help="Start no cell that would end later than this."),
    ] = None,
    count: Annotated[
        int | None,
        count_option("Pictures in all that each model draws to be judged.", least=100, show_default=_BUDGETS),
    ] = None,
    device: TorchDeviceOption = "cpu",
    results: Annotated[
        Path | None, output_option(show_default="benchmarks/results/study-mini", help="Folder of the finished cells.")
    ] = None,
    work: Annotated[
        Path | None, output_option(show_default="runs/study-mini", help="Folder for tokens and states of trainings.")
    ] = None,
    doc: Annotated[Path, output_option(help="The page to write; its plots go into pictures/ beside it.")] = Path(
        "docs/study.md"
    ),
    list_cells: Annotated[bool, output_option("--list", help="Show the cells and what is done; make nothing.")] = False,
    report: Annotated[bool, output_option(help="Write the page from what is done; make nothing.")] = False,
) -> None:
    """Train and measure the models of the paper's tables at mini scale, and write the page about them.

    Every cell starts from the same teacher with the same budget, and becomes one small file. What is there is not made
    again; what was stopped goes on where it was. The page is written after each cell.
    """
    suffix = preset if budget == "cpu" else f"{preset}-{budget}"
    results, work = results or _RESULTS / f"study-{suffix}", work or Path("runs") / f"study-{suffix}"
    cells = _chosen(only, "--only")
    if list_cells:
        show([_matrix(cells, read_results(results, cells))])
        return
    if not report:
        given = {
            "stage1_steps": stage1_steps,
            "stage2_steps": stage2_steps,
            "batch": batch_size,
            "drawn_pictures": count,
        }
        own = replace(BUDGETS[budget], **{name: value for name, value in given.items() if value is not None})
        again = {cell.name for cell in _chosen(rerun, "--rerun")} if rerun else set()
        _make(cells, own, again, minutes, results, work, doc, device)
    _write_page(results, doc)


def _make(
    cells: Sequence[Cell],
    budget: Budget,
    again: set[str],
    minutes: float | None,
    results: Path,
    work: Path,
    doc: Path,
    device: str,
) -> None:
    """Make what is missing, and the page after each cell."""
    with needs("train", "to train the models of the study"):
        from actvar.data.encoding import require_device
        from actvar.study.cell import run_cell
        from actvar.study.inputs import load_teacher, prepare
    require_device(device)
    shipped = shipped_checkpoint("var-mini")
    teacher, weights = load_teacher(shipped.path, shipped.vqvae)
    done = {name: found for name, found in read_results(results, cells).items() if name not in again}
    is_whole = len(done) == len(cells)
    for cell in cells:
        if found := done.get(cell.name):  # a study that is whole may be of older code: nothing is mixed into it
            recipe = found.settings["recipe"] if is_whole else RECIPE
            require_settings(found, settings_of(cell, budget, weights, recipe), results)
    for name in again:
        shutil.rmtree(work / "cells" / name, ignore_errors=True)
    before = [sum(found.seconds.values()) for found in done.values() if "stage2" in found.seconds]
    plan = Plan(cells, frozenset(done), minutes and minutes * 60, sum(before) / len(before) if before else 0.0)
    if not plan.left:
        tell("All cells are done.")
        return
    inputs = prepare(teacher, budget, work, device)
    made_by = {"commit": _commit(), "machine": _machine(device)}

    def measure(cell: Cell) -> Result:
        folder = work / "cells" / cell.name
        found = run_cell(cell, budget, inputs, folder, device)
        settings = settings_of(cell, budget, weights)
        result = Result(cell.name, cell.row.name, cell.seed, settings, found.metrics, found.seconds, made_by)
        write_result(results, result)
        shutil.rmtree(folder, ignore_errors=True)
        _write_page(results, doc)
        return result

    run(plan, measure, tell)


def page_files(results: Path, doc: Path) -> dict[Path, str]:
    """What `--report` writes: the page, with what studies say that lie beside this one, and the plots beside it."""
    found = list(read_results(results, CELLS).values())
    folders = sorted(results.parent.glob(f"{results.name}-stage2-*"))
    others = [result for folder in folders for result in read_results(folder, CELLS).values()]
    orders = list(read_results(results.parent / f"{results.name}-orders", ALL_CELLS).values())
    plots: dict[str, str] = {}
    with where_possible():
        plots = drawings(Figures(found))
    pictures = {doc.parent / "pictures" / name: text for name, text in plots.items()}
    command = pasteable("study", "--preset", "mini", *_budget_options(results))
    return {doc: page(found, command, list(plots), others, orders), **pictures}


def _write_page(results: Path, doc: Path) -> None:
    """The page and its plots.

    Raises:
        ActVARError: one cannot be written.
    """
    for file, text in page_files(results, doc).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_report(file, text, "--doc")
    tell(f"{doc} is about {len(read_results(results, CELLS))} of {counted(len(CELLS), 'cell')}.")


def _budget_options(results: Path) -> list[str]:
    return ["--budget", "gpu", "--device", "cuda"] if results.name.endswith("-gpu") else []


def _chosen(names: Sequence[str] | None, option: str) -> list[Cell]:
    """The cells that are named, or those of the rows; without names all of the study itself.

    Raises:
        UsageError: a name is neither a row's nor a cell's.
    """
    if not names:
        return list(CELLS)
    known = {name for cell in ALL_CELLS for name in (cell.name, cell.row.name)}
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name} is no row and no cell of the study. See `actvar-trt study --list`.")
    return [cell for cell in ALL_CELLS if cell.name in names or cell.row.name in names]


def _matrix(cells: Sequence[Cell], done: dict[str, Result]) -> Table:
    """The cells in the order in which they are made."""
    made = sum(cell.name in done for cell in cells)
    table = Table(
        "cell", "what it is", "Fréchet distance", "minutes", title=f"{made} of {counted(len(cells), 'cell')} are done"
    )
    for cell in cells:
        found = done.get(cell.name)
        distance = f"{found.metrics['drawn']['frechet_distance']:.3f}" if found else "–"
        table.add_row(cell.name, cell.row.words, distance, f"{sum(found.seconds.values()) / 60:.1f}" if found else "–")
    return table


def _machine(device: str) -> str:
    """What the cells are made on, in words."""
    machine = this_machine()
    return f"{machine.cpu}, {counted(machine.cores, 'core')}" if device == "cpu" else machine.gpu or device


def _commit() -> str:
    """Of the checkout that the command runs in, with a sign where files were changed; "unknown" outside of one."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()
