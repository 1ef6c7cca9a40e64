"""Finished cells of a study whose hashes fit what was changed."""

import json
import random
from pathlib import Path

from actvar.benchmarks.fuzz.changes import change_json
from actvar.benchmarks.fuzz.study_results import read, samples
from actvar.bundle.json_form import HASH_FIELD, content_hash

__all__ = ["mutate", "read", "samples"]


def mutate(path: Path, rng: random.Random) -> None:
    """Change one cell, and put its hash right."""
    file = rng.choice(sorted(path.iterdir()))
    change_json(file, rng)
    try:
        cell = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(cell, dict):
        fields = {name: value for name, value in cell.items() if name != HASH_FIELD}
        file.write_bytes(json.dumps({**fields, HASH_FIELD: content_hash(fields)}).encode())
