"""`actvar-trt evaluate`: as many pictures as a figure needs, an .npz for the ADM suite, scores by torch-fidelity."""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
import typer

from actvar.class_names import CLASS_NAMES
from actvar.cli.shard_option import chosen_shard
from actvar.cli.source_choice import (
    BackendOption,
    BundleOption,
    CfgOption,
    CheckpointOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    SourceChoice,
    ThreadsOption,
    TopKOption,
    TopPOption,
    VqvaeOption,
    chosen_sampling,
    refuse_large_seed,
)
from actvar.config import ModelConfig, Sampling
from actvar.console import counting, progress_bar, say
from actvar.errors import ActVARError, UsageError, needs
from actvar.evaluation.picture_run import PIECE, WHOLE, PictureRun, RunSpec, Shard, open_run
from actvar.evaluation.picture_sets import write_npz
from actvar.evaluation.score_report import score_run
from actvar.reports import check_file_option
from actvar.runtime.pictures import PictureSource
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.run_drawing import draw_missing

if TYPE_CHECKING:
    from actvar.evaluation.judges import Judge
    from actvar.evaluation.reference import Reference

EXAMPLES = """Examples:

actvar-trt evaluate --count 300

actvar-trt evaluate --model var-mini --reference glyphs-held-out --json var-mini.json

actvar-trt evaluate --bundle bundles/d20-fp16 --backend tensorrt --batch-size 50 --npz d20.npz

actvar-trt evaluate --bundle bundles/d20-fp16 --shard 1/8 --out runs/d20-50k

actvar-trt evaluate --bundle bundles/d20-fp16 --out runs/d20-50k --reference VIRTUAL_imagenet256_labeled.npz"""

A_CLASS = 50
"""Pictures: 50,000 of the thousand classes of ImageNet, as everybody has it."""
_LEAST = 4  # precision and recall look at a third neighbour

JudgeName: TypeAlias = Literal["glyphs", "inception"]


