"""`actvar-trt edit`: a part of a picture is drawn anew."""

from pathlib import Path
from typing import Annotated

import typer

from actvar.classes import NONE, choose_classes, class_label
from actvar.cli.model_choice import Facts, chosen_model
from actvar.cli.options import (
    ModelOption,
    PatchNumsOption,
    SeedOption,
    VqvaeOption,
    class_option,
    count_option,
    drawing_option,
    out_option,
    output_option,
)
from actvar.cli.output import destination, make_folder, picture_stem, tallied
from actvar.cli.source import Engine, Guidance
from actvar.config import ModelConfig
from actvar.console import say, tell
from actvar.editing.area import Keep, Rectangle, Replace
from actvar.editing.edit import Edit
from actvar.errors import UsageError, shown
from actvar.image import png
from actvar.runtime.pictures import Order

EXAMPLES = """Examples:

actvar-trt edit crescent.png --replace 0.25,0.25,0.75,0.75 --class red-heart

actvar-trt edit crescent.png --replace 0.5,0,1,1 --count 4

actvar-trt edit photo.jpg --keep 0.2,0.2,0.8,0.8 --model var_d36.pth --vqvae vae_ch160v4096z32.pth

actvar-trt edit photo.jpg --mask mask.png --class "golden retriever" --paste --out edited.png"""


def edit(
    *,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A PNG, JPEG or WebP file, of any size.")],
    replaced: Annotated[
        str | None,
        drawing_option("--replace", metavar="X0,Y0,X1,Y1", help="Draw this part anew, in shares of the side."),
    ] = None,
    keep: Annotated[
        str | None, drawing_option("--keep", metavar="X0,Y0,X1,Y1", help="Keep this part, and draw all around it.")
    ] = None,
    mask: Annotated[
        Path | None,
        drawing_option("--mask", metavar="FILE", help="As large as the picture; white or transparent is drawn anew."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        class_option(show_default="none: what is kept decides alone", help="What is drawn, as of `generate`."),
    ] = None,
    count: Annotated[int, count_option("Pictures of each class.")] = 1,
    seed: SeedOption = 0,
    guidance: Guidance,
    model: ModelOption = "actvar-mini",
    vqvae: VqvaeOption = None,
    patch_nums: PatchNumsOption = None,
    facts: Facts,
    engine: Engine,
    out: Annotated[Path, out_option("Folder for the pictures, or a .png file.")] = Path("."),
    paste: Annotated[
        bool, output_option("--paste", help="Put the pixels that are kept back as they were, with a soft seam.")
    ] = False,
) -> None:
    """Draw a part of a picture anew: another class in its place, or what fits to the rest.

    What is kept are the codes of the VQVAE, scale by scale, as official VAR does it. So the pixels there are what the
    VQVAE makes of them, unless --paste puts the picture's own back.
    """
    area, wanted = _area(replaced, keep, mask), classes or [NONE]
    where = destination(out, count)
    prepared: list[Edit] = []

    def accept(config: ModelConfig) -> None:
        where.require_room(count * len(choose_classes(config, wanted)))
        guidance.of(config)
        if not prepared:
            prepared.append(Edit.of(config, picture, area))

    named = chosen_model(model, vqvae, patch_nums, facts, engine.backend == "tensorrt")
    source = engine.open(named, accept).source
    (this,) = prepared
    class_ids, sampling = choose_classes(source.model, wanted), guidance.of(source.model)
    given = this.given(source.encode(this.pixels_HH3))
    if this.notes:
        say(f"{shown(picture, 1000)}: {'; '.join(this.notes)}.")
    orders = (Order(class_id, number, given=given) for class_id in class_ids for number in range(count))
    make_folder(where)
    with tallied(len(class_ids) * count) as counting:
        for drawn in counting(source.draw(orders, sampling, seed)):
            pixels_HW3 = this.pasted(drawn.pixels_HW3) if paste else drawn.pixels_HW3
            stem = picture_stem(picture.stem, source.model, drawn.order, seed)
            [(path, what_was_there)] = where.write(stem, {".png": png(pixels_HW3)})
            label = class_label(source.model, drawn.order.class_id)
            tell(f"{path}: class {label}, picture {drawn.order.number} of seed {seed}{what_was_there}")


def _area(replaced: str | None, keep: str | None, mask: Path | None) -> Rectangle | Path:
    """What is drawn anew.

    Raises:
        UsageError: none of the three is given, or several; or a rectangle is none.
    """
    if replaced is not None and keep is None and mask is None:
        return Replace.parse(replaced)
    if keep is not None and replaced is None and mask is None:
        return Keep.parse(keep)
    if mask is not None and replaced is None and keep is None:
        return mask
    raise UsageError("What is drawn anew is said by one of --replace, --keep and --mask. Give one of them.")
