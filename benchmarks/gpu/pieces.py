"""A folder as one compressed archive in pieces, for a machine that takes only so many bytes at a time.

Knows the pieces and their hashes; what is in the folder is the caller's. Pieces may come from anywhere, so each is held
to the manifest before anything is unpacked.

    pieces.json   {"format": "actvar-gpu-pieces", "version": 1, "archive": {file, bytes, sha256},
                   "pieces": [{file, bytes, sha256}], "sha256": of all that stands before it}
    piece_01 ...  the archive, cut
"""

import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from actvar.bundle.json_form import FormReader, write_json
from actvar.errors import BundleError
from actvar.files import FileEntry, hash_file, read_verified, written_whole

FORMAT, VERSION = "actvar-gpu-pieces", 1
MANIFEST_FILE, ARCHIVE_FILE = "pieces.json", "payload.tar.xz"
PREPARE_AGAIN = "Copy it again, or prepare the folder again with --prepare."

_MAX_PIECES = 99
_COMPRESSION: Final = 3  # of 9; 6 saves a tenth more, in five times the time
_BLOCK = 1 << 20


def pack(source: Path, folder: Path, limit: int) -> list[FileEntry]:
    """Write what is in a folder as pieces of at most `limit` bytes; pieces that are there are replaced.

    Raises:
        BundleError: there would be more than 99 pieces.
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / MANIFEST_FILE, *folder.glob("piece_*")):
        old.unlink(missing_ok=True)
    archive = folder / ARCHIVE_FILE
    with tarfile.open(archive, "w:xz", preset=_COMPRESSION) as tar:
        for path in sorted(source.iterdir()):
            tar.add(path, path.name)
    whole = hash_file(archive)
    if whole.bytes > limit * _MAX_PIECES:
        raise BundleError(f"{whole.bytes} bytes are more than {_MAX_PIECES} pieces of {limit}. Allow larger pieces.")
    with archive.open("rb") as file:
        pieces = [hash_file(path) for path in _cut(file, folder, limit)]
    archive.unlink()
    content = {"archive": asdict(whole), "pieces": [asdict(piece) for piece in pieces]}
    write_json(folder / MANIFEST_FILE, {"format": FORMAT, "version": VERSION, **content})
    return pieces


def unpack(folder: Path, target: Path) -> None:
    """Join the pieces and unpack them into a new folder.

    Raises:
        BundleError: a piece or the manifest is missing or is not what was written; the message names it. The target is
            there, or the archive reaches out of it.
        OSError: the target cannot be written.
    """
    whole, pieces = _Reader(folder / MANIFEST_FILE, PREPARE_AGAIN).manifest()
    if target.exists():
        raise BundleError(f"{target} is there already. Remove it, or name another folder.")
    archive = folder / ARCHIVE_FILE
    try:
        with written_whole(archive) as joined:
            for piece in pieces:
                read_verified(folder / piece.file, piece, PREPARE_AGAIN, joined.write)
        read_verified(archive, whole, PREPARE_AGAIN)
        with tarfile.open(archive, "r:xz") as tar:
            _extract(tar, target)
    except tarfile.TarError as error:
        raise BundleError(f"{folder} cannot be unpacked: {error}. {PREPARE_AGAIN}") from None
    finally:
        archive.unlink(missing_ok=True)


def _extract(tar: tarfile.TarFile, target: Path) -> None:
    """All of it, and nothing outside the target. Python has a filter for that from 3.10.12 and 3.11.4 on.

    Raises:
        TarError: something would lie outside, or, where there is no filter, is no plain file.
    """
    if hasattr(tarfile, "data_filter"):
        tar.extractall(target, filter="data")
        return
    for member in tar.getmembers():
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
            raise tarfile.TarError(f"{member.name} is no plain file inside the archive")
    tar.extractall(target)


def _cut(file: BinaryIO, folder: Path, limit: int) -> Iterator[Path]:
    """The pieces of a file, each written before the next begins."""
    number = 0
    while block := file.read(min(_BLOCK, limit)):
        number, left = number + 1, limit
        path = folder / f"piece_{number:02d}"
        with path.open("wb") as piece:
            while block:
                piece.write(block)
                left -= len(block)
                block = file.read(min(_BLOCK, left))
        yield path


class _Reader(FormReader):
    """Holds the manifest to its form."""

    def manifest(self) -> tuple[FileEntry, list[FileEntry]]:
        """The archive and its pieces."""
        data = self.of_format(self.load(), FORMAT, VERSION)
        _, _, archive, pieces, _ = self.fields("the manifest", data, "format version archive pieces sha256")
        if not isinstance(pieces, list) or not 1 <= len(pieces) <= _MAX_PIECES:
            raise self.refuse("pieces", f"a list of 1 to {_MAX_PIECES} files", pieces)
        self.check_hash(data)
        names = "file bytes sha256"
        return self.entry("archive", self.fields("archive", archive, names), ARCHIVE_FILE), [
            self.entry(f"pieces[{i}]", self.fields(f"pieces[{i}]", piece, names), f"piece_{i + 1:02d}")
            for i, piece in enumerate(pieces)
        ]
