"""The chunks of a token store: two files for each, and of one that is not whole yet, pieces.

    tokens_<first>.npy    uint16 [rows, tokens] of the pictures from the first on
    tokens_<first>.json   their classes, those that were skipped, and a SHA-256 of all that and of the plan
    .piece_<first>-<end>  the same two files, of a part of a chunk that is being made

A record is written last: a chunk without it is not there. Every file is written whole or not at all, so chunks may be
made in any order, by many processes, and copied together from many machines. A store may come from anywhere: no file
is opened through a link, and none is read before its size is the one that the plan (`store_plan.py`) asks for.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actvar.bundle.json_form import HASH_FIELD, SHA256, FormReader
from actvar.data.npy import npy_header
from actvar.data.pictures import SkippedPicture
from actvar.data.store_plan import MAX_CLASSES, MAX_NAME, TOKEN_BYTES, StorePlan, is_there, names_in, unwritten
from actvar.errors import BundleError, DataError, counted, shown
from actvar.files import opened, written_whole

MAX_CODES = 1 << (8 * TOKEN_BYTES)
_DTYPE = np.dtype("<u2")
_BLOCK = 1 << 20
_RECORD = re.compile(r"tokens_(\d{8,13})\.json")
_PIECE = re.compile(r"\.piece_(\d{8,13})-(\d{8,13})\.json")
_OF_A_PIECE = re.compile(r"\.{1,2}piece_(\d{8,13})-.*")  # a temporary file has another dot before its name


@dataclass(frozen=True)
class ChunkRecord:
    """What is known of a chunk beside its tokens."""

    class_ids: list[int]
    skipped: list[SkippedPicture]


def chunk_path(folder: Path, chunk: range) -> Path:
    """Where a chunk's tokens lie."""
    return folder / f"tokens_{chunk.start:08d}.npy"


def recorded_chunks(folder: Path, plan: StorePlan) -> set[int]:
    """The first pictures of the chunks that have a record.

    Raises:
        DataError: the folder cannot be listed.
    """
    matches = (_RECORD.fullmatch(name) for name in names_in(folder))
    firsts = {int(match[1]) for match in matches if match}
    return {first for first in firsts if first % plan.chunk == 0 and first < plan.pictures}


def write_chunk(folder: Path, plan: StorePlan, chunk: range, rows: np.ndarray, record: ChunkRecord) -> None:
    """Write a chunk's two files.

    Raises:
        DataError: they cannot be written.
    """
    _write_rows(chunk_path(folder, chunk), plan, rows, record)


def read_record(folder: Path, plan: StorePlan, chunk: range, codes: int = MAX_CODES) -> ChunkRecord | None:
    """What is known of a chunk, once its tokens are found whole; None where it was not made yet.

    Args:
        folder: of the store.
        plan: of the store.
        chunk: the numbers of its pictures.
        codes: that the VQVAE has.

    Raises:
        DataError: a file was cut, altered, is no plain file, is of another store, or holds a token that is no code.
    """
    path = chunk_path(folder, chunk)
    advice = f"Remove {path.name} and {path.stem}.json, and give the same `encode` command again: it makes them anew."
    if not is_there(path.with_suffix(".json")):
        return None
    if not is_there(path):
        raise DataError(f"{path} is missing, and its .json is there. {advice}")
    return _read_rows(path, plan, chunk, advice, codes)


def map_rows(path: Path, rows: int, tokens: int) -> np.ndarray:
    """The token ids of a file that was found whole, mapped: the system keeps what fits, and drops the rest.

    Raises:
        DataError: it was replaced or cut since.
    """
    header = npy_header((rows, tokens), _DTYPE)
    advice = "Give the same command again, which checks all files first."
    try:
        with opened(path, advice) as file:
            if file.read(len(header)) == header:
                return np.memmap(file, _DTYPE, "r", len(header), (rows, tokens))
    except BundleError as error:
        raise DataError(str(error)) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} was cut while it was in use ({error}). {advice}") from None
    raise DataError(f"{path} was replaced while it was in use. {advice}")


# ---- pieces of a chunk that is being made


def write_piece(folder: Path, plan: StorePlan, numbers: range, rows: np.ndarray, record: ChunkRecord) -> None:
    """Keep a part of a chunk; errors are those of `write_chunk`."""
    _write_rows(_piece_path(folder, numbers), plan, rows, record)


def kept_pieces(folder: Path, plan: StorePlan, chunk: range) -> list[tuple[np.ndarray, ChunkRecord]]:
    """Tokens and records of a chunk's first pictures, as far as they were kept without a gap and are whole."""
    found: list[tuple[np.ndarray, ChunkRecord]] = []
    first = chunk.start
    for numbers in _pieces_of(folder, chunk):
        path = _piece_path(folder, numbers)
        if numbers.start != first:
            continue
        try:
            record = _read_rows(path, plan, numbers, "", MAX_CODES)
            rows = np.array(map_rows(path, len(numbers) * plan.views, plan.tokens))
        except DataError:  # as if it had not been kept
            break
        found.append((rows, record))
        first = numbers.stop
    return found


