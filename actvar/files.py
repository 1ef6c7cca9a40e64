"""Files that are there whole or not at all, and files that are what somebody said they are. Plain Python."""

import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from actvar.errors import BundleError, DamagedError


@dataclass(frozen=True)
class FileEntry:
    """A file: its name in the folder that it belongs to, and what its content must be."""

    file: str
    bytes: int
    sha256: str


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name when the block ends and is removed if the block fails.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    """A plain file for reading. A link is refused: it could lead out of the folder.

    Raises:
        BundleError: it is missing (then a DamagedError), no plain file, or cannot be read; the message ends with the
            advice.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{path} must be a plain file, and is a link, a folder or a device. {advice}".rstrip())
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing. {advice}".rstrip()) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from None
    with file:
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
