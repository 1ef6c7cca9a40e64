"""Picture files and folders of them, from anywhere: one rule of what is found, and one of what is opened.

Knows names, bytes and Pillow; not what a picture is for. Plain Python and Pillow: no PyTorch.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from actvar.console import say
from actvar.errors import counted, shown

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of pictures, in any case: those of torchvision's ImageFolder. Other files are passed over, and counted."""
MAX_PIXELS = 1 << 26
"""Of a picture as it is stored, and again once it is resized: 200 MB in memory. A larger one is taken for an attack."""

# What files with these suffixes are. Pillow reads more: EPS, for one, by starting another program.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
_MAX_BYTES = 1 << 28
_REASON = 120  # characters


class UnusablePictureError(Exception):
    """A picture is corrupt, cut short, far too large or no plain file; the text is the reason, in a few words."""


# ---- folders


@dataclass(frozen=True)
class FoundPictures:
    """Paths of pictures below a folder, and how many files and folders were passed over.

    `names` are folder by folder, sorted by path, in each the files by name. `other_files` do not end as pictures do;
    `same_folders` are links to a folder that is there by another name, or above.
    """

    names: list[str]
    other_files: int = 0
    same_folders: int = 0


def find_pictures(folder: Path) -> FoundPictures:
    """All pictures in a folder and in those below it. Links are followed, and each folder is looked into once.

    What ends as a picture's name does is listed, whatever it is: nothing of it is opened.

    Raises:
        OSError: a folder cannot be read.
    """
    files: dict[str, list[str]] = {}
    seen = {_place(above) for above in Path(os.path.realpath(folder)).parents}
    other_files = same_folders = 0
    own, linked = [""], list[str]()  # a folder's own place comes before the links to it
    while own or linked:
        inner = own.pop() if own else linked.pop(0)
        path = os.path.join(folder, inner) if inner else os.fspath(folder)
        if (place := _place(path)) in seen:
            same_folders += 1
            continue
        seen.add(place)
        here = files.setdefault(path, [])
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                name = os.path.join(inner, entry.name)
                if _is_folder(entry):
                    (linked if entry.is_symlink() else own).append(name)
                elif entry.name.lower().endswith(SUFFIXES):
                    here.append(name)
                else:
                    other_files += 1
    return FoundPictures([name for path in sorted(files) for name in files[path]], other_files, same_folders)


def tell_passed_over(folder: Path, found: FoundPictures) -> None:
    """Say what was passed over, if anything was."""
    said = []
    if found.other_files:
        said.append(f"{counted(found.other_files, 'file')} of another kind")
    if found.same_folders:
        said.append(f"{counted(found.same_folders, 'link')} to a folder that is there already")
    if said:
        say(f"{shown(str(folder), 1000)}: {counted(len(found.names), 'picture')}; passed over: {', '.join(said)}.")


def _place(folder: str | Path) -> tuple[int, int]:
    """What is the same for all names of a folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


# ---- files


def picture_bytes(path: Path) -> bytes:
    """The content of a picture's file; a link is followed.

    Raises:
        UnusablePictureError: it is no plain file, such as a pipe that nobody writes into, or too large.
        OSError: it cannot be read.
    """
    _require_plain(path.stat())
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        _require_plain(os.fstat(file.fileno()))
        return file.read()


def _require_plain(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnusablePictureError("no plain file")
    if status.st_size > _MAX_BYTES:
        raise UnusablePictureError(f"{status.st_size} bytes are too many")


@contextmanager
def opened_picture(data: bytes) -> Iterator[Image.Image]:
    """A picture of a known format, of which little more than the size is read; what the block does with it may fail.

    Raises:
        UnusablePictureError: the bytes are no whole picture of a known format, or it has too many pixels.
    """
    _leave_warnings_out()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusablePictureError(f"{image.width}x{image.height} pixels are too many")
            yield image
    except (UnusablePictureError, MemoryError):
        raise
    except Exception as error:  # of a broken file, Pillow may raise anything
        raise UnusablePictureError(_first_line(error)) from None


@cache
def _leave_warnings_out() -> None:
    """Those of Pillow: what is wrong with a picture is said of it by name, or was no reason to refuse it."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _first_line(error: Exception) -> str:
    # Pillow names the bytes' address in memory: another one in each run
    text = (str(error).splitlines() or [""])[0].partition(" <_io.BytesIO")[0]
    return shown(text, _REASON).strip(" .") or type(error).__name__
