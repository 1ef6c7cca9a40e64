"""`actvar-trt generate`: classes in, PNG files out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from actvar.classes import choose_classes, class_label
from actvar.cli.model_choice import Facts, chosen_model
from actvar.cli.options import (
    ClassesOption,
    GuidanceUntilOption,
    ModelOption,
    PatchNumsOption,
    SeedOption,
    VqvaeOption,
    count_option,
    out_option,
    output_option,
)
from actvar.cli.output import Destination, destination, make_folder, picture_stem, sheet_stem, tallied
from actvar.cli.sheet import sheet
from actvar.cli.source import Engine, Guidance
from actvar.config import ModelConfig
from actvar.console import tell
from actvar.errors import counted
from actvar.image import png
from actvar.runtime.pictures import Order, Picture

EXAMPLES = """Examples:

actvar-trt generate --class 88

actvar-trt generate --class brown-crescent --class 0-9 --count 8 --grid --out sheet.png

actvar-trt generate --class 88 --show-scales

actvar-trt generate --class 88 --smooth

actvar-trt generate --class "golden retriever" --model var_d16.pth --vqvae vae_ch160v4096z32.pth

actvar-trt generate --class all --model bundles/d20-fp16 --backend tensorrt --batch-size 8"""


def generate(
    *,
    classes: ClassesOption,
    count: Annotated[int, count_option("Pictures of each class.")] = 1,
    seed: SeedOption = 0,
    guidance: Guidance,
    model: ModelOption = "actvar-mini",
    vqvae: VqvaeOption = None,
    patch_nums: PatchNumsOption = None,
    facts: Facts,
    guidance_until: GuidanceUntilOption = None,
    engine: Engine,
    out: Annotated[Path, out_option("Folder for the pictures, or a .png file.")] = Path("."),
    grid: Annotated[bool, output_option(help="Put all pictures on one sheet.")] = False,
    show_scales: Annotated[
        bool, output_option(help="Also write a strip of the partial pictures, one for each scale.")
    ] = False,
) -> None:
    """Draw pictures of classes, and say where they are. Each is written as soon as it is drawn.

    The first use of a checkpoint exports it into a cache; later uses take it from there.
    """
    where = destination(out, 1 if grid else count)

    def accept(config: ModelConfig) -> None:
        where.require_room(1 if grid else count * len(choose_classes(config, classes)))
        guidance.of(config)

    named = chosen_model(model, vqvae, patch_nums, facts, engine.backend == "tensorrt")
    name, source = named.name, engine.open(named, accept, guidance_until).source
    class_ids, sampling = choose_classes(source.model, classes), guidance.of(source.model)
    orders = (Order(class_id, number) for class_id in class_ids for number in range(count))
    make_folder(where)
    with tallied(len(class_ids) * count, grid) as counting:
        pictures = counting(source.draw(orders, sampling, seed, show_scales))
        if grid:
            _write_sheet(pictures, where, name, source.model, class_ids, count, show_scales, seed)
        else:
            for picture in pictures:
                _write(picture, where, name, source.model, seed)


def _write(picture: Picture, where: Destination, named: str, model: ModelConfig, seed: int) -> None:
    """Write a picture, and the strip of its scales if it has one: before it, so that no picture is without its own."""
    scales = len(picture.partials)
    strips = {"-scales.png": png(sheet(picture.partials, scales, scales))} if scales else {}
    stem = picture_stem(named, model, picture.order, seed)
    *strip, (path, what_was_there) = where.write(stem, {**strips, ".png": png(picture.pixels_HW3)})
    label = class_label(model, picture.order.class_id)
    tell(f"{path}: class {label}, picture {picture.order.number} of seed {seed}{what_was_there}")
    for path, what_was_there in strip:
        tell(f"{path}: its {counted(scales, 'scale')}{what_was_there}")


def _write_sheet(
    pictures: Iterator[Picture],
    where: Destination,
    named: str,
    model: ModelConfig,
    class_ids: Sequence[int],
    count: int,
    show_scales: bool,
    seed: int,
) -> None:
    """Write all pictures as one: a row for each class, or for each picture's scales."""
    scales = len(model.schedule) if show_scales else 1
    total = len(class_ids) * count
    columns = scales if show_scales else count if len(class_ids) > 1 else None
    panels = (panel for picture in pictures for panel in picture.partials or (picture.pixels_HW3,))
    content = png(sheet(panels, total * scales, columns))
    [(path, what_was_there)] = where.write(sheet_stem(named, model, class_ids, seed), {".png": content})
    labels = ", ".join(class_label(model, class_id) for class_id in class_ids)
    tell(f"{path}: {counted(total, 'picture')} of class {labels}, seed {seed}{what_was_there}")
