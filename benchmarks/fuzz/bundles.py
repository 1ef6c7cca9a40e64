"""Bundles: the manifest, the graphs, the weights."""

import random
from dataclasses import replace
from pathlib import Path

from actvar.benchmarks.fuzz.changes import change_file, change_json
from actvar.benchmarks.fuzz.models import teacher
from actvar.bundle.manifest import MANIFEST_FILE
from actvar.config import Activation, Sampling
from actvar.export.onnx_export import export_bundle
from actvar.models.actvar import random_model
from actvar.runtime.backends.protocol import Scales
from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_graphs


def samples(folder: Path) -> list[Path]:
    """An ActVAR's bundle, which has every graph and every operator."""
    active = replace(teacher().config, activation=Activation(4, (3, 4), (0.75, 0.5), (0.5, 0.5)))
    export_bundle(random_model(active), folder / "bundle", "fp32", "a sample")
    return [folder / "bundle"]


def mutate(path: Path, rng: random.Random) -> None:
    """Change one file."""
    file = rng.choice([path / MANIFEST_FILE, *sorted(path.iterdir())])
    if file.name == MANIFEST_FILE and rng.random() < 0.7:
        change_json(file, rng)
    else:
        change_file(file, rng)


def read(path: Path) -> None:
    """As a picture is drawn from it, by the graphs of all scales and by each scale's own."""
    graphs: tuple[Scales, ...] = ("fastest", "each")
    for cpu_graph in graphs:
        list(open_graphs(path, 1, 1, "cpu", cpu_graph).draw([Order(0, 0)], Sampling()))
