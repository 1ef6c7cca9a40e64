"""A bundle's manifest, as text and as a value."""

import random
from pathlib import Path

from actvar.benchmarks.fuzz.bundles import read, samples
from actvar.benchmarks.fuzz.changes import change_file, change_json
from actvar.bundle.manifest import MANIFEST_FILE

__all__ = ["mutate", "read", "samples"]


def mutate(path: Path, rng: random.Random) -> None:
    """Change the manifest."""
    change = change_file if rng.random() < 0.5 else change_json
    change(path / MANIFEST_FILE, rng)
