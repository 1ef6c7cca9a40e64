"""A bundle's graphs, changed as bytes, with hashes that fit."""

import random
from pathlib import Path

from actvar.benchmarks.fuzz.bundles import read, samples
from actvar.benchmarks.fuzz.changes import change_file
from actvar.benchmarks.fuzz.signatures import sign_bundle

__all__ = ["mutate", "read", "samples"]

RUNS_GRAPHS = True  # which may need more memory than there is


def mutate(path: Path, rng: random.Random) -> None:
    """Change one graph, and put the hashes right."""
    change_file(rng.choice(sorted(path.glob("*.onnx"))), rng)
    sign_bundle(path)
