"""The plans of a bundle with hashes that fit what was changed."""

import random
from pathlib import Path

from actvar.benchmarks.fuzz.changes import change_file, change_json
from actvar.benchmarks.fuzz.plans import read, samples
from actvar.benchmarks.fuzz.signatures import sign_plans
from actvar.bundle.manifest import MANIFEST_FILE, PLANS_FOLDER

__all__ = ["mutate", "read", "samples"]


def mutate(path: Path, rng: random.Random) -> None:
    """Change a manifest, a plan or a log, and put the hashes right."""
    folder = rng.choice(sorted((path / PLANS_FOLDER).iterdir()))
    if rng.random() < 0.8:
        change_json(folder / MANIFEST_FILE, rng)
    else:
        change_file(rng.choice(sorted(folder.glob("*.[pl]*"))), rng)
    sign_plans(folder)
