"""`actvar-trt encode`: a data set's pictures as a VQVAE's tokens, for training."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from actvar.checkpoint.files import shipped_checkpoint
from actvar.cli.model_choice import integers
from actvar.cli.shard_option import chosen_shard
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs
from actvar.scales import ScaleSchedule

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
    data: Annotated[
        str, typer.Option(show_default=False, help="Folder with train/<class>/*.JPEG and val/, or the word glyphs.")
    ],
    out: Annotated[Path, typer.Option(show_default=False, help="Folder of the store; all shards may share it.")],
    vqvae: Annotated[
        Path | None, typer.Option(show_default="for glyphs the package's own", help="A file that holds the VQVAE.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which pictures; train is cropped at random, val in the middle.")] = (
        "train"
    ),
    count: Annotated[
        int | None,
        typer.Option(min=1, show_default=f"all; {_GLYPH_COUNT} glyphs", help="So many, spread over all classes."),
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="The mirror image of each picture, too, as a second row.")] = (
        False
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Decides where pictures are cropped.")] = 0,
    shard: Annotated[str, typer.Option(metavar="I/N", help="The I-th of N parts of the work, from 0.")] = "0/1",
    classes: Annotated[
        int | None, typer.Option(min=1, show_default="the file's, or 1000", help="Class folders that there must be.")
    ] = None,
    patch_nums: Annotated[
        str | None, typer.Option(show_default="the file's, or the ten of 256 pixels", help="Sides of the token maps.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Encode in bfloat16; VAR's own training does it in fp32.")] = (
        False
    ),
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 50,
    device: Annotated[str, typer.Option(help="cpu, cuda, or one of several, such as cuda:1.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, show_default="one a core", help="Threads that decode pictures.")
    ] = None,
) -> None:
    """Encode a data set's pictures into a VQVAE's tokens, once, for all trainings that follow.

    The same command goes on where it was stopped. A picture that is corrupt is named and skipped.
    """
    is_glyphs = data == _GLYPHS
    part = chosen_shard(shard)
    if vqvae is None and not is_glyphs:
        raise UsageError("--vqvae is needed to encode a folder. Name a file such as vae_ch160v4096z32.pth.")
    if is_glyphs and (flips or classes):
        given = "--flips" if flips else "--classes"
        raise UsageError(f"{given} is for folders; glyphs are drawn, as many as --count says. Leave it out.")
    schedule = _schedule(patch_nums)
    with needs("train", "to encode pictures"):
        from actvar.checkpoint.model import load_vqvae
        from actvar.data.encoding import EncodeSettings, encode_pictures, require_device
    require_device(device)
    stored = load_vqvae(vqvae or shipped_checkpoint("actvar-mini").path, schedule)
    if is_glyphs:
        pictures = _glyphs(stored, split, count or _GLYPH_COUNT)
    else:
        pictures = _folder(stored, Path(data), split, classes, count, seed, workers or os.cpu_count() or 1)

    settings = EncodeSettings(flips, "bf16" if bf16 else "fp32", batch=batch, device=device, shard=part)
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


def _schedule(patch_nums: str | None) -> ScaleSchedule | None:
    try:
        return ScaleSchedule(integers("--patch-nums", patch_nums)) if patch_nums else None
    except ValueError as error:
        raise UsageError(f"--patch-nums {patch_nums}: {error}.") from None


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
