"""A run: the numbered pictures of one model under one setting, in files of fifty that outlive whatever draws them.

    run.json               what is drawn (`RunSpec`); a folder that says otherwise is refused
    pictures-000000.npy    uint8 [50, H, W, 3], pictures 0 to 49, there whole or not at all; after them, in a line of
                           its own, the SHA-256 of the run, the file's name and all that stands before it
    pictures-000050.npy    and so on; the last may be shorter

A file that is not what its hash says, is another run's or another piece's, or no plain file, counts as not there.

A picture follows from its number: classes come in turn, all or those that are asked for, and (seed, number) decides
what is random in it. So any process may draw any of the files, on any machine, and the folder is the same in the end.

Knows numbers and files; not what draws. Plain numpy: no PyTorch.

Letters in shapes: N pictures, H W pixels down and across, 3 red green blue.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actvar.bundle.json_form import FormReader, content_hash, write_json
from actvar.data.npy import npy_header
from actvar.errors import ActVARError, counted, shown
from actvar.evaluation.picture_sets import Shape
from actvar.files import content_of, opened, written_whole

FORMAT, VERSION = "actvar-picture-run", 2
RUN_FILE = "run.json"
PIECE = 50
"""Pictures of a file: what a kill costs at most."""

_NOT_SAID = "not given"

Shard = tuple[int, int]
"""(i, n): every n-th file from the i-th on, counted from 0; the part of a run that one process draws."""
WHOLE: Shard = (0, 1)


@dataclass(frozen=True)
class RunSpec:
    """All that decides the pictures of a run, and who drew them.

    Attributes:
        weights: SHA-256 of the file, or files, that hold them.
        activation: which tokens and experts work, in words; "dense" for a VAR.
        precision, backend, device: of what draws.
        classes: how many the model has; pictures go through them in turn.
        side: of a picture, in pixels.
        count: pictures in all.
        class_ids: those that pictures go through, if not all; the number after the last class is none.
        smooth: whether codes are mixed.
    """

    weights: str
    activation: str
    precision: str
    backend: str
    device: str
    classes: int
    side: int
    count: int
    seed: int
    cfg: float
    top_k: int
    top_p: float
    class_ids: tuple[int, ...] = field(default=(), kw_only=True)
    smooth: bool = field(default=False, kw_only=True)

    @property
    def record(self) -> dict[str, Any]:
        """As it stands in `run.json`; 2 and 2.0 are one strength of guidance, and must have one hash.

        `class_ids` and `smooth` are left out where they are empty and false, as they were when nothing else was drawn.
        """
        fields = {**asdict(self), "cfg": float(self.cfg), "top_p": float(self.top_p), "class_ids": list(self.class_ids)}
        if not self.class_ids:
            del fields["class_ids"]
        if not self.smooth:
            del fields["smooth"]
        return {"format": FORMAT, "version": VERSION, **fields}

    @property
    def drawn_classes(self) -> int:
        """How many classes pictures go through."""
        return len(self.class_ids) or self.classes

    @property
    def knows_classes(self) -> bool:
        """Whether every picture is of a class."""
        return self.classes not in self.class_ids

    def class_of(self, number: int) -> int:
        """The classes in turn, so that any stretch of pictures holds as many of each, or one more."""
        return self.class_ids[number % len(self.class_ids)] if self.class_ids else number % self.classes


@dataclass(frozen=True)
class Piece:
    """The pictures of one file."""

    first: int
    count: int

    @property
    def numbers(self) -> range:
        """Of its pictures."""
        return range(self.first, self.first + self.count)

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return f"pictures-{self.first:06d}.npy"


@dataclass(frozen=True)
class NumberedRun:
    """A run in its folder, whatever the form of its files: which of them there are, and which are whole."""

    folder: Path
    spec: RunSpec
    _known: dict[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    """Files that were found whole, and what the system said of them then: 50,000 pictures are 10 GB to look at."""

    @property
    def shape(self) -> Shape:
        """N, H, W, 3."""
        return self.spec.count, self.spec.side, self.spec.side, 3

    @property
    def piece_size(self) -> int:
        """Pictures of a file; the last may hold fewer."""
        return PIECE

    def pieces(self, shard: Shard = WHOLE) -> tuple[Piece, ...]:
        """All files of the run, or of a shard."""
        count, size, (index, shards) = self.spec.count, self.piece_size, shard
        firsts = range(0, count, size)[index::shards]
        return tuple(Piece(first, min(size, count - first)) for first in firsts)

    def missing(self, shard: Shard = WHOLE) -> tuple[Piece, ...]:
        """Those of the files that are not there, or not whole."""
        return tuple(piece for piece in self.pieces(shard) if not self._is_whole(piece))

    def kept(self, shard: Shard | None = None) -> int:
        """Pictures of the run that are there, by the names of their files, which they have when they are whole.

        The files of a shard are looked into, too. Those of the others are not: their processes know, and a run of
        50,000 pictures would be read for a number.
        """
        lost = set(self.missing(shard)) if shard else set()
        return sum(piece.count for piece in self.pieces() if piece not in lost and self._found(piece))

    def save(self, piece: Piece, pictures_NHW3: np.ndarray) -> None:
        """Write one file, under a temporary name first.

        Raises:
            ActVARError: it cannot be written; what was written before stays.
        """
        try:
            self._write(piece, np.ascontiguousarray(pictures_NHW3, np.uint8))
            self._known[piece.file] = self._state(piece)
        except OSError as error:
            raise ActVARError(
                f"{self.folder / piece.file} cannot be written: {error.strerror or error}. {self.kept()} of "
                f"{counted(self.spec.count, 'picture')} are kept there: make room, and give the same command again."
            ) from None

    def _found(self, piece: Piece) -> tuple[int, ...] | None:
        """The state of a file; None if it is not there."""
        try:
            return self._state(piece)
        except OSError:
            return None

    def _is_whole(self, piece: Piece) -> bool:
        if (state := self._found(piece)) is None:
            return False
        if self._known.get(piece.file) != state:
            if not self._holds(piece):
                return False
            self._known[piece.file] = state
        return True

    def _write(self, piece: Piece, pictures_NHW3: np.ndarray) -> None:
        """Write one file, there whole or not at all; an OSError says why not."""
        raise NotImplementedError

    def _holds(self, piece: Piece) -> bool:
        """Whether a file holds the pictures of this piece of this run."""
        raise NotImplementedError

    def _state(self, piece: Piece) -> tuple[int, ...]:
        """What changes with a file; an OSError says that it is not there."""
        return file_state(self.folder / piece.file)


@dataclass(frozen=True)
class PictureRun(NumberedRun):
    """A run of .npy files; its pictures are a `PictureSet` when all of them are there."""

    def batches(self, at_once: int) -> Iterator[np.ndarray]:
        """See `actvar.evaluation.picture_sets.PictureSet`; a batch ends where a file does.

        Raises:
            ActVARError: a file is missing or not whole.
        """
        for piece in self.pieces():
            pictures_NHW3 = self._read(piece)
            if pictures_NHW3 is None:
                path = self.folder / piece.file
                raise ActVARError(f"{path} is missing or not whole. Give the command that draws again.")
            for first in range(0, piece.count, at_once):
                yield pictures_NHW3[first : first + at_once]

    def _write(self, piece: Piece, pictures_NHW3: np.ndarray) -> None:
        pixels = pictures_NHW3.data.cast("B")
        with written_whole(self.folder / piece.file) as file:
            file.write(self._header(piece))
            file.write(pixels)
            file.write(self._seal(piece, pixels))

    def _holds(self, piece: Piece) -> bool:
        return self._read(piece) is not None

    def _read(self, piece: Piece) -> np.ndarray | None:
        """The pictures of a file, if they are those of this piece of this run."""
        header, pixels = self._header(piece), piece.count * self.spec.side**2 * 3
        try:
            with opened(self.folder / piece.file) as file:
                if os.fstat(file.fileno()).st_size != len(header) + pixels + _SEAL:
                    return None
                content = memoryview(file.read())
        except (ActVARError, OSError):
            return None
        between = content[len(header) : len(header) + pixels]
        if content[: len(header)] != header or content[len(header) + pixels :] != self._seal(piece, between):
            return None
        return np.frombuffer(between, np.uint8).reshape(piece.count, *self.shape[1:])

    def _header(self, piece: Piece) -> bytes:
        return npy_header((piece.count, *self.shape[1:]), np.uint8)

    def _seal(self, piece: Piece, pixels: memoryview) -> bytes:
        """What stands behind the pixels, and is of them alone: readers of .npy look no further than the pixels."""
        digest = hashlib.sha256(f"{content_hash(self.spec.record)} {piece.file}\n".encode())
        digest.update(self._header(piece))
        digest.update(pixels)
        return f"sha256 {digest.hexdigest()}\n".encode()


_SEAL = len("sha256 \n") + 64


def file_state(path: Path) -> tuple[int, ...]:
    """What changes with a file."""
    found = path.lstat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def open_run(folder: Path, spec: RunSpec) -> PictureRun:
    """The run of a folder, new or begun; errors are those of `begin_run`."""
    begin_run(folder, spec)
    return PictureRun(folder, spec)


def begin_run(folder: Path, spec: RunSpec) -> None:
    """Make the folder of a run and its record, or hold the record that is there to what is to be drawn.

    Raises:
        ActVARError: the folder holds another run, or something else, or cannot be written.
    """
    path = folder / RUN_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            strangers = content_of(folder)
            if strangers and not path.exists():  # if it is there now, another shard has begun the run meanwhile
                raise ActVARError(
                    f"{folder} holds {strangers[0]} and no {RUN_FILE}, so it is no run. Name another with --out."
                )
            write_json(path, spec.record)
    except OSError as error:
        where = error.filename or folder
        raise ActVARError(f"{where} cannot be written: {error.strerror}. Name another folder with --out.") from None
    _require_same(path, spec)


def _require_same(path: Path, spec: RunSpec) -> None:
    reader = FormReader(path, "Name another folder with --out.", ActVARError)
    found, wanted = reader.load(), spec.record
    if isinstance(found, dict) and found.get("format") == FORMAT and found.get("version") == 1:
        raise ActVARError(
            f"{path.parent} was drawn by an earlier version, whose pictures have no hash: nobody can tell whether they "
            "are those that were drawn. Name another folder with --out, or have that version end it."
        )
    reader.check_hash(reader.of_format(found, wanted["format"], wanted["version"]))
    for name in asdict(spec):
        theirs, mine = (record.get(name, _NOT_SAID) for record in (found, wanted))
        if theirs != mine:
            raise ActVARError(
                f"{path.parent} holds pictures of another run: {name} is {shown(str(theirs), 80)} there, and "
                f"{shown(str(mine), 80)} here. Name another folder with --out, or give the options of that run."
            )
