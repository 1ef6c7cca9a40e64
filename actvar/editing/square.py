"""A picture and its mask, from anywhere, as the square that a VQVAE reads.

A picture of the model's own size stays as it is. Others are resized and cut as the VQVAE's training did: the short side
to 1.125 times the square's, then the middle (`actvar.data.preprocessing`). A mask goes the same way.

Knows bytes, Pillow and numpy.

Letters in shapes: H height, W width.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from actvar.data.picture_files import MAX_PIXELS, UnusablePictureError, opened_picture, picture_bytes
from actvar.data.preprocessing import Preprocessing
from actvar.errors import ArgumentError, shown

AnyPicture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"
"""A file, its bytes, Pillow's picture, or numpy's: uint8 [H, W] or [H, W, 3 or 4]."""

_OPAQUE = 255


@dataclass(frozen=True)
class Square:
    """A square picture, uint8 [H, H, 3]; the size that it had before; and what was done to it, in words."""

    pixels_HH3: np.ndarray
    before: tuple[int, int]
    notes: tuple[str, ...]


def square_picture(picture: AnyPicture, size: int, max_pixels: int = MAX_PIXELS) -> Square:
    """Make a picture the square of this side.

    Raises:
        ArgumentError: it is no picture, not whole, or too large.
    """
    with _upright(picture, "picture", max_pixels) as (image, turned):
        notes = ["turned upright, as its EXIF says"] if turned else []
        if has_alpha(image):
            rgba = image.convert("RGBA")
            if not _is_opaque(rgba.getchannel("A")):
                notes.append("laid on white where it is transparent")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        elif image.mode != "RGB":
            notes.append(f"made RGB of {image.mode}")
        rgb, before = image.convert("RGB"), image.size
        if before != (size, size):
            notes.append(f"resized from {before[0]}x{before[1]}, and its middle cut out: {size}x{size}")
        return Square(np.asarray(_fitted(rgb, size, Image.Resampling.LANCZOS)), before, tuple(notes))


def square_mask(mask: AnyPicture, size: int, before: tuple[int, int], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """What of a square is to be drawn anew, fp32 [H, H]: 1 where a mask is transparent or, if it is opaque, white.

    Args:
        mask: a picture, or bools that are true where it is drawn anew.
        size: of the square.
        before: the size of the picture before it was made a square, which the mask must have.
        max_pixels: see `square_picture`.

    Raises:
        ArgumentError: it is no picture, not whole, too large, or of another size.
    """
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = mask.astype(np.uint8) * 255
    with _upright(mask, "mask", max_pixels) as (image, _):
        if image.size != before:
            raise ArgumentError(
                f"The mask has {image.width}x{image.height} pixels, and the picture {before[0]}x{before[1]}. "
                "Make the mask as large as the picture."
            )
        replaced = _replaced(image)
        return np.asarray(_fitted(replaced, size, Image.Resampling.BILINEAR), np.float32) / 255


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture may be transparent somewhere."""
    return "A" in image.getbands() or "transparency" in image.info


def _is_opaque(alpha: Image.Image) -> bool:
    return int(np.asarray(alpha).min(initial=_OPAQUE)) == _OPAQUE


def _replaced(image: Image.Image) -> Image.Image:
    """White where a mask says that it is drawn anew, and black elsewhere; of mode L."""
    if has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        if not _is_opaque(alpha):
            return alpha.point(lambda value: 0 if value > 127 else 255)
    return image.convert("RGB").convert("L").point(lambda value: 255 if value > 127 else 0)


def _fitted(image: Image.Image, size: int, by: Image.Resampling) -> Image.Image:
    return image if image.size == (size, size) else Preprocessing(size, "center").fitted(image, 0, by)


@contextmanager
def _upright(picture: Any, what: str, max_pixels: int) -> Iterator[tuple[Image.Image, bool]]:
    """A picture that is held to be one, upright, and whether it had to be turned.

    Raises:
        ArgumentError: it is none, not whole, or too large; also of what the block finds out of it.
    """
    try:
        with _opened(picture) as image:
            if image.width * image.height > max_pixels:
                raise UnusablePictureError(f"{image.width}x{image.height} pixels are too many")
            if not all(image.size):
                raise UnusablePictureError("it has no pixels")
            upright = ImageOps.exif_transpose(image)
            upright.load()
            yield upright, _is_turned(image)
    except (UnusablePictureError, OSError, ValueError, SyntaxError) as error:
        if isinstance(error, ArgumentError):
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        named = f"{shown(picture, 1000)} " if isinstance(picture, (str, os.PathLike)) else ""
        raise ArgumentError(
            f"The {what} {named}cannot be used: {shown(reason, 200).rstrip('.')}. Give a whole PNG, JPEG or WebP file "
            f"of at most {max_pixels / 1e6:.0f} million pixels."
        ) from None


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(0x0112, 1) in range(2, 9)  # the orientation


@contextmanager
def _opened(picture: Any) -> Iterator[Image.Image]:
    if isinstance(picture, Image.Image):
        yield picture
    elif isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
            raise UnusablePictureError(
                f"an array must be uint8 of [H, W], [H, W, 3] or [H, W, 4], and this is {picture.dtype} of "
                f"{list(picture.shape)}"
            )
        yield Image.fromarray(picture)
    else:
        with opened_picture(picture if isinstance(picture, bytes) else picture_bytes(Path(picture))) as image:
            yield image
