"""The pieces of an evaluation's run whose hashes fit what was changed."""

import hashlib
import json
import random
from pathlib import Path

from actvar.benchmarks.fuzz.changes import change_json, changed_bytes
from actvar.benchmarks.fuzz.picture_pieces import change_pixels, finish, samples
from actvar.benchmarks.fuzz.signatures import sign_json
from actvar.bundle.json_form import HASH_FIELD
from actvar.evaluation.picture_run import RUN_FILE

__all__ = ["mutate", "read", "samples"]

_TRAILER = 72  # b"sha256 " + 64 digits + b"\n"


def mutate(path: Path, rng: random.Random) -> None:
    """Change the record or a piece, and put the hashes right."""
    pieces = sorted(path.glob("pictures-*"))
    if rng.random() < 0.4:
        change_json(path / RUN_FILE, rng)
        sign_json(path / RUN_FILE)
        return
    piece = rng.choice(pieces)
    if rng.random() < 0.4:
        piece.write_bytes(changed_bytes(piece.read_bytes(), rng))
    else:
        change_pixels(piece, pieces[0], rng)
    record = json.loads((path / RUN_FILE).read_bytes())[HASH_FIELD]
    content = piece.read_bytes()[:-_TRAILER]
    digest = hashlib.sha256(f"{record} {piece.name}\n".encode() + content).hexdigest()
    piece.write_bytes(content + f"sha256 {digest}\n".encode())


def read(path: Path) -> None:
    """Draw what is missing, and read all pictures."""
    finish(path)
