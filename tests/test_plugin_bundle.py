"""The mini model's thirteen plans with our plugins in them, built by the real TensorRT-RTX, which needs no GPU for it.

What it took is said at the end of pytest's summary.
"""

import os
import time

import pytest
from plugin_build import built, plugin_library_path

from actvar.bundle.contract import ENCODER, graph_names
from actvar.bundle.plans import PlanOptions, plan_folder, read_plans
from actvar.checkpoint.files import shipped_checkpoint
from actvar.checkpoint.model import load_model
from actvar.export.onnx_export import export_graphs
from actvar.export.plans.builder import build_plans
from actvar.export.plans.engine_library import choose_target
from actvar.plugins.library import PLUGIN_VARIABLE

MOST_BYTES = 30 * 10**6  # of a library, whatever it was built for
JOBS = 2


@pytest.mark.slow
def test_the_mini_model_builds_with_a_plugin_for_every_operator_of_ours(tmp_path, monkeypatch, record_property):
    """In each block of the two active scales one selection and one routed FFN, and what moves tokens between them; none
    elsewhere, and no operator without its plugin."""
    pytest.importorskip("tensorrt_rtx", reason="builds plans by TensorRT-RTX: pip install tensorrt-rtx")
    library = plugin_library_path()
    monkeypatch.setenv(PLUGIN_VARIABLE, str(library))
    checkpoint = shipped_checkpoint("actvar-mini")
    model = load_model(checkpoint.path, checkpoint.vqvae).config
    export_graphs(model, tmp_path, "fp16", "a test")

    began = time.perf_counter()
    target = choose_target("tensorrt-rtx", ("8.9",))
    build_plans(tmp_path, target, PlanOptions(), jobs=JOBS)
    seconds = time.perf_counter() - began

    plans = read_plans(plan_folder(tmp_path, target)).plans
    assert tuple(plans) == (*graph_names(model), ENCODER) and len(plans) == 13
    for graph, plan in plans.items():
        in_network = plan.layers.get("PLUGIN_V3", 0)
        assert in_network == sum(plan.plugins.values()) and plan.bodies == {}
        if graph not in ("scale_09", "scale_10"):
            assert in_network == 0
            continue
        assert plan.plugins["ActVarTokenSelect"] == plan.plugins["ActVarRoutedFFN"] == model.depth
        moved = in_network - 2 * model.depth
        assert moved >= 2 * model.depth and moved % model.depth == 0
    assert library.stat().st_size < MOST_BYTES

    plugins = sum(plan.layers.get("PLUGIN_V3", 0) for plan in plans.values())
    size = sum(plan.entry.bytes for plan in plans.values())
    record_property(
        "figure",
        f"mini model, fp16, {target.folder}: {len(plans)} plans with {plugins} plugins in {seconds:.0f} s "
        f"by {JOBS} processes on {os.cpu_count()} cores, {size / 1e6:.1f} MB",
    )
    record_property("figure", f"plugin library: {library.stat().st_size / 1e6:.1f} MB, {built().in_words}")
