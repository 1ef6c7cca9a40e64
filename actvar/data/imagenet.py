"""Folders of pictures as ImageNet has them: `train/<class>/*.JPEG` and `val/<class>/*.JPEG`.

A class's number is the place of its folder's name among the sorted names, and pictures are numbered class by class,
sorted by path: the rule of torchvision's ImageFolder, which official VAR's class ids follow.

Letters in shapes: N pictures, 3 red green blue, H W pixels down and across.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from actvar.data.pictures import PictureBatch, SkippedPicture
from actvar.data.preprocessing import Preprocessing, UnusablePictureError
from actvar.errors import DataError

Split: TypeAlias = Literal["train", "val"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""In any case; other files are passed over."""

_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class PictureFolders:
    """One split: the paths of its pictures below `folder`, and the class of each."""

    folder: Path
    names: Sequence[str]
    class_ids: Sequence[int]
    num_classes: int

    def spread(self, count: int) -> "PictureFolders":
        """`count` of the pictures, evenly spread over all classes, in the same order.

        Raises:
            DataError: there are not so many.
        """
        if count > len(self.names):
            raise DataError(f"{self.folder} holds {len(self.names)} pictures, {count} were asked for. Ask for fewer.")
        chosen = [i * len(self.names) // count for i in range(count)]
        names, class_ids = [self.names[i] for i in chosen], [self.class_ids[i] for i in chosen]
        return PictureFolders(self.folder, names, class_ids, self.num_classes)

    @cached_property
    def sha256(self) -> str:
        """Of all names and, as a look at every file would take minutes on a network, of each class's first size."""
        digest = hashlib.sha256()
        seen = None
        for name, class_id in zip(self.names, self.class_ids, strict=True):
            size = os.stat(self.folder / name).st_size if class_id != seen else ""
            digest.update(os.fsencode(name) + f"\0{size}\0".encode())
            seen = class_id
        return digest.hexdigest()


def list_pictures(root: Path, split: Split, num_classes: int) -> PictureFolders:
    """Find the pictures of a split.

    Args:
        root: holds `train` and `val`.
        split: one of them.
        num_classes: of the model; there must be as many class folders.

    Raises:
        DataError: a folder is not there, cannot be read or holds no pictures, or there are fewer or more classes.
    """
    folder = root / split
    if not folder.is_dir():
        found = f"no {split} in it" if root.is_dir() else "no such folder"
        raise DataError(f"{root}: expected {split}/<class>/*.JPEG, found {found}. Name the folder above {split}.")
    try:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        _require_classes(folder, classes, num_classes)
        names: list[str] = []
        class_ids: list[int] = []
        for class_id, name in enumerate(classes):
            before = len(names)
            names += (os.path.relpath(path, folder) for path in _pictures_below(folder / name))
            class_ids += [class_id] * (len(names) - before)
            if len(names) == before:
                kinds = ", ".join(SUFFIXES[:3])
                raise DataError(f"{folder / name} holds no pictures: expected {kinds} or the like. Fill or remove it.")
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Check its permissions.") from None
    return PictureFolders(folder, names, class_ids, num_classes)


def _require_classes(folder: Path, found: list[str], expected: int) -> None:
    if len(found) == expected:
        return
    some = f" ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})" if found else ""
    advice = "Name the data that the model is for."
    if hidden := [name for name in found if name.startswith(".")]:
        advice = f"{hidden[0]} is counted as a class: remove it, if it is none."
    elif not found:
        advice = "Sort its files into one folder for each class."
    raise DataError(
        f"{folder}: expected {expected} class folders, as the model has classes, found {len(found)}{some}. {advice}"
    )


def _pictures_below(folder: Path) -> Iterator[str]:
    """Paths of the pictures in a folder and those below it: folder by folder, sorted, links followed."""

    def stop(error: OSError) -> None:
        raise error  # a folder that is passed over in silence would shift the number of every picture after it

    for inner, _, files in sorted(os.walk(folder, onerror=stop, followlinks=True)):
        yield from (os.path.join(inner, file) for file in sorted(files) if file.lower().endswith(SUFFIXES))


@dataclass(frozen=True)
class FolderPictures:
    """The pictures of a split, prepared; `workers` threads read and decode them, as Pillow leaves Python's lock."""

    listed: PictureFolders
    preprocessing: Preprocessing
    workers: int = 2

    @property
    def identity(self) -> dict[str, object]:
        """What decides the pixels."""
        return {
            "name": f"folders, {self.listed.folder.name}",
            "pictures": len(self),
            "classes": self.listed.num_classes,
            "listing": self.listed.sha256,
            **self.preprocessing.identity,
        }

    def __len__(self) -> int:
        """N."""
        return len(self.listed.names)

    def load(self, numbers: range) -> PictureBatch:
        """The pictures of these numbers.

        Raises:
            DataError: a file cannot be read at all, which may be the disk's or the network's fault, not the picture's.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            loaded = list(pool.map(self._square, numbers))
        size = self.preprocessing.size
        grey_HH3 = np.full((size, size, 3), 127, np.uint8)
        squares_NHH3 = np.stack([grey_HH3 if isinstance(square, SkippedPicture) else square for square in loaded])
        unit_N3HH = torch.from_numpy(squares_NHH3).permute(0, 3, 1, 2).float().div_(255)
        return PictureBatch(
            unit_N3HH.add(unit_N3HH).sub_(1).contiguous(),
            torch.tensor([self.listed.class_ids[number] for number in numbers]),
            tuple(square for square in loaded if isinstance(square, SkippedPicture)),
        )

    def _square(self, number: int) -> np.ndarray | SkippedPicture:
        name = self.listed.names[number]
        try:
            return self.preprocessing.square(_file_bytes(self.listed.folder / name), number)
        except UnusablePictureError as error:
            shown = os.fsencode(name).decode(errors="replace")
            return SkippedPicture(number, shown, str(error))


def _file_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnusablePictureError("no plain file")
        if status.st_size > _MAX_BYTES:
            raise UnusablePictureError(f"{status.st_size} bytes are too many")
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Mend that, or put an empty file in its place, which is skipped; "
            "the same command then goes on."
        ) from None
