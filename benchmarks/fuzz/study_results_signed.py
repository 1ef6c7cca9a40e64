"""Finished cells of a study whose hashes fit what was changed."""

import random
from pathlib import Path

from actvar.benchmarks.fuzz.changes import change_json
from actvar.benchmarks.fuzz.signatures import sign_json
from actvar.benchmarks.fuzz.study_results import read, samples

__all__ = ["mutate", "read", "samples"]


def mutate(path: Path, rng: random.Random) -> None:
    """Change one cell, and put its hash right."""
    file = rng.choice(sorted(path.iterdir()))
    change_json(file, rng)
    sign_json(file)
