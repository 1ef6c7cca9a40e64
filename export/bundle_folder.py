"""A bundle's folder: there whole or not at all, whatever happens while it is written.

Knows names, renames and leftovers; nothing of what is in a bundle but the form of its manifest, by which it is told
from folders that must not be replaced.

The new folder is written beside the old one, and the two exchange names in one step. Where a folder's name cannot be
given away (a mount point, a layer of a container's image, a parent that may not be written), and where somebody keeps
hidden files in it, its files are replaced instead, the manifest first by one that is marked as unfinished and last by
the new one: between the two nobody can take it for whole.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actvar.bundle.manifest import FORMAT, MANIFEST_FILE
from actvar.errors import BundleError
from actvar.files import content_of, is_hidden, remove_folder

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux's, from fcntl.h and stdio.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)  # what systems without one say of it
_FIXED_NAME = (errno.EXDEV, errno.EBUSY)  # of a folder in a lower layer, and of a mount point


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the target's place when the block ends, and is removed if the block fails.

    A process that is killed at any moment leaves the old bundle or the new one, and perhaps a hidden folder beside it,
    which the next writer of the same target removes.

    Raises:
        BundleError: the target is something else than a bundle, or cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # a name that a folder beside it can be given, even for "."
    replaces_bundle(folder)
    name_is_fixed = folder.is_dir() and _keeps_its_name(folder)
    beside = folder if name_is_fixed else folder.parent
    unfinished = beside / f".{folder.name[:100]}.{secrets.token_hex(4)}.tmp"
    try:
        beside.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder, beside)
        unfinished.mkdir()
        with _locked(unfinished):
            yield unfinished
            if name_is_fixed:
                _fill(folder, unfinished)
            else:
                _take_place(unfinished, folder)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be written: {error.strerror or error}. Name another folder, or make room."
        ) from None
    finally:
        remove_folder(unfinished)


def replaces_bundle(folder: Path) -> bool:
    """Whether a bundle that is written there replaces one, whatever that one's state.

    Returns: False where there is nothing, or a folder without content.

    Raises:
        BundleError: something else is there, or nobody may look.
    """
    try:
        if not os.path.lexists(folder):
            return False
        if folder.is_dir() and not folder.is_symlink():
            if not content_of(folder):
                return False
            content = json.loads((folder / MANIFEST_FILE).read_bytes())
            if isinstance(content, dict) and content.get("format") == FORMAT:
                return True
    except (FileNotFoundError, ValueError, RecursionError):
        pass
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror or error}. Name another folder.") from None
    raise BundleError(f"{folder} is there and is not a bundle. Name a new folder, or a bundle to replace.")


def _keeps_its_name(folder: Path) -> bool:
    """Whether a folder is filled, rather than exchanged for a new one."""
    if _is_mount_point(folder) or not os.access(folder.parent, os.W_OK | os.X_OK):
        return True
    return any(is_hidden(path.name) and not _is_leftover(path, folder) for path in folder.iterdir())


def _take_place(unfinished: Path, folder: Path) -> None:
    """Give a folder its name. What had the name before is then under the other one, or gone."""
    if not folder.exists():
        unfinished.rename(folder)
        return
    try:
        if _exchanged(unfinished, folder):
            return
        replaced = unfinished.with_suffix(
            ".old"
        )  # in two steps, with a moment between them in which there is no bundle
        folder.rename(replaced)
    except OSError as error:
        if error.errno not in _FIXED_NAME:
            raise
        _fill(folder, unfinished)
        return
    try:
        unfinished.rename(folder)
    except BaseException:
        replaced.rename(folder)
        raise
    remove_folder(replaced)


def _fill(folder: Path, unfinished: Path) -> None:
    """Replace what is in a folder that keeps its name, the manifest last."""
    marked = unfinished / f"{MANIFEST_FILE}.unfinished"
    marked.write_text(json.dumps({"format": FORMAT, "unfinished": True}))
    os.replace(marked, folder / MANIFEST_FILE)
    for path in folder.iterdir():
        if is_hidden(path.name) or path.name == MANIFEST_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            remove_folder(path, ignore_errors=False)
        else:
            path.unlink()
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
        os.replace(path, folder / path.name)


def _is_mount_point(folder: Path) -> bool:
    """Whether something is mounted there; `os.path.ismount` does not know of a folder bound to one beside it."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return os.path.ismount(folder)
    places = {line.split()[4].encode().decode("unicode_escape") for line in mounts}  # a space is written \\040
    return os.path.realpath(folder) in places


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two names in a single step, if the system and the file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number))


def _is_leftover(path: Path, folder: Path) -> bool:
    """Whether a folder is what a writer of this target fills, or filled."""
    name = re.escape(f".{folder.name[:100]}.") + r"[0-9a-f]{8}\.tmp"
    return bool(re.fullmatch(name, path.name)) and path.is_dir() and not path.is_symlink()


def _remove_leftovers(folder: Path, beside: Path) -> None:
    """What writers of this target left that were killed; one that lives holds the lock of its folder."""
    for path in beside.iterdir():
        if _is_leftover(path, folder):
            try:
                with _locked(path):
                    remove_folder(path)
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
