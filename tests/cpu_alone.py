"""What a bundle that is for ONNX Runtime on a CPU alone is not for."""

from pathlib import Path

import pytest

from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import PlanOptions
from actvar.errors import BundleError
from actvar.export.plans.builder import build_plans
from actvar.export.plans.engine_library import PlanTarget
from actvar.runtime.backends import ort, trt


def is_refused_elsewhere(folder: Path, precision: str) -> None:
    """By ONNX Runtime on a GPU, by TensorRT, and by who would build plans of it; each says in which precision it is."""
    manifest = read_manifest(folder)
    with pytest.raises(BundleError, match=f"is in {precision}, which is for the CPU alone"):
        ort.load(folder, manifest, device="cuda")
    with pytest.raises(BundleError, match=f"is in {precision}, which is for ONNX Runtime on a CPU"):
        trt.load(folder, manifest)
    with pytest.raises(BundleError, match=f"is in {precision}, which is for ONNX Runtime on a CPU"):
        build_plans(folder, PlanTarget("tensorrt-rtx", "1.7", ("8.9",)), PlanOptions())