def evaluate(
    count: Annotated[
        int | None,
        typer.Option(min=_LEAST, max=10**6, show_default="50 a class", help="Pictures, of all classes in turn."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(show_default="evaluation-MODEL-COUNT", help="Folder that keeps what is drawn."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Draw the I-th of N parts, from 0, and no more.")
    ] = None,
    npz: Annotated[Path | None, typer.Option(help="Write all pictures as the ADM suite reads them.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            show_default="glyphs-train for Glyphs-100",
            help="What to compare with: a folder of pictures, an .npz of pictures or statistics, "
            "glyphs-train or glyphs-held-out. Without one, pictures of other models are not scored.",
        ),
    ] = None,
    reference_count: Annotated[
        int, typer.Option(min=_LEAST, max=10**6, help="Pictures of glyphs-train or glyphs-held-out.")
    ] = 10_000,
    judge: Annotated[
        JudgeName | None,
        typer.Option(show_default="glyphs for Glyphs-100", help="Whose features: Inception's make FID."),
    ] = None,
    inception: Annotated[Path | None, typer.Option(help="Inception's weights, where they cannot be fetched.")] = None,
    save_statistics: Annotated[
        Path | None, typer.Option(help="Write the reference's statistics, to be a --reference later.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores, and what they are of.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="With a picture's number it decides the picture.")] = 0,
    cfg: CfgOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    model: ModelOption = "actvar-mini",
    checkpoint: CheckpointOption = None,
    vqvae: VqvaeOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = "onnxruntime",
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are drawn at a time.")] = 1,
    threads: ThreadsOption = 0,
) -> None:
    """Draw many pictures and say how good they are: Fréchet distance, Inception score, precision and recall.

    What is drawn stays in the folder: the same command goes on where it was stopped, however that was.
    """
    refuse_large_seed(seed)
    choice = SourceChoice(model, checkpoint, vqvae, bundle, backend, device, precision, batch_size, threads)
    part = chosen_shard(shard) if shard else None
    files = {"--npz": npz, "--save-statistics": save_statistics, "--json": json_file}
    _refuse_for_a_part(part, {"--reference": reference, **files})
    for option, file in files.items():
        check_file_option(file, option)

    def accept(config: ModelConfig) -> None:
        chosen_sampling(config.sampling, cfg, top_k, top_p)

    source = choice.open(accept)
    sampling = chosen_sampling(source.model.sampling, cfg, top_k, top_p)
    spec = _spec(source, choice, count or A_CLASS * source.model.num_classes, seed, sampling)
    looked = None if part else _judge_and_reference(source.model, judge, inception, reference, reference_count)
    run = open_run(out or _default_folder(choice, spec), spec)
    _draw(run, part or WHOLE, source, sampling)
    if npz:
        _write_npz(run, npz)
    if looked:
        score_run(run, choice.name, *looked, save_statistics, json_file)


def _refuse_for_a_part(part: Shard | None, options: dict[str, object]) -> None:
    """Hold what needs all pictures away from a process that draws some of them.

    Raises:
        UsageError: there is such an option.
    """
    given = [name for name, value in options.items() if value]
    if part and given:
        raise UsageError(
            f"{given[0]} needs all pictures, and --shard draws a part. Give it without --shard at the end."
        )


def _spec(source: PictureSource, choice: SourceChoice, count: int, seed: int, sampling: Sampling) -> RunSpec:
    """What the run is of; weights and precision are those that are really there, whatever the options say."""
    if isinstance(source, GraphSource):
        weights, precision = source.engine.manifest.weights.sha256 or "", source.engine.manifest.precision
    else:
        weights, precision = choice.chosen_checkpoint.digest(), "fp32"
    model, active = source.model, source.model.activation
    return RunSpec(
        weights=weights,
        activation=str(active) if active else "dense",
        precision=precision,
        backend=choice.backend,
        device=choice.device or ("cuda" if choice.backend == "tensorrt" else "cpu"),
        classes=model.num_classes,
        side=model.picture_size,
        count=count,
        seed=seed,
        **asdict(sampling),
    )


def _default_folder(choice: SourceChoice, spec: RunSpec) -> Path:
    return Path(f"evaluation-{re.sub(r'[^A-Za-z0-9_-]+', '-', choice.name)[:60]}-{spec.count}")


def _judge_and_reference(
    model: ModelConfig, judge: JudgeName | None, inception: Path | None, reference: str | None, stream_count: int
) -> tuple["Judge", "Reference"] | None:
    """Who looks at the pictures, and what they are held against; opened before hours are spent on drawing.

    Returns:
        None where nothing is asked for that a judge is needed for.

    Raises:
        UsageError: the judge cannot look at these pictures.
        ActVARError: the judge or the reference is not there, or they do not fit.
    """
    glyphs = model.class_names == CLASS_NAMES
    if judge == "glyphs" and not glyphs:
        raise UsageError("--judge glyphs knows Glyphs-100, and this model draws other classes. Leave it out.")
    name = judge or ("glyphs" if glyphs and not inception else "inception")
    reference = reference or ("glyphs-train" if glyphs else None)
    if reference is None:
        return None
    with needs("evaluate", "to score pictures"), progress_bar("Opening the judge") as progress:
        progress(0)
        from actvar.evaluation.judges import glyph_judge, inception_judge
        from actvar.evaluation.reference import open_reference
    opened = glyph_judge() if name == "glyphs" else inception_judge(inception)
    return opened, open_reference(reference, stream_count, opened, model.picture_size)


def _draw(run: PictureRun, part: Shard, source: PictureSource, sampling: Sampling) -> None:
    """Draw what is missing, and say how far the run is, however this ends."""
    wanted, missing = (sum(piece.count for piece in of(part)) for of in (run.pieces, run.missing))
    if missing < wanted:
        say(f"{wanted - missing} of {wanted} pictures are in {run.folder} already.")
    try:
        with counting("Drawing", wanted, wanted - missing) as advance:
            draw_missing(run, part, source, sampling, advance)
    finally:
        say(f"{run.kept} of {run.spec.count} pictures are in {run.folder}.")


def _write_npz(run: PictureRun, path: Path) -> None:
    try:
        with counting("Writing", run.spec.count) as advance:
            write_npz(path, run.shape, _told(run.batches(PIECE), advance))
    except OSError as error:
        raise ActVARError(
            f"{path} cannot be written: {error.strerror or error}. The pictures are kept in {run.folder}: make room or "
            "name another file with --npz, and give the same command again."
        ) from None
    typer.echo(f"{path}: {run.spec.count} pictures, for guided-diffusion's evaluator.py")


def _told(batches: Iterator[np.ndarray], advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    for batch_NHW3 in batches:
        yield batch_NHW3
        advance(len(batch_NHW3))
