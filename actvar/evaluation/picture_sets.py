"""Sets of pictures as files: the .npz that the ADM suite reads, and folders of pictures. Read and written in batches.

Knows files and pixels; not what the pictures show, and not how they are judged. Plain numpy: no PyTorch.

Letters in shapes: N pictures, H W pixels down and across, 3 red green blue.
"""

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from actvar.errors import ActVARError
from actvar.files import written_whole

ARRAY = "arr_0"
"""The name under which the ADM suite (guided-diffusion, evaluations/evaluator.py) looks for pictures."""
SUFFIXES = (".png", ".jpg", ".jpeg")

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


def npy_header(shape: Sequence[int]) -> bytes:
    """What stands before the pixels in an .npy file of uint8."""
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def write_npz(path: Path, shape: Shape, batches: Iterable[np.ndarray]) -> None:
    """Write pictures as `numpy.savez(path, arr_0=pictures)` would, byte by byte as they come; never all in memory.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    with (
        written_whole(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        archive.open(zipfile.ZipInfo(f"{ARRAY}.npy"), "w", force_zip64=True) as member,  # 50,000 of 256×256: 9.8 GB
    ):
        member.write(npy_header(shape))
        for pictures_NHW3 in batches:
            member.write(np.ascontiguousarray(pictures_NHW3, np.uint8).data.cast("B"))


@dataclass(frozen=True)
class NpzPictures:
    """The pictures of an .npz, compressed or not; see `PictureSet`."""

    path: Path
    shape: Shape

    def batches(self, at_once: int) -> Iterator[np.ndarray]:
        """See `PictureSet`."""
        count, *size = self.shape
        with _member(self.path, ARRAY) as member:
            _read_header(member)
            for first in range(0, count, at_once):
                wanted = (min(at_once, count - first), *size)
                pixels = member.read(int(np.prod(wanted)))
                yield np.frombuffer(pixels, np.uint8).reshape(wanted)


def open_npz(path: Path) -> NpzPictures:
    """The pictures of an .npz, of which no more than the header is read.

    Raises:
        ActVARError: it cannot be read, or holds no uint8 pictures [N, H, W, 3] as `arr_0`.
    """
    with _member(path, ARRAY) as member:
        shape, fortran_order, dtype = _read_header(member)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or fortran_order:
        raise ActVARError(
            f"{path}: {ARRAY} must be uint8 [pictures, height, width, 3], found {dtype} {list(shape)}. "
            "Name an .npz of pictures as the ADM suite reads them."
        )
    return NpzPictures(path, shape)


def npz_names(path: Path) -> tuple[str, ...]:
    """The names of the arrays of an .npz.

    Raises:
        ActVARError: it cannot be read.
    """
    with _archive(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


@dataclass(frozen=True)
class FolderPictures:
    """PNG and JPEG files in the order of their paths; see `PictureSet`."""

    files: tuple[Path, ...]
    shape: Shape

    def batches(self, at_once: int) -> Iterator[np.ndarray]:
        """See `PictureSet`."""
        for first in range(0, len(self.files), at_once):
            batch = [_pixels(file) for file in self.files[first : first + at_once]]
            for file, pixels_HW3 in zip(self.files[first:], batch, strict=False):
                if pixels_HW3.shape != self.shape[1:]:
                    raise ActVARError(
                        f"{file} is {_size(pixels_HW3)}, and {self.files[0]} is {_size(np.empty(self.shape[1:]))}. "
                        "Crop and resize all pictures to one size first."
                    )
            yield np.stack(batch)


def open_folder(folder: Path) -> FolderPictures:
    """The pictures in a folder and in those below it, of which only the first is read.

    Raises:
        ActVARError: there is none, or the first cannot be read.
    """
    files = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))
    if not files:
        raise ActVARError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}). Name a folder that does.")
    return FolderPictures(files, (len(files), *_pixels(files[0]).shape))


def _pixels(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ActVARError(f"{file} cannot be read as a picture ({error}). Replace or remove it.") from None


def _size(pixels_HW3: np.ndarray) -> str:
    return f"{pixels_HW3.shape[1]}×{pixels_HW3.shape[0]}"


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ActVARError(f"{path} cannot be read as an .npz ({reason}). Fetch or write it again.") from None


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """One array of an .npz."""
    with _archive(path) as archive:
        names = archive.namelist()
        if f"{name}.npy" not in names:
            found = ", ".join(each.removesuffix(".npy") for each in names[:5]) or "nothing"
            raise ActVARError(f"{path} must hold pictures as {name}, found {found}. Name an .npz of pictures.")
        with archive.open(f"{name}.npy") as member:
            yield member


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)
