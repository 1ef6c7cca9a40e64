"""A bundle's graphs, changed as somebody who knows ONNX would, with hashes that fit."""

import random
from pathlib import Path

import onnx

from actvar.benchmarks.fuzz.bundles import read, samples
from actvar.benchmarks.fuzz.onnx_changes import CHANGES
from actvar.benchmarks.fuzz.signatures import sign_bundle

__all__ = ["mutate", "read", "samples"]

RUNS_GRAPHS = True  # which may need more memory than there is


def mutate(path: Path, rng: random.Random) -> None:
    """Change one or two places of a graph, and put the hashes right."""
    file = rng.choice(sorted(path.glob("*.onnx")))
    model = onnx.load(file, load_external_data=False)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(CHANGES)(model, rng)
    file.write_bytes(model.SerializeToString())
    sign_bundle(path)
