"""Files that are there whole or not at all, and files that are what somebody said they are. Plain Python."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from actvar.errors import BundleError, DamagedError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"[0-9A-Za-z]{1,128}")
_WRITERS = 1000  # of one name at a time
_OF_SYSTEMS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")


def is_hidden(name: str) -> bool:
    """Whether a name is no content of its folder: a hidden one, or what a file system or a desktop keeps there."""
    return name.startswith(".") or name in _OF_SYSTEMS


def content_of(folder: Path) -> list[str]:
    """What a folder holds, by name, in order. The one rule of what stands in the way of a result that is put there.

    What is hidden does not count, and whoever writes there leaves it alone.

    Raises:
        OSError: it cannot be listed.
    """
    return sorted(name for name in os.listdir(folder) if not is_hidden(name))


@dataclass(frozen=True)
class FileEntry:
    """A file: its name in the folder that it belongs to, and what its content must be."""

    file: str
    bytes: int
    sha256: str


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name when the block ends and is removed if the block fails.

    A process that is killed leaves a hidden file beside it, which the next writer of the same name removes. One that
    lives holds the lock of its file.

    Raises:
        OSError: it cannot be written.
    """
    temporary, lock = _hidden_beside(path)
    try:
        with open(temporary, "wb", opener=lambda *_: os.dup(lock)) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _hidden_beside(path: Path) -> tuple[Path, int]:
    """A new file beside another, and the descriptor that holds its lock; what killed writers left is removed.

    Names are counted from 0, and the first is taken that no living writer has. So nobody lists the folder, which may
    hold all pictures of a long run.
    """
    names = (path.with_name(f".{path.name[:100]}.{number}.tmp") for number in range(_WRITERS))
    for temporary in names:
        if (file := _made_and_locked(temporary)) is not None:
            for later in names:
                if not os.path.lexists(later) or not _is_removed(later):
                    break
            return temporary, file
    raise FileExistsError(errno.EEXIST, f"{_WRITERS} unfinished files of this name are in its folder")


def _made_and_locked(path: Path) -> int | None:
    """A new file's descriptor; None where the name is another's."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        except FileExistsError:
            if not _is_removed(path):
                return None
            continue
        with suppress(OSError):  # a file system without locks: nobody can take the file for a leftover either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return file
        os.close(file)  # another writer took it for a leftover before it was locked


def _is_removed(path: Path) -> bool:
    """Remove a file that a killed writer left; False where it is none, its writer lives, or it is not ours to open.

    Whoever holds a file's lock is the only one to rename or remove it, so the name still means it when it goes.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return error.errno == errno.ENOENT
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened = os.fstat(file)
        if not stat.S_ISREG(opened.st_mode):
            return False
        if os.path.samestat(opened, os.lstat(path)):
            os.unlink(path)
        return True
    except OSError as error:
        return error.errno == errno.ENOENT
    finally:
        os.close(file)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A temporary folder that is removed whenever and however the block ends, with what libraries put into it.

    `tempfile.TemporaryDirectory` leaves its folder where a signal arrives between making it and noting that it was
    made. Here the name is known before. Until the block ends, all temporary files of the process are made in it: those
    of libraries are removed with it.

    Raises:
        OSError: it cannot be made.
    """
    elsewhere = tempfile.gettempdir()
    folder = Path(elsewhere) / f"actvar-{purpose}-{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        tempfile.tempdir = str(folder)
        yield folder
    finally:
        tempfile.tempdir = elsewhere
        shutil.rmtree(folder, ignore_errors=True)


def remove_folder(folder: Path, ignore_errors: bool = True) -> None:
    """Remove a folder and all that is in it, however deep: Python before 3.13 calls itself once for each level.

    Raises:
        OSError: something cannot be removed, and errors are not to be ignored.
    """
    try:
        shutil.rmtree(folder, ignore_errors=ignore_errors)
    except RecursionError:
        waiting = [folder]
        while waiting:  # what lies deeper is moved up, until there is nothing deep
            for inner in [Path(entry) for entry in os.scandir(waiting.pop()) if entry.is_dir(follow_symlinks=False)]:
                waiting.append(inner if inner.parent == folder else inner.rename(folder / secrets.token_hex(8)))
        shutil.rmtree(folder, ignore_errors=ignore_errors)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends; whoever comes second waits.

    Raises:
        OSError: the lock's file cannot be written.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # no link: it could lead out of the folder
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def opened(path: Path, advice: str = "") -> Iterator[BinaryIO]:
    """A plain file for reading. A link is refused, as it could lead out of the folder; but for those of a Hub cache.

    The Hugging Face Hub's cache is a folder of links: `models--user--name/snapshots/<commit>/<file>` leads to a file in
    `models--user--name/blobs`. Such a link is followed where it ends in that very folder, at a plain file and not at
    another link. It is not left to the system to follow it: the folder is opened, and the file in it, neither of
    them through a link, whatever is put in their place meanwhile.

    Raises:
        BundleError: it is missing (then a DamagedError), no plain file, or cannot be read; the message ends with the
            advice.
    """
    try:
        descriptor = _opened_cached(path) if path.is_symlink() else _opened_plain(path)
        if descriptor is None:
            raise BundleError(f"{path} must be a plain file, and is a link, a folder or a device. {advice}".rstrip())
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing. {advice}".rstrip()) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from None
    with os.fdopen(descriptor, "rb") as file:
        yield file


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file, under the name that it has in its folder.

    Raises:
        BundleError: it cannot be read, or is not a plain file.
    """
    with opened(path) as file:
        return _digest(file, path.name)


