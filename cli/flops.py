"""`actvar-trt flops`: operations of one picture by scale and part, dense and active; or those of the paper's tables."""

from pathlib import Path
from typing import Annotated

import typer

from actvar.cli.build import MAX_DEPTH
from actvar.cli.model_choice import (
    DEFAULT_RATE,
    ActiveScalesOption,
    PatchNumsOption,
    Preset,
    activated,
    chosen_activation,
    with_patch_nums,
)
from actvar.config import PRESETS, ModelConfig
from actvar.errors import UsageError
from actvar.evaluation.flops_report import FlopsReport, PaperReport
from actvar.evaluation.paper_savings import PAPER_ROWS
from actvar.reports import check_json_option, show, write_report

EXAMPLES = """Examples:

actvar-trt flops --depth 20

actvar-trt flops --depth 20 --tokens 0.75,0.75 --experts 0.75 --json flops.json

actvar-trt flops --preset mini --tokens 0.5 --experts 1

actvar-trt flops --paper"""

_DEFAULT_PRESET = "d20"


def flops(
    depth: Annotated[int | None, typer.Option(min=1, max=MAX_DEPTH, show_default="20", help="Of the model.")] = None,
    preset: Annotated[Preset | None, typer.Option(help="A model by its name, in place of a depth.")] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            "--token-rates",
            show_default=str(DEFAULT_RATE),
            help="Share of tokens kept at each active scale, or one for all.",
        ),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts",
            "--expert-rates",
            show_default=str(DEFAULT_RATE),
            help="Share of experts used at each active scale, or one for all.",
        ),
    ] = None,
    expert_count: Annotated[
        int | None, typer.Option(show_default="16", help="Experts that the FFN is cut into.")
    ] = None,
    active_scales: ActiveScalesOption = None,
    patch_nums: PatchNumsOption = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="In place of a model, all rows of the paper's Tables 1, 2, 3 and 6.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the count into this file, too.")] = None,
) -> None:
    """Count the operations of one picture, by scale and part, of an ActVAR and of its dense model.

    Counted from the shapes alone: nothing is loaded and nothing is drawn.
    """
    check_json_option(json_file)
    shaping = (depth, preset, tokens, experts, expert_count, active_scales, patch_nums)
    report: FlopsReport | PaperReport
    if paper:
        if any(option is not None for option in shaping):
            raise UsageError("--paper counts the paper's own models and rates. Leave the other options out.")
        report = PaperReport(PAPER_ROWS)
    else:
        name, dense = _dense(depth, preset)
        dense = with_patch_nums(dense, patch_nums)
        activation = chosen_activation(dense, active_scales, tokens or str(DEFAULT_RATE), experts, expert_count)
        assert activation  # as a rate of tokens was named
        report = FlopsReport(f"ActVAR-{name}", activated(dense, activation))
    show(report.tables())
    if json_file:
        write_report(json_file, report.to_json(), "--json")


def _dense(depth: int | None, preset: str | None) -> tuple[str, ModelConfig]:
    """The name and the VAR that the options name.

    Raises:
        UsageError: they name two.
    """
    if depth and preset:
        raise UsageError("--depth and --preset both name a model. Give one of them.")
    name = preset or (f"d{depth}" if depth else _DEFAULT_PRESET)
    return name, PRESETS[name] if name in PRESETS else ModelConfig(int(name[1:]))
