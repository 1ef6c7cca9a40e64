"""Where results go: `--out` as a file or a folder, the names of pictures, and what becomes of what is there.

Knows paths; what pictures look like as files is `actvar.runtime.image`'s.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from actvar.classes import class_names
from actvar.config import ModelConfig
from actvar.console import say
from actvar.errors import ActVARError, BundleError, UsageError
from actvar.export.bundle_folder import replaces_bundle
from actvar.runtime.pictures import Order


@dataclass(frozen=True)
class Destination:
    """A folder for several files, or one file."""

    folder: Path
    file: str | None

    def picture(self, model: ModelConfig, order: Order, seed: int) -> Path:
        """The file of one picture."""
        names = class_names(model)
        name = f"-{names[order.class_id][0]}" if names else ""
        plain = re.sub(r"[^\w-]", "_", name.replace(" ", "-"))[:60]  # a checkpoint's names may hold anything
        return self.folder / (self.file or f"actvar-{order.class_id:03d}{plain}-seed{seed}-{order.number}.png")

    def require_room(self, files: int) -> None:
        """Make sure that so many files are not to go into one.

        Raises:
            UsageError: they are.
        """
        if self.file and files > 1:
            raise UsageError(
                f"--out names one file, {self.folder / self.file}, for {files} pictures. Name a folder, or add --grid."
            )

    def grid(self, seed: int) -> Path:
        """The file of a sheet of all pictures."""
        return self.folder / (self.file or f"actvar-grid-seed{seed}.png")


def scales_strip(picture: Path) -> Path:
    """The file of the partial pictures that belongs to a picture's."""
    return picture.with_name(f"{picture.stem}-scales.png")


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