def read_verified(path: Path, entry: FileEntry, advice: str, take: Callable[[bytes], object] | None = None) -> None:
    """Read a file to its end and make sure that it is the one that was meant.

    Args:
        path: the file.
        entry: what it must be.
        advice: what to do if it is not.
        take: is given the content piece by piece, before it is known to be right.

    Raises:
        DamagedError: it is missing, or differs in size or SHA-256.
        BundleError: it is a link or no plain file, or cannot be read.
    """
    with opened(path, advice) as file:
        _require_size(file, path, entry, advice)
        found = _digest(file, entry.file, take)
    if found != entry:
        raise DamagedError(
            f"{path} was altered: the manifest says SHA-256 {entry.sha256[:12]}…, found {found.sha256[:12]}…. {advice}"
        )


def require_size(path: Path, entry: FileEntry, advice: str) -> None:
    """Make sure that a file is there and as long as it was meant to be, without reading it.

    Arguments and errors are those of `read_verified`.
    """
    with opened(path, advice) as file:
        _require_size(file, path, entry, advice)


def _opened_plain(path: Path | str, folder: int | None = None) -> int | None:
    """A plain file's descriptor; None if it is something else. A folder's descriptor is where the path begins."""
    if not stat.S_ISREG(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)  # something else has taken its name since
    return None


def _opened_cached(link: Path) -> int | None:
    """The descriptor of what a link of a Hub cache leads to; None if it is another link, or leads elsewhere."""
    link = Path(os.path.abspath(link))
    target = Path(os.path.normpath(link.parent / os.readlink(link)))
    blobs = _blobs_of(link)
    if blobs is None or target.parent != blobs or not _BLOB.fullmatch(target.name):
        return None
    if not stat.S_ISDIR(blobs.lstat().st_mode):
        return None
    folder = os.open(blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = _opened_plain(target.name, folder)
    finally:
        os.close(folder)
    if descriptor is not None and not os.path.samestat(os.fstat(descriptor), link.stat()):
        os.close(descriptor)  # folders on the way are links: whoever follows it by its name comes to another file
        return None
    return descriptor


def _blobs_of(path: Path) -> Path | None:
    """Where the files of a Hub snapshot lie, if a path is in one."""
    for commit in path.parents:
        if _COMMIT.fullmatch(commit.name) and commit.parent.name == "snapshots":
            repository = commit.parent.parent
            return repository / "blobs" if repository.name.startswith("models--") else None
    return None


def _require_size(file: BinaryIO, path: Path, entry: FileEntry, advice: str) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != entry.bytes:
        raise DamagedError(f"{path} was cut or altered: the manifest says {entry.bytes} bytes, found {size}. {advice}")


def _digest(file: BinaryIO, name: str, take: Callable[[bytes], object] | None = None) -> FileEntry:
    digest, count = hashlib.sha256(), 0
    while block := file.read(1 << 20):
        digest.update(block)
        count += len(block)
        if take:
            take(block)
    return FileEntry(name, count, digest.hexdigest())
