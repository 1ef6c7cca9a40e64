"""`actvar-trt evaluate`: as many pictures as a figure needs, an .npz for the ADM suite, scores by torch-fidelity."""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from actvar.class_names import CLASS_NAMES
from actvar.classes import class_value
from actvar.cli.drawn_run import classes_in_turn, draw_run, write_run_npz
from actvar.cli.model_choice import Facts, chosen_model
from actvar.cli.options import (
    InTurnOption,
    JsonOption,
    ModelOption,
    PatchNumsOption,
    SeedOption,
    ShardOption,
    VqvaeOption,
    chosen_shard,
    count_option,
    out_option,
    output_option,
)
from actvar.cli.ray_options import OnRay, ready_to_draw
from actvar.cli.source import Engine, Guidance
from actvar.config import ModelConfig
from actvar.console import progress_bar
from actvar.errors import UsageError, needs
from actvar.evaluation.picture_run import WHOLE, RunSpec, Shard, open_run
from actvar.evaluation.score_report import protocol_of, score_run
from actvar.naming import NamedModel
from actvar.reports import STDOUT, check_file_option, check_json_option

if TYPE_CHECKING:
    from actvar.evaluation.judges import Judge
    from actvar.evaluation.reference import Reference

EXAMPLES = """Examples:

actvar-trt evaluate --count 300

actvar-trt evaluate --class none --count 300

actvar-trt evaluate --model var-mini --reference glyphs-held-out --json var-mini.json

actvar-trt evaluate --model bundles/d20-fp16 --backend tensorrt --batch-size 50 --npz d20.npz

actvar-trt evaluate --count 300 --smooth

actvar-trt evaluate --model bundles/d20-fp16 --shard 1/8 --out runs/d20-50k

actvar-trt evaluate --model bundles/d20-fp16 --out runs/d20-50k --reference VIRTUAL_imagenet256_labeled.npz"""

A_CLASS = 50
"""Pictures: 50,000 of the thousand classes of ImageNet, as everybody has it."""
_LEAST = 4  # precision and recall look at a third neighbour

JudgeName: TypeAlias = Literal["glyphs", "inception"]
score_option = partial(typer.Option, rich_help_panel="Scores")


def evaluate(
    *,
    model: ModelOption = "actvar-mini",
    vqvae: VqvaeOption = None,
    patch_nums: PatchNumsOption = None,
    facts: Facts,
    classes: InTurnOption = None,
    count: Annotated[
        int | None,
        count_option(
            "Pictures in all, of the classes in turn.",
            least=_LEAST,
            max=10**6,
            show_default="50 for each of all",
        ),
    ] = None,
    seed: SeedOption = 0,
    guidance: Guidance,
    engine: Engine,
    on_ray: OnRay,
    reference: Annotated[
        str | None,
        score_option(
            metavar="REFERENCE",
            show_default="glyphs-train for Glyphs-100",
            help="What to compare with: a folder of pictures, an .npz of pictures or statistics, glyphs-train or "
            "glyphs-held-out. Without one, pictures of other models are not scored.",
        ),
    ] = None,
    crop_reference: Annotated[
        bool,
        score_option(
            help="Crop a folder's pictures in the middle and resize them to the model's size, as `encode --split val` "
            "does."
        ),
    ] = False,
    reference_count: Annotated[
        int, score_option(min=_LEAST, max=10**6, help="Pictures of glyphs-train or glyphs-held-out.")
    ] = 10_000,
    judge: Annotated[
        JudgeName | None,
        score_option(show_default="glyphs for Glyphs-100", help="Whose features: Inception's make FID."),
    ] = None,
    inception: Annotated[
        Path | None, score_option(metavar="FILE", help="Inception's weights, where they cannot be fetched.")
    ] = None,
    out: Annotated[
        Path | None, out_option("Folder that keeps what is drawn.", show_default="evaluation-MODEL-COUNT")
    ] = None,
    shard: ShardOption = None,
    npz: Annotated[
        Path | None, output_option(metavar="FILE", help="Write all pictures as the ADM suite reads them.")
    ] = None,
    save_statistics: Annotated[
        Path | None, output_option(metavar="FILE", help="Write the reference's statistics, to be a --reference later.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Draw many pictures and say how good they are: Fréchet distance, Inception score, precision and recall.

    What is drawn stays in the folder: the same command goes on where it was stopped, however that was. With --shard it
    draws its part and scores nothing; the same command without it scores them all. The report says which protocol it
    followed, and in what it is unlike that of papers.
    """
    part = chosen_shard(shard) if shard else None
    _refuse_for_a_part(
        part, {"--reference": reference, "--npz": npz, "--save-statistics": save_statistics, "--json": json_file}
    )
    check_file_option(npz, "--npz")
    check_file_option(save_statistics, "--save-statistics")
    check_json_option(json_file)

    def accept(config: ModelConfig) -> None:
        guidance.of(config)
        classes_in_turn(config, classes)

    named = chosen_model(model, vqvae, patch_nums, facts, engine.backend == "tensorrt")
    drawer = ready_to_draw(named, engine, on_ray, accept)
    sampling = guidance.of(drawer.model)
    class_ids = classes_in_turn(drawer.model, classes)
    spec = drawer.spec(count or A_CLASS * drawer.model.num_classes, seed, sampling, class_ids)
    if crop_reference and not reference:
        raise UsageError("--crop-reference belongs to a --reference, and there is none. Give both, or leave it out.")
    looked = None
    if not part:
        looked = _judge_and_reference(drawer.model, judge, inception, reference, reference_count, crop_reference)
    if json_file and not looked:
        raise UsageError("--json writes scores, and without a --reference there are none. Give both, or neither.")
    run = open_run(out or _default_folder(named, drawer.model, spec), spec)
    protocol = protocol_of(run, *looked) if looked else None
    draw_run(run, part or WHOLE, drawer.draw(run, part or WHOLE, sampling))
    if npz:
        write_run_npz(run, npz, "--npz", quietly=json_file == STDOUT)
    if looked and protocol:
        score_run(run, named.name, drawer.model, protocol, *looked, save_statistics, json_file)


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


def _default_folder(named: NamedModel, model: ModelConfig, spec: RunSpec) -> Path:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", named.name)[:60]
    classes = "-".join(str(class_value(model, class_id)) for class_id in spec.class_ids)[:60]
    return Path("-".join(filter(None, ("evaluation", name, classes and f"class-{classes}", str(spec.count)))))


def _judge_and_reference(
    model: ModelConfig,
    judge: JudgeName | None,
    inception: Path | None,
    reference: str | None,
    stream_count: int,
    crop: bool,
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
    return opened, open_reference(reference, stream_count, opened, model.picture_size, crop)
