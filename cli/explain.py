"""`actvar-trt explain`: which tokens the blocks updated for a picture, and which experts these chose."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from actvar.classes import choose_classes, class_label
from actvar.cli.model_choice import Facts, chosen_checkpoint
from actvar.cli.options import (
    CheckpointOption,
    PatchNumsOption,
    SeedOption,
    ThreadsOption,
    VqvaeOption,
    class_option,
    count_option,
    drawing_option,
    out_option,
)
from actvar.cli.output import Destination, destination, make_folder, picture_stem
from actvar.config import ModelConfig
from actvar.console import progress_bar, say
from actvar.errors import UsageError, counted, needs
from actvar.explain.choices import Choices, load
from actvar.explain.figures import chosen_figure, experts_figure, tokens_figure
from actvar.explain.page import page, png
from actvar.explain.plots import batch_figure
from actvar.image import to_bytes
from actvar.plotting import where_possible
from actvar.provenance import typed
from actvar.runtime.pictures import Order

EXAMPLES = """Examples:

actvar-trt explain --class 88

actvar-trt explain --class red-heart --seed 7 --scale 9 --out explained

actvar-trt explain --class goldfish --model actvar_d16.safetensors --count 4"""


def explain(
    *,
    chosen_class: Annotated[
        str, class_option(help="A number, a name, part of a name, or none. See `actvar-trt classes`.")
    ],
    seed: SeedOption = 0,
    number: Annotated[
        int, drawing_option(min=0, max=10**9, help="Which of the seed's pictures of the class, from 0.")
    ] = 0,
    scale: Annotated[
        int | None,
        drawing_option(show_default="the last that leaves something out", help="The scale to look into, from 1."),
    ] = None,
    count: Annotated[
        int, count_option("More pictures in all, spread over the classes: for coverage and load.", max=100_000)
    ] = 16,
    model: CheckpointOption = "actvar-mini",
    vqvae: VqvaeOption = None,
    patch_nums: PatchNumsOption = None,
    facts: Facts,
    threads: ThreadsOption = 0,
    out: Annotated[Path, out_option("Folder for the page and its figures.")] = Path("."),
) -> None:
    """Show which tokens each block updated for a picture, and which experts these chose: PNG, and one HTML page.

    PyTorch draws it, as `generate --backend torch` would.
    """
    name, chosen = chosen_checkpoint(model, vqvae, patch_nums, facts)
    where = _folder(out)
    with needs("train", "to look into a model"):
        from actvar.explain.record import record_choices
        from actvar.runtime.backends import torch_source
    network = torch_source.load(chosen, threads)
    config, sampling = network.config, network.config.sampling
    si = _scale_index(config, scale, Path(model).name)
    class_ids = choose_classes(config, [chosen_class])
    if len(class_ids) > 1:
        raise UsageError(
            f"--class {chosen_class} names {len(class_ids)} classes, and one picture is explained. Name one."
        )
    [class_id] = class_ids

    with progress_bar(f"Drawing {counted(count + 1, 'picture')}") as progress:
        made, choices = record_choices(network, class_id, sampling, si, seed, number)
        others = []
        for i in range(count):
            progress((i + 1) / (count + 1))
            others.append(record_choices(network, i * config.num_classes // count, sampling, si, seed, i)[1])
    title = f"class {class_label(config, class_id)}, seed {seed}, picture {number}"
    figures = _figures(to_bytes(made.pictures_B3HW.cpu().numpy())[0], choices, others, title)
    made_by = typed(["actvar-trt", *sys.argv[1:]])
    html = page(f"What was activated: {title}", figures, choices, others, made_by)
    files = {**{f"-{figure}.png": content for figure, content in figures.items()}, ".html": html.encode()}
    make_folder(where)
    for path, what_was_there in where.write(picture_stem(name, config, Order(class_id, number), seed), files):
        typer.echo(path)
        if what_was_there:
            say(f"{path}{what_was_there}")
    for line in _in_words(choices, others):
        typer.echo(line)


def _figures(picture_HW3: np.ndarray, choices: Choices, others: Sequence[Choices], title: str) -> dict[str, bytes]:
    """PNG files by the names of `page.CAPTIONS`; those that have something to show."""
    figures = {}
    if choices.skips_tokens:
        figures["tokens"] = tokens_figure(picture_HW3, choices, f"Tokens that each block updated: {title}")
    if choices.rests_experts:
        figures["experts"] = experts_figure(picture_HW3, choices, f"The best experts of each token: {title}")
        figures["chosen"] = chosen_figure(choices, f"The tokens of each expert: {title}")
    with where_possible():
        figures["batch"] = batch_figure(others, f"Coverage and load over {counted(len(others), 'picture')}")
    return {name: png(figure) for name, figure in figures.items()}


def _in_words(choices: Choices, others: Sequence[Choices]) -> Iterator[str]:
    if choices.skips_tokens:
        reached = choices.covered_DL[-1].sum()
        yield f"Scale {choices.scale}: some block updated {reached} of {counted(choices.side**2, 'token')}."
    if choices.rests_experts:
        loads_DN = load(others)
        yield f"Over the batch, experts were given {loads_DN.min():.2f} to {loads_DN.max():.2f} times their fair share."


def _folder(out: Path) -> Destination:
    """Where the files go.

    Raises:
        UsageError: it is a file's name.
        ActVARError: the folder cannot be written.
    """
    where = destination(out, 1)
    if where.file:
        raise UsageError(f"--out must be a folder, as there are several files, got {out}.")
    return where


def _scale_index(config: ModelConfig, scale: int | None, name: str) -> int:
    """The scale that is asked for, from 0, or the last that leaves something out.

    Raises:
        UsageError: it leaves nothing out, or none does.
    """
    active = [si for si in range(len(config.schedule)) if config.is_active(si)]
    if not active:
        raise UsageError(
            f"{name} updates every token with all its weights, so there is nothing to explain. "
            "Take an ActVAR, such as --model actvar-mini."
        )
    if scale is None:
        return active[-1]
    if scale - 1 not in active:
        numbers = ", ".join(str(si + 1) for si in active)
        raise UsageError(f"--scale {scale} leaves nothing out in {name}. Take one that does: {numbers}.")
    return scale - 1
