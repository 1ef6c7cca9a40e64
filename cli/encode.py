"""`actvar-trt encode`: a data set's pictures as a VQVAE's tokens, for training."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from actvar.checkpoint.files import shipped_checkpoint
from actvar.cli.model_choice import chosen_schedule
from actvar.cli.options import (
    ShardOption,
    TorchDeviceOption,
    ZnormOption,
    batch_size_option,
    chosen_shard,
    count_option,
    data_option,
    engine_option,
    out_option,
    patch_nums_option,
    precision_option,
    seed_option,
    vqvae_option,
)
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs

if TYPE_CHECKING:
    from actvar.checkpoint.model import StoredVQVAE
    from actvar.data.pictures import PictureSource, SkippedPicture

EXAMPLES = """Examples:

actvar-trt encode --data /data/imagenet --vqvae vae_ch160v4096z32.pth --out tokens/train --device cuda

actvar-trt encode --data /data/imagenet --vqvae vae_ch160v4096z32.pth --out tokens/train --device cuda:1 --shard 1/4

actvar-trt encode --data /data/imagenet --vqvae vae_ch160v4096z32.pth --out tokens/val --split val --count 5000

actvar-trt encode --data glyphs --out tokens/glyphs"""

Split: TypeAlias = Literal["train", "val"]

_GLYPHS = "glyphs"
_GLYPH_COUNT = 24_000
_IMAGENET_CLASSES = 1000
_SHOWN = 20  # skipped pictures that are named; all of them are in the store


def encode(
    *,
    vqvae: Annotated[
        Path | None, vqvae_option("A file that holds the VQVAE.", show_default="for glyphs the package's own")
    ] = None,
    znorm: ZnormOption = False,
    patch_nums: Annotated[
        str | None,
        patch_nums_option(
            "Sides of the token maps, where the file does not tell them.", "the file's, or the ten of 256 pixels"
        ),
    ] = None,
    data: Annotated[
        str,
        data_option(
            metavar="FOLDER|glyphs",
            show_default=False,
            help="Folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or the word glyphs for Glyphs-100.",
        ),
    ],
    split: Annotated[
        Split, data_option(help="Which pictures; train is cropped at random, val in the middle.")
    ] = "train",
    classes: Annotated[
        int | None,
        data_option(min=1, show_default="the file's, or 1000", help="Number of class folders that there must be."),
    ] = None,
    count: Annotated[
        int | None,
        count_option(
            "Pictures in all, spread over all classes.", panel="Data", show_default=f"all; {_GLYPH_COUNT} glyphs"
        ),
    ] = None,
    flips: Annotated[bool, data_option(help="The mirror image of each picture, too, as a second row.")] = False,
    seed: Annotated[int, seed_option("Decides where pictures are cropped.", "Data")] = 0,
    precision: Annotated[
        Literal["fp32", "bf16"], precision_option("Of the encoder; VAR's own training has fp32.")
    ] = "fp32",
    batch_size: Annotated[int, batch_size_option("Pictures that are encoded at a time.")] = 50,
    device: TorchDeviceOption = "cpu",
    workers: Annotated[
        int | None, engine_option(min=1, max=1024, show_default="one a core", help="Threads that decode pictures.")
    ] = None,
    out: Annotated[Path, out_option("Folder of the stored tokens; all shards may share it.", show_default=False)],
    shard: ShardOption = None,
) -> None:
    """Encode a data set's pictures into a VQVAE's tokens, once, for all trainings that follow.

    The same command goes on where it was stopped. A picture that is corrupt is named and skipped.
    """
    is_glyphs = data == _GLYPHS
    shard = shard or "0/1"
    part = chosen_shard(shard)
    if vqvae is None and not is_glyphs:
        raise UsageError("--vqvae is needed to encode a folder. Name a file such as vae_ch160v4096z32.pth.")
    if is_glyphs and (flips or classes):
        given = "--flips" if flips else "--classes"
        raise UsageError(f"{given} is for folders; glyphs are drawn, as many as --count says. Leave it out.")
    schedule = chosen_schedule(patch_nums) if patch_nums else None
    with needs("train", "to encode pictures"):
        from actvar.checkpoint.model import load_vqvae
        from actvar.data.encoding import EncodeSettings, encode_pictures, require_device
    require_device(device)
    stored = load_vqvae(vqvae or shipped_checkpoint("actvar-mini").path, schedule, znorm)
    if is_glyphs:
        pictures = _glyphs(stored, split, count or _GLYPH_COUNT)
    else:
        pictures = _folder(stored, Path(data), split, classes, count, seed, workers or os.cpu_count() or 1)

    settings = EncodeSettings(flips, precision, batch=batch_size, device=device, shard=part)
    mine = sum(len(chunk) for chunk in settings.own_chunks(len(pictures)))
    started = time.perf_counter()
    with progress_bar(f"Encoding to {out}", pieces=mine) as progress:
        done = encode_pictures(out, stored.vqvae, pictures, settings, progress)
    seconds = time.perf_counter() - started
    _name(done.skipped)
    which = f"shard {shard}, {done.pictures} of {len(pictures)}" if part[1] > 1 else f"{done.pictures}"
    typer.echo(f"{out}: {which} pictures of {data}, {len(done.skipped)} skipped")
    if done.new:
        say(f"Encoded {done.new} of them in {seconds:.1f} s, {done.new / seconds:.1f} a second.")


def _glyphs(stored: "StoredVQVAE", split: Split, count: int) -> "PictureSource":
    from actvar.data.glyphs import HELD_OUT_SEED, PICTURE_SIZE, TRAIN_SEED, GlyphPictures

    if stored.picture_size != PICTURE_SIZE:
        raise UsageError(
            f"Glyphs are {PICTURE_SIZE} pixels wide, and this VQVAE reads {stored.picture_size}. Name another --vqvae."
        )
    return GlyphPictures(count, TRAIN_SEED if split == "train" else HELD_OUT_SEED)


def _folder(
    stored: "StoredVQVAE", root: Path, split: Split, classes: int | None, count: int | None, seed: int, workers: int
) -> "PictureSource":
    from actvar.data.imagenet import FolderPictures, list_pictures
    from actvar.data.preprocessing import Preprocessing

    listed = list_pictures(root, split, classes or stored.num_classes or _IMAGENET_CLASSES)
    crop: Literal["random", "center"] = "random" if split == "train" else "center"
    preprocessing = Preprocessing(stored.picture_size, crop, seed)
    return FolderPictures(listed.spread(count) if count else listed, preprocessing, workers)


def _name(skipped: "tuple[SkippedPicture, ...]") -> None:
    for picture in skipped[:_SHOWN]:
        say(f"Skipped {picture.name}: {picture.reason}")
    if len(skipped) > _SHOWN:
        say(f"Skipped {len(skipped) - _SHOWN} more; the .json files of the store name them.")