def remove_pieces(folder: Path, chunk: range) -> None:
    """Once the chunk itself is there.

    Raises:
        DataError: the folder cannot be changed.
    """
    try:
        for match in filter(None, map(_OF_A_PIECE.fullmatch, list(names_in(folder)))):
            if int(match[1]) in chunk:
                (folder / match[0]).unlink(missing_ok=True)
    except OSError as error:
        raise unwritten(folder, error) from None


def _piece_path(folder: Path, numbers: range) -> Path:
    return folder / f".piece_{numbers.start:08d}-{numbers.stop:08d}.npy"


def _pieces_of(folder: Path, chunk: range) -> list[range]:
    matches = (_PIECE.fullmatch(name) for name in names_in(folder))
    pieces = [range(int(match[1]), int(match[2])) for match in matches if match]
    inside = [numbers for numbers in pieces if numbers and numbers[0] in chunk and numbers[-1] in chunk]
    return sorted(inside, key=lambda numbers: (numbers.start, -numbers.stop))


# ---- two files: tokens, and the record that vouches for them


def _write_rows(path: Path, plan: StorePlan, rows: np.ndarray, record: ChunkRecord) -> None:
    content = io.BytesIO()
    np.save(content, rows.astype(_DTYPE, copy=False), allow_pickle=False)
    label = asdict(record)
    label[HASH_FIELD] = _finished(hashlib.sha256(content.getvalue()), plan, label)
    try:
        with written_whole(path) as file:
            file.write(content.getvalue())
        with written_whole(path.with_suffix(".json")) as file:
            file.write(json.dumps(label).encode())
    except OSError as error:
        raise unwritten(path, error) from None


def _read_rows(path: Path, plan: StorePlan, numbers: range, advice: str, codes: int) -> ChunkRecord:
    record, label = _RecordReader(path.with_suffix(".json"), advice, DataError, "is damaged").record(numbers)
    expected = label.pop(HASH_FIELD)
    header = npy_header((len(numbers) * plan.views, plan.tokens), _DTYPE)
    size = len(header) + len(numbers) * plan.views * plan.tokens * TOKEN_BYTES
    said = f"{path} or its .json was cut, altered or comes from another store: expected"
    try:
        with opened(path, advice) as file:
            if (there := os.fstat(file.fileno()).st_size) != size:
                raise DataError(f"{said} {size} bytes, found {there}. {advice}")
            digest, most = hashlib.sha256(file.read(len(header))), 0
            as_planned = digest.digest() == hashlib.sha256(header).digest()
            while block := file.read(_BLOCK):
                digest.update(block)
                most = max(most, int(np.frombuffer(block, _DTYPE).max()))
    except BundleError as error:
        raise DataError(str(error)) from None
    except (OSError, ValueError) as error:  # the latter of half a number: the file was cut meanwhile
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}. {advice}") from None
    if (found := _finished(digest, plan, label)) != expected:
        raise DataError(f"{said} SHA-256 {expected[:12]}…, found {found[:12]}…. {advice}")
    if not as_planned:
        raise DataError(f"{said} 16-bit numbers [{len(numbers) * plan.views}, {plan.tokens}]. {advice}")
    if most >= codes:
        raise DataError(f"{path} holds the token {most}, and the VQVAE has {counted(codes, 'code')}. {advice}")
    return record


class _RecordReader(FormReader):
    """Holds the `.json` beside tokens to its form."""

    def record(self, numbers: range) -> tuple[ChunkRecord, dict[str, Any]]:
        """What it says of these pictures, and its fields as they are."""
        data = self.load()
        class_ids, skipped, sha256 = self.fields("the record", data, f"class_ids skipped {HASH_FIELD}")
        self.matching(HASH_FIELD, sha256, SHA256, "64 hexadecimal digits")
        ids = self.items("class_ids", class_ids, len(numbers), len(numbers))
        pictures = [self.skipped(item, numbers) for item in self.items("skipped", skipped, 0, len(numbers))]
        if len({picture.number for picture in pictures}) < len(pictures):
            raise self.refuse("skipped", "of different numbers", [picture.number for picture in pictures])
        return ChunkRecord([self.integer("class_ids", each, 0, MAX_CLASSES - 1) for each in ids], pictures), data

    def skipped(self, item: Any, numbers: range) -> SkippedPicture:
        """One picture; its name and the reason are for people."""
        number, name, reason = self.fields("skipped", item, "number name reason")
        if not isinstance(name, str) or not isinstance(reason, str):
            raise self.refuse("skipped", "of a name and a reason", item)
        number = self.integer("skipped.number", number, numbers.start, numbers.stop - 1)
        return SkippedPicture(number, shown(name, MAX_NAME), shown(reason, MAX_NAME))


def _finished(digest: "hashlib._Hash", plan: StorePlan, label: Mapping[str, Any]) -> str:
    """SHA-256 of tokens, which the digest has seen, of classes and skips, and of the store that they belong to."""
    digest.update(json.dumps(label, sort_keys=True).encode())
    digest.update(plan.text.encode())
    return digest.hexdigest()
