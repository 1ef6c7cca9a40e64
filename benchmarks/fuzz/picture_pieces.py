"""The pieces of an evaluation's run, and its record."""

import io
import random
from pathlib import Path

import numpy as np

from actvar.benchmarks.fuzz.changes import change_file, change_json
from actvar.evaluation.picture_run import PIECE, RUN_FILE, Piece, RunSpec, open_run

_SIDE, _COUNT = 4, 2 * PIECE + 20
_SPEC = RunSpec("00", "dense", "fp32", "onnxruntime", "cpu", 5, _SIDE, _COUNT, 0, 1.5, 900, 0.96)


def _drawn(piece: Piece) -> np.ndarray:
    """The pictures of a piece, as whatever draws would give them."""
    return np.random.default_rng(piece.first).integers(0, 256, (piece.count, _SIDE, _SIDE, 3), np.uint8)


def samples(folder: Path) -> list[Path]:
    """A run of three pieces."""
    run = open_run(folder / "run", _SPEC)
    for piece in run.pieces():
        run.save(piece, _drawn(piece))
    return [run.folder]


def mutate(path: Path, rng: random.Random) -> None:
    """Change the record, or a piece: its bytes, its pixels, or put another in its place."""
    pieces = sorted(path.glob("pictures-*"))
    kind = rng.randrange(10)
    if kind == 0:
        change_json(path / RUN_FILE, rng)
    elif kind == 1:
        change_file(path / RUN_FILE, rng)
    elif kind < 5:
        change_file(rng.choice(pieces), rng)
    else:
        change_pixels(rng.choice(pieces), pieces[0], rng)


def change_pixels(file: Path, other: Path, rng: random.Random) -> None:
    """Pixels, shape or type; or a copy of another piece."""
    content = file.read_bytes()
    kind = rng.randrange(4)
    if kind == 0:
        place = rng.randrange(128, 128 + _SIDE * _SIDE * 3 * 20)
        content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    elif kind == 1:
        content = other.read_bytes()
    else:
        pictures_NHW3 = np.load(file)
        changed = io.BytesIO()
        odd = (pictures_NHW3[::-1], pictures_NHW3 // 2, pictures_NHW3.astype(np.int8), pictures_NHW3.swapaxes(2, 3))
        np.save(changed, np.ascontiguousarray(rng.choice(odd)))
        content = changed.getvalue()
        if kind == 3:  # what follows the pixels stays
            content += file.read_bytes()[len(content) :]
    file.write_bytes(content)


def finish(path: Path) -> np.ndarray:
    """Draw what is missing, and read all pictures."""
    run = open_run(path, _SPEC)
    for piece in run.missing():
        run.save(piece, _drawn(piece))
    return np.concatenate(list(run.batches(7)))


def read(path: Path) -> None:
    """Draw what is missing; in the end the pictures must be those of the run."""
    found_NHW3 = finish(path)
    expected_NHW3 = np.concatenate([_drawn(piece) for piece in open_run(path, _SPEC).pieces()])
    if not np.array_equal(found_NHW3, expected_NHW3):
        raise AssertionError("pictures of another run were taken for this one's")
