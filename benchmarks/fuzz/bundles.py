"""Bundles: any of their files, as a bad disk or a wrong copy leaves it."""

import random
from dataclasses import replace
from pathlib import Path

from actvar.benchmarks.fuzz.changes import change_file
from actvar.benchmarks.fuzz.doors import through
from actvar.benchmarks.fuzz.models import teacher
from actvar.bundle.report import bundle_report
from actvar.config import Activation, Sampling
from actvar.export.onnx_export import export_bundle
from actvar.models.actvar import random_model
from actvar.reports import show
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
    change_file(rng.choice(sorted(path.iterdir())), rng)


def read(path: Path) -> None:
    """As a picture is drawn from it, by the graphs of all scales and by each scale's own; and as `inspect` does."""
    through(lambda: draw(path, "fastest"), lambda: draw(path, "each"), lambda: inspect(path))


def draw(path: Path, cpu_graph: Scales) -> None:
    """Draw one picture."""
    list(open_graphs(path, 1, 1, "cpu", cpu_graph).draw([Order(0, 0)], Sampling()))


def inspect(path: Path) -> None:
    """Show what is in it, and write that as JSON."""
    report = bundle_report(path)
    show(report.parts()).encode()
    report.to_json().encode()
