"""Step: the bundles that other steps need, one case for each; what is there stays.

mini-fp32 and mini-fp16 are ActVAR-mini, the second with the plans that need no GPU to be built. The others are graphs
of presets without weights: who times them binds random ones.
"""

import os
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from actvar.benchmarks.gpu.case import Places, Report
from actvar.benchmarks.gpu.steps import ACTIVE, ANSWERED
from actvar.benchmarks.gpu.ways import AHEAD, OPTIONS, WAYS
from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import shipped_checkpoint
from actvar.checkpoint.model import load_model
from actvar.config import PRESETS, Activation
from actvar.export.onnx_export import export_bundle, export_graphs
from actvar.export.plans.builder import build_plans


def run(case: str, places: Places, report: Report) -> None:
    """Make one of them, where it is missing."""
    bundle, began = places.bundle(case), time.monotonic()
    report.add(was_there=bundle.exists())
    if not bundle.exists():
        _export(case, bundle)
    read_manifest(bundle)
    report.add(exported_seconds=round(time.monotonic() - began, 2))
    for way in (WAYS[name] for name in AHEAD if case == ANSWERED):
        if find_spec(way.module):
            build_plans(bundle, way.target(), OPTIONS, jobs=os.cpu_count() or 1)
    report.add(seconds=round(time.monotonic() - began, 2))


def _export(name: str, bundle: Path) -> None:
    preset, *who, precision = name.split("-")
    if who:
        config = replace(PRESETS[preset], activation=Activation() if who == [ACTIVE] else None)
        export_graphs(config, bundle, precision, f"preset {preset}, no weights")
    else:
        checkpoint = shipped_checkpoint("actvar-mini")
        model = load_model(checkpoint.path, checkpoint.vqvae)
        export_bundle(model, bundle, precision, f"checkpoint {checkpoint.path.name}")
