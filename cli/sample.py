"""`actvar-trt sample`: pictures by the thousand, in the form in which a data set or a score takes them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, get_args

import typer

from actvar.cli.drawn_run import classes_in_turn, draw_run, write_run_npz
from actvar.cli.model_choice import Facts, chosen_model
from actvar.cli.options import (
    InTurnOption,
    ModelOption,
    PatchNumsOption,
    SeedOption,
    ShardOption,
    VqvaeOption,
    chosen_shard,
    count_option,
    drawing_option,
    out_option,
    output_option,
)
from actvar.cli.ray_options import OnRay, ready_to_draw
from actvar.cli.source import Engine, Guidance
from actvar.config import ModelConfig
from actvar.errors import UsageError, counted
from actvar.evaluation.picture_run import PIECE, WHOLE, RunSpec, begin_run, open_run
from actvar.reports import check_file_option
from actvar.serve.sample_run import Form, SampleRun, SampleSpec, require_form

EXAMPLES = """Examples:

actvar-trt sample --count 1000 --out pictures

actvar-trt sample --model bundles/d20-fp16 --per-class 50 --batch-size 8 --out d20.npz

actvar-trt sample --class none --count 1000 --out without-a-class

actvar-trt sample --count 50000 --format webdataset --shard-size 1000 --out shards

actvar-trt sample --model bundles/d20-fp16 --count 50000 --ray 10.0.0.1:6379 --out d20.npz"""

MOST = 10**6
_FORMS = ", ".join(get_args(Form))


def sample(
    *,
    classes: InTurnOption = None,
    count: Annotated[
        int | None,
        count_option("Pictures in all, of the classes in turn.", max=MOST, show_default="that of --per-class"),
    ] = None,
    per_class: Annotated[int | None, drawing_option(min=1, max=MOST, help="Pictures of each class.")] = None,
    seed: SeedOption = 0,
    guidance: Guidance,
    model: ModelOption = "actvar-mini",
    vqvae: VqvaeOption = None,
    patch_nums: PatchNumsOption = None,
    facts: Facts,
    engine: Engine,
    on_ray: OnRay,
    out: Annotated[
        Path, out_option("Folder, or an .npz as the ADM suite reads it: arr_0 the pictures, arr_1 their classes.")
    ],
    form: Annotated[
        Form | None,
        output_option(
            "--format",
            metavar="FORMAT",
            show_default="png",
            help=f"Of what goes into a folder: {_FORMS}.",
        ),
    ] = None,
    shard_size: Annotated[
        int,
        output_option(
            min=1,
            max=100_000,
            help="Pictures of a shard, which are in memory at a time; a kill costs at most one shard.",
        ),
    ] = PIECE,
    shard: ShardOption = None,
) -> None:
    """Draw thousands of pictures, and keep them in shards that are there whole or not at all.

    The same command goes on where it was stopped, however that was, and what is there is not drawn again. Picture n is
    of class n modulo the classes, or of those that --class names, and it is the one that `generate` numbers n.
    """
    to_npz = out.suffix.lower() == ".npz" and not out.is_dir()
    part = _checked(out, to_npz, form, shard_size, shard)

    def accept(config: ModelConfig) -> None:
        guidance.of(config)
        _count(config, classes, count, per_class)

    named = chosen_model(model, vqvae, patch_nums, facts, engine.backend == "tensorrt")
    drawer = ready_to_draw(named, engine, on_ray, accept)
    sampling = guidance.of(drawer.model)
    class_ids = classes_in_turn(drawer.model, classes)
    spec = drawer.spec(_count(drawer.model, classes, count, per_class), seed, sampling, class_ids)
    if to_npz:
        run = open_run(out.with_name(f"{out.stem}-pieces"), spec)
        draw_run(run, part, drawer.draw(run, part, sampling), with_speed=True)
        if not shard:
            write_run_npz(run, out, "--out", quietly=False, with_labels=True)
    else:
        samples = _sample_run(out, spec, form or "png", shard_size)
        draw_run(samples, part, drawer.draw(samples, part, sampling), with_speed=True)
        if samples.finish():
            typer.echo(str(samples.manifest))


def _checked(out: Path, to_npz: bool, form: Form | None, shard_size: int, shard: str | None) -> tuple[int, int]:
    """The part of the run that is this process's, when the options have been held to each other.

    Raises:
        UsageError: one does not fit the others.
        ActVARError: what a form needs is not installed.
    """
    if to_npz:
        check_file_option(out, "--out")
        if form or shard_size != PIECE:
            option = "--format" if form else "--shard-size"
            raise UsageError(
                f"{option} is of a folder, and --out names the file {out}. Name a folder, or leave it out."
            )
    require_form(form or "png")
    return chosen_shard(shard) if shard else WHOLE


def _count(model: ModelConfig, wanted: list[str] | None, count: int | None, per_class: int | None) -> int:
    """Pictures in all.

    Raises:
        UsageError: neither option says, or they say two things, or there would be too many; or a class is unknown.
    """
    number = len(classes_in_turn(model, wanted)) or model.num_classes
    if per_class is None:
        if count is None:
            raise UsageError("How many pictures? Give --count for all classes together, or --per-class.")
        return count
    total, classes = per_class * number, counted(number, "class", "classes")
    if count not in (None, total):
        raise UsageError(
            f"--per-class {per_class} of {classes} is {total} in all, and --count says {count}. Give one of them."
        )
    if total > MOST:
        raise UsageError(
            f"--per-class {per_class} is {counted(total, 'picture')} in all, more than {MOST}. Give a smaller one."
        )
    return total


def _sample_run(folder: Path, spec: RunSpec, form: Form, shard_size: int) -> SampleRun:
    whole = SampleSpec(**asdict(spec), form=form, shard_size=shard_size)
    begin_run(folder, whole)
    return SampleRun(folder, whole)
