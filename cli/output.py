"""Where results go: `--out` as a file or a folder, the names of pictures, and what becomes of what is there.

Knows paths; what pictures look like as files is `actvar.image`'s.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from actvar.classes import NONE, class_names
from actvar.config import ModelConfig
from actvar.console import progress_bar, say
from actvar.errors import ActVARError, BundleError, UsageError, counted
from actvar.export.bundle_folder import replaces_bundle
from actvar.reports import write_report
from actvar.runtime.pictures import Order, Picture

_MOST_NUMBERS = 4  # of classes, in a file's name


@dataclass(frozen=True)
class Destination:
    """A folder for several files, or one file that was named."""

    folder: Path
    file: str | None

    def require_room(self, files: int) -> None:
        """Make sure that so many files are not to go into one.

        Raises:
            UsageError: they are.
        """
        if self.file and files > 1:
            raise UsageError(
                f"--out names one file, {self.folder / self.file}, for {files} pictures. Name a folder, or add --grid."
            )

    def write(self, stem: str, files: Mapping[str, bytes]) -> list[tuple[Path, str]]:
        """Write files that belong together. Nothing that is there is lost in silence.

        What is there with the same content stays as it is. Something else is replaced where the file was named; else
        the names of all get a number that is free, from 2 on.

        Args:
            stem: what the names begin with, where none was named.
            files: contents by how the names end, such as ".png" and "-scales.png"; written in this order.

        Returns: each path, and a few words if a file was there.

        Raises:
            ActVARError: one cannot be written.
        """
        if self.file:
            stem = self.file.removesuffix(Path(self.file).suffix)
        paths, beside = self._paths(stem, files), ""
        numbers = count(2)
        while not self.file and any(map(_is_other, paths, files.values())):
            paths, beside = self._paths(f"{stem}-{next(numbers)}", files), ", beside another of that name"
        said = []
        for path, content in zip(paths, files.values(), strict=True):
            there = os.path.lexists(path)
            if there and path.is_file() and not _is_other(path, content):
                said.append((path, ", which was there already"))
                continue
            write_report(path, content, "--out")
            said.append((path, ", in place of another" if there else beside))
        return said

    def _paths(self, stem: str, files: Mapping[str, bytes]) -> list[Path]:
        whole = {".png": self.file} if self.file else {}  # whose suffix may be in capitals
        return [self.folder / (whole.get(end) or f"{stem}{end}") for end in files]


def _is_other(path: Path, content: bytes) -> bool:
    """Whether something else is there that a file would take the place of: a folder it would not."""
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
        return False
    try:
        return not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content)
    except OSError:  # nobody may look
        return True


def picture_stem(named: str, model: ModelConfig, order: Order, seed: int) -> str:
    """The name of a picture's file: its model, class, seed and number.

    Args:
        named: the model, as people call it.
        model: whose classes may have names.
        order: class and number.
        seed: of the picture.
    """
    return f"{_plain(named, 40)}-{_class_words(model, order.class_id)}-seed{seed}-{order.number}"


def sheet_stem(named: str, model: ModelConfig, class_ids: Sequence[int], seed: int) -> str:
    """The name of a sheet's file: its model, its class, or its classes while they are few, and the seed."""
    if len(class_ids) == 1:
        words = _class_words(model, class_ids[0])
    elif len(class_ids) <= _MOST_NUMBERS:
        words = "-".join(_number_word(model, class_id) for class_id in class_ids)
    else:
        words = f"{len(class_ids)}-classes"
    return f"{_plain(named, 40)}-{words}-seed{seed}-grid"


def _class_words(model: ModelConfig, class_id: int) -> str:
    names, number = class_names(model), _number_word(model, class_id)
    return f"{number}-{_plain(names[class_id][0], 60)}" if names and number != NONE else number


def _number_word(model: ModelConfig, class_id: int) -> str:
    return NONE if class_id == model.num_classes else f"{class_id:03d}"


def _plain(name: str, most: int) -> str:
    """Of a name that may hold anything, what a file's name may."""
    return re.sub(r"[^\w-]", "_", name.replace(" ", "-"))[:most]


def destination(out: Path, files: int) -> Destination:
    """What `--out` means, checked before anything is drawn; nothing is made yet.

    Args:
        out: a name that ends in .png is a file, unless there is a folder of that name; all else is a folder.
        files: how many pictures or sheets there will be at least.

    Raises:
        UsageError: several pictures are to go into one file, or the file is of another kind.
        ActVARError: the folder cannot be written.
    """
    is_file = bool(out.suffix) and not out.is_dir()
    if is_file and out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise UsageError(f"--out must be a .png file or a folder, got {out}. Pictures are written as PNG.")
    is_file = is_file and out.suffix.lower() == ".png"
    result = Destination(out.parent, out.name) if is_file else Destination(out, None)
    result.require_room(files)
    existing = next(folder for folder in (result.folder, *result.folder.absolute().parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise ActVARError(f"--out {out} cannot be written: {existing} is not a folder. Name another place.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ActVARError(f"--out {out} cannot be written: no permission in {existing}. Name another place.")
    return result


def replaced_bundle(out: Path) -> bool:
    """Whether a bundle is there that one to be written takes the place of; looked at before the work.

    Raises:
        UsageError: something else is there.
    """
    try:
        return replaces_bundle(out)
    except BundleError as error:
        raise UsageError(f"--out {error}") from None


def say_replaced(out: Path, replaced: bool) -> None:
    """Say that a bundle was replaced, if one was."""
    if replaced:
        say(f"It replaces the bundle that was there before, in {out}.")


def make_folder(where: Destination) -> None:
    """Make the folder, if it is not there.

    Raises:
        ActVARError: it cannot be made.
    """
    try:
        where.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ActVARError(
            f"--out {where.folder} cannot be made: {error.strerror or error}. Name another place."
        ) from None


@contextmanager
def tallied(total: int, for_a_sheet: bool = False) -> Iterator[Callable[[Iterator[Picture]], Iterator[Picture]]]:
    """Gives what counts pictures on their way, with a bar where there are several.

    A picture counts when the next one is asked for: it is on the disk by then. However the block ends, it is told how
    many of several that was.
    """
    done, started = 0, time.perf_counter()
    try:
        with progress_bar("Drawing", announced=False, pieces=total) as progress:

            def counting(pictures: Iterator[Picture]) -> Iterator[Picture]:
                nonlocal done
                if total > 1:
                    progress(0)
                for picture in pictures:
                    yield picture
                    done += 1
                    if total > 1:
                        progress(done)

            yield counting
    finally:
        seconds = time.perf_counter() - started
        if done == total:
            say(f"{counted(done, 'picture')} in {seconds:.1f} s, {done / seconds:.3f} pictures per second.")
        elif total > 1:
            how = "drawn, and no sheet of them," if for_a_sheet else "written"
            say(f"{done} of {counted(total, 'picture')} {how} in {seconds:.1f} s.")
