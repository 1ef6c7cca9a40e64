"""Folders of pictures as ImageNet has them: `train/<class>/*.JPEG` and `val/<class>/*.JPEG`.

A class's number is the place of its folder's name among the sorted names, and pictures are numbered class by class,
sorted by path: the rule of torchvision's ImageFolder, which official VAR's class ids follow.

Letters in shapes: N pictures, 3 red green blue, H W pixels down and across.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from actvar.data.picture_files import (
    SUFFIXES,
    FoundPictures,
    UnusablePictureError,
    find_pictures,
    picture_bytes,
    tell_passed_over,
)
from actvar.data.pictures import PictureBatch, SkippedPicture
from actvar.data.preprocessing import Preprocessing
from actvar.errors import DataError, counted, shown
from actvar.files import is_hidden

Split: TypeAlias = Literal["train", "val"]

_NAME = 1000  # characters of a skipped picture's


@dataclass(frozen=True)
class PictureFolders:
    """One split: the paths of its pictures below `folder`, and the class of each."""

    folder: Path
    names: Sequence[str]
    class_ids: Sequence[int]
    class_names: tuple[str, ...]
    """Of the classes' folders, as they can be printed."""

    @property
    def num_classes(self) -> int:
        """Of all folders, be there pictures of each or not."""
        return len(self.class_names)

    def spread(self, count: int) -> "PictureFolders":
        """`count` of the pictures, evenly spread over all classes, in the same order.

        Raises:
            DataError: there are not so many.
        """
        if count > len(self.names):
            raise DataError(
                f"{self.folder} holds {counted(len(self.names), 'picture')}, {count} were asked for. Ask for fewer."
            )
        chosen = [i * len(self.names) // count for i in range(count)]
        names, class_ids = [self.names[i] for i in chosen], [self.class_ids[i] for i in chosen]
        return PictureFolders(self.folder, names, class_ids, self.class_names)

    @property
    def printed_names(self) -> tuple[str, ...]:
        """Of the classes, each once; none where two folders print alike."""
        return self.class_names if len(set(self.class_names)) == len(self.class_names) else ()

    @cached_property
    def sha256(self) -> str:
        """Of all names and, as a look at every file would take minutes on a network, of each class's first size.

        Raises:
            DataError: a file is not there.
        """
        digest = hashlib.sha256()
        seen = None
        for name, class_id in zip(self.names, self.class_ids, strict=True):
            try:
                size = os.stat(self.folder / name).st_size if class_id != seen else ""
            except OSError as error:
                raise _unreadable(self.folder / name, error) from None
            digest.update(os.fsencode(name) + f"\0{size}\0".encode())
            seen = class_id
        return digest.hexdigest()


def list_pictures(root: Path, split: Split, num_classes: int | None = None) -> PictureFolders:
    """Find the pictures of a split.

    Args:
        root: holds `train` and `val`.
        split: one of them.
        num_classes: of the model; there must be as many class folders. None takes as many as there are.

    Raises:
        DataError: a folder is not there, cannot be read or holds no pictures, or there are fewer or more classes.
    """
    folder = root / split
    if not folder.is_dir():
        found = f"no {split} in it" if root.is_dir() else "no such folder"
        raise DataError(f"{root}: expected {split}/<class>/*.JPEG, found {found}. Name the folder above {split}.")
    try:
        with os.scandir(folder) as entries:
            kinds = {entry.name: entry.is_dir() for entry in entries}
        classes = sorted(name for name, is_folder in kinds.items() if is_folder)
        _require_classes(folder, classes, num_classes or max(1, len(classes)))
        per_class = [_pictures_of(folder / name) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Check its permissions.") from None
    names = [os.path.join(name, inner) for name, below in zip(classes, per_class, strict=True) for inner in below.names]
    class_ids = [class_id for class_id, below in enumerate(per_class) for _ in below.names]
    beside = len(kinds) - len(classes) + sum(below.other_files for below in per_class)
    tell_passed_over(folder, FoundPictures(names, beside, sum(below.same_folders for below in per_class)))
    return PictureFolders(folder, names, class_ids, tuple(map(shown, classes)))


def _pictures_of(folder: Path) -> FoundPictures:
    found = find_pictures(folder)
    if not found.names:
        kinds = ", ".join(SUFFIXES[:3])
        raise DataError(
            f"{shown(str(folder), 1000)} holds no pictures: expected {kinds} or the like. Fill or remove it."
        )
    return found


def _require_classes(folder: Path, found: list[str], expected: int) -> None:
    if len(found) == expected:
        return
    some = f" ({', '.join(map(shown, found[:3]))}{', …' if len(found) > 3 else ''})" if found else ""
    if hidden := [name for name in found if is_hidden(name)]:
        advice = f"{shown(hidden[0])} is counted as a class: remove it, if it is none."
    elif not found:
        advice = "Sort its files into one folder for each class."
    else:
        advice = f"Name the data that the model is for, or say --classes {len(found)} if the model is to have so many."
    raise DataError(
        f"{folder}: expected {expected} class folders, as the model has classes, found {len(found)}{some}. {advice}"
    )


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

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the folders, unless two of them print alike."""
        return self.listed.printed_names

    def __len__(self) -> int:
        """N."""
        return len(self.listed.names)

    def load(self, numbers: range) -> PictureBatch:
        """The pictures of these numbers.

        Raises:
            DataError: a file cannot be read at all, which may be the disk's or the network's fault, not the picture's.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            loaded = list(pool.map(self.square, numbers))
        size = self.preprocessing.size
        grey_HH3 = np.full((size, size, 3), 127, np.uint8)
        squares_NHH3 = np.stack([grey_HH3 if isinstance(square, SkippedPicture) else square for square in loaded])
        unit_N3HH = torch.from_numpy(squares_NHH3).permute(0, 3, 1, 2).float().div_(255)
        return PictureBatch(
            unit_N3HH.add(unit_N3HH).sub_(1).contiguous(),
            torch.tensor([self.listed.class_ids[number] for number in numbers]),
            tuple(square for square in loaded if isinstance(square, SkippedPicture)),
        )

    def square(self, number: int) -> np.ndarray | SkippedPicture:
        """One picture, uint8 HW3, or what is wrong with it; errors are those of `load`."""
        name = self.listed.names[number]
        try:
            return self.preprocessing.square(picture_bytes(self.listed.folder / name), number)
        except UnusablePictureError as error:
            return SkippedPicture(number, shown(os.fsencode(name).decode(errors="replace"), _NAME), str(error))
        except OSError as error:
            raise _unreadable(self.listed.folder / name, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{shown(str(path), 1000)} cannot be read: {error.strerror}. Mend that, or put an empty file in its place, "
        "which is skipped; the same command then goes on."
    )
