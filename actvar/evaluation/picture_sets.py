"""Sets of pictures as files: the .npz that the ADM suite reads, and folders of pictures. Read and written in batches.

Knows files and pixels; not what the pictures show, and not how they are judged. Plain numpy: no PyTorch.

Letters in shapes: N pictures, H W pixels down and across, 3 red green blue.
"""

import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from actvar.data.npy import npy_header
from actvar.data.picture_files import (
    MAX_PIXELS,
    SUFFIXES,
    UnusablePictureError,
    find_pictures,
    opened_picture,
    picture_bytes,
    tell_passed_over,
)
from actvar.data.preprocessing import Preprocessing
from actvar.errors import ActVARError, shown
from actvar.evaluation.npz_file import opened_npz
from actvar.files import written_whole

ARRAY = "arr_0"
"""The name under which the ADM suite (guided-diffusion, evaluations/evaluator.py) looks for pictures."""
LABELS = "arr_1"
"""That of their classes, where guided-diffusion's samplers write them."""

Shape = tuple[int, int, int, int]


class PictureSet(Protocol):
    """Pictures of one size, in a fixed order."""

    @property
    def shape(self) -> Shape:
        """N, H, W, 3."""

    def batches(self, at_once: int) -> Iterator[np.ndarray]:
        """All pictures, uint8 [at most at_once, H, W, 3] at a time.

        Raises:
            ActVARError: a picture cannot be read.
        """


def write_npz(path: Path, shape: Shape, batches: Iterable[np.ndarray], labels_N: np.ndarray | None = None) -> None:
    """Write pictures as `numpy.savez(path, pictures, labels)` would, byte by byte as they come; never all in memory.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    with (
        written_whole(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open(zipfile.ZipInfo(f"{ARRAY}.npy"), "w", force_zip64=True) as member:  # 50,000: 9.8 GB
            member.write(npy_header(shape, np.uint8))
            for pictures_NHW3 in batches:
                member.write(np.ascontiguousarray(pictures_NHW3, np.uint8).data.cast("B"))
        if labels_N is not None:
            with archive.open(zipfile.ZipInfo(f"{LABELS}.npy"), "w") as member:
                member.write(npy_header(labels_N.shape, labels_N.dtype) + labels_N.tobytes())


@dataclass(frozen=True)
class NpzPictures:
    """The pictures of an .npz, compressed or not; see `PictureSet`."""

    path: Path
    shape: Shape

    def batches(self, at_once: int) -> Iterator[np.ndarray]:
        """See `PictureSet`."""
        count, *size = self.shape
        with opened_npz(self.path) as npz, npz.values_of(ARRAY) as (header, values):
            if header.shape != self.shape:
                raise ValueError("it was replaced while it was in use")
            for first in range(0, count, at_once):
                wanted = (min(at_once, count - first), *size)
                pixels = values.read(math.prod(wanted))
                yield np.frombuffer(pixels, np.uint8).reshape(wanted)


def open_npz(path: Path) -> NpzPictures:
    """The pictures of an .npz, of which no more than the header is read.

    Raises:
        ActVARError: it cannot be read, or holds no uint8 pictures [N, H, W, 3] as `arr_0`.
    """
    with opened_npz(path) as npz:
        if ARRAY not in npz.names:
            found = ", ".join(npz.names[:5]) or "nothing"
            raise ActVARError(f"{path} must hold pictures as {ARRAY}, found {found}. Name an .npz of pictures.")
        header = npz.header(ARRAY)
    shape = header.shape
    if header.dtype != np.uint8 or header.fortran_order or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise ActVARError(
            f"{path}: {ARRAY} must be uint8 [pictures, height, width, 3], found {header}. "
            "Name an .npz of pictures as the ADM suite reads them."
        )
    if shape[1] * shape[2] > MAX_PIXELS:
        raise ActVARError(f"{path}: pictures of {shape[2]}×{shape[1]} are too large. Name an .npz of smaller ones.")
    return NpzPictures(path, (shape[0], shape[1], shape[2], shape[3]))


def npz_names(path: Path) -> tuple[str, ...]:
    """The names of the arrays of an .npz.

    Raises:
        ActVARError: it cannot be read.
    """
    with opened_npz(path) as npz:
        return npz.names


@dataclass(frozen=True)
class FolderPictures:
    """Files in the order of their paths; see `PictureSet`.

    `preprocessing` makes squares of them, as a training's pictures are; without it they are taken as they are.
    """

    files: tuple[Path, ...]
    shape: Shape
    preprocessing: Preprocessing | None = None

    def batches(self, at_once: int) -> Iterator[np.ndarray]:
        """See `PictureSet`."""
        for first in range(0, len(self.files), at_once):
            batch = [_pixels(file, self.preprocessing) for file in self.files[first : first + at_once]]
            for file, pixels_HW3 in zip(self.files[first : first + len(batch)], batch, strict=True):
                if pixels_HW3.shape != self.shape[1:]:
                    expected = f"{shown(str(self.files[0]), 1000)} is {_size(np.empty(self.shape[1:]))}"
                    raise ActVARError(
                        f"{shown(str(file), 1000)} is {_size(pixels_HW3)}, and {expected}. "
                        "Crop and resize all pictures to one size first, or let --crop-reference do it."
                    )
            yield np.stack(batch)


def open_folder(folder: Path, preprocessing: Preprocessing | None = None) -> FolderPictures:
    """The pictures in a folder and in those below it, of which only the first is read; see `find_pictures`.

    Args:
        folder: where they are.
        preprocessing: what makes squares of them; None for pictures that are of one size already.

    Raises:
        ActVARError: there is none, a folder cannot be read, or the first picture cannot.
    """
    try:
        found = find_pictures(folder)
    except OSError as error:
        raise ActVARError(
            f"{shown(str(error.filename))} cannot be read: {error.strerror}. Look at its permissions."
        ) from None
    tell_passed_over(folder, found)
    files = tuple(sorted(folder / name for name in found.names))
    if not files:
        raise ActVARError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}). Name a folder that does.")
    height, width, _ = _pixels(files[0], preprocessing).shape
    return FolderPictures(files, (len(files), height, width, 3), preprocessing)


def _pixels(file: Path, preprocessing: Preprocessing | None) -> np.ndarray:
    try:
        if preprocessing:
            return preprocessing.square(picture_bytes(file), 0)
        with opened_picture(picture_bytes(file)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnusablePictureError, OSError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ActVARError(
            f"{shown(str(file), 1000)} cannot be read as a picture ({reason}). Replace or remove it."
        ) from None


def _size(pixels_HW3: np.ndarray) -> str:
    return f"{pixels_HW3.shape[1]}×{pixels_HW3.shape[0]}"
