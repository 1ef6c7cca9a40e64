"""A bundle's folder: there whole or not at all, whatever happens while it is written.

Knows names, renames and leftovers; nothing of what is in a bundle but the form of its manifest, by which it is told
from folders that must not be replaced.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actvar.bundle.manifest import FORMAT, MANIFEST_FILE
from actvar.errors import BundleError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux's, from fcntl.h and stdio.h


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the target's place when the block ends, and is removed if the block fails.

    A process that is killed at any moment leaves the old bundle or the new one, and perhaps a hidden folder beside it,
    which the next writer of the same target removes.

    Raises:
        BundleError: the target is something else than a bundle, or cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # a name that a folder beside it can be given, even for "."
    unfinished = folder.with_name(f".{folder.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        if not _may_be_replaced(folder):
            raise BundleError(f"{folder} is there and is not a bundle. Name a new folder, or a bundle to replace.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        unfinished.mkdir()
        with _locked(unfinished):
            yield unfinished
            _take_place(unfinished, folder)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be written: {error.strerror or error}. Name another folder, or make room."
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _may_be_replaced(folder: Path) -> bool:
    """Whether there is nothing, an empty folder, or a bundle, whatever its state."""
    if folder.is_symlink() or not folder.is_dir():
        return not os.path.lexists(folder)
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
    except FileNotFoundError:
        return not any(folder.iterdir())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _take_place(unfinished: Path, folder: Path) -> None:
    """Give a folder its name. What had the name before is then under the other one, or gone."""
    if not folder.exists():
        unfinished.rename(folder)
    elif not _exchanged(unfinished, folder):  # two steps, with a moment between them in which there is no bundle
        replaced = unfinished.with_suffix(".old")
        folder.rename(replaced)
        try:
            unfinished.rename(folder)
        except BaseException:
            replaced.rename(folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two names in a single step, if the system and the file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number))


def _remove_leftovers(folder: Path) -> None:
    """What writers of this target left that were killed; one that lives holds the lock of its folder."""
    name = re.compile(re.escape(f".{folder.name[:100]}.") + r"[0-9a-f]{8}\.tmp")
    for path in folder.parent.iterdir():
        if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            try:
                with _locked(path):
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:
                continue


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process, however it ends.

    Raises:
        OSError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
