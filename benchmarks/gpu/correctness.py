"""Steps: the mini model on this GPU, by TensorRT and by ONNX Runtime's CUDA provider.

Token by token against ONNX Runtime on the CPU. By TensorRT also graph by graph against PyTorch, and whether anything
depends on how a picture is drawn: recorded or not, beside another batch or alone, or which time.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from actvar.benchmarks.gpu.case import Departure, Places, Report, Skipped, the_gpu
from actvar.benchmarks.gpu.drawing import agreement, all_equal, drawn, orders, same_bytes
from actvar.benchmarks.gpu.ways import way_that_ran, with_plans
from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import shipped_checkpoint
from actvar.checkpoint.model import load_model
from actvar.export.parity.check import check_parity
from actvar.runtime.backends import trt
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_engines, open_graphs

_BATCH, _PICTURES, _REPEATS = 4, 8, 20


def run(case: str, places: Places, report: Report) -> None:
    """Compare in one precision."""
    gpu, way = the_gpu(), way_that_ran(places)
    bundle = with_plans(places.bundle(f"mini-{case}"), way, gpu, places.scratch / "correctness")
    report.add(engine=way.engine, built_for=list(way.target(gpu).gpus))
    engines = open_engines(bundle, _BATCH)
    faults = [*_chain(case, engines, bundle, report), *_stays_the_same(engines, bundle, report)]
    checkpoint = shipped_checkpoint("actvar-mini")
    parity = check_parity(load_model(checkpoint.path, checkpoint.vqvae), engines, _PICTURES, engine=way.engine)
    report.add(parity=json.loads(parity.to_json()), parity_verdict=parity.verdict)
    faults += [] if parity.passed else [parity.verdict]
    if faults:
        raise Departure(" ".join(faults))


def _chain(case: str, engines: GraphSource, bundle: Path, report: Report) -> list[str]:
    """Whole pictures: in fp32 every token must be ONNX Runtime's; in fp16 one early flip changes all after it."""
    graphs = open_graphs(bundle, _BATCH, threads=0)
    what = orders(graphs.model, _PICTURES)
    found = agreement(drawn(engines, what), drawn(graphs, what))
    report.add(chain=found)
    return ["Whole pictures draw other tokens than ONNX Runtime's."] if case == "fp32" and not all_equal(found) else []


def _stays_the_same(engines: GraphSource, bundle: Path, report: Report) -> list[str]:
    """The same bytes, twenty times; a lane's first two chains are run, and recorded from then on."""
    what = orders(engines.model, _PICTURES)
    fresh = replace(engines, engine=trt.load(bundle, read_manifest(bundle), _BATCH))
    times = [drawn(fresh, what) for _ in range(_REPEATS)]
    report.add(repeats=_REPEATS, repeats_equal=[same_bytes(again, times[0]) for again in times])
    one_lane = replace(engines, engine=trt.load(bundle, read_manifest(bundle), _BATCH, lanes=1))
    report.add(lanes=fresh.engine.lanes, one_lane_equal=same_bytes(drawn(one_lane, what), times[0]))
    alone = [picture for order in what for picture in drawn(replace(one_lane, batch_size=1), [order])]
    report.add(alone_agreement=agreement(alone, times[0]))
    faults = []
    if not all(same_bytes(again, times[0]) for again in times):
        faults.append("The same pictures drawn again, run or recorded, are not the same bytes.")
    if not same_bytes(drawn(one_lane, what), times[0]):
        faults.append("Two lanes do not draw what one draws.")
    return faults


def cuda_provider(case: str, places: Places, report: Report) -> None:
    """Compare whole pictures in fp32."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's libraries, from the packages that PyTorch brought
    report.add(onnxruntime=onnxruntime.__version__, providers=onnxruntime.get_available_providers())
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Skipped("ONNX Runtime has no CUDA provider here. Install onnxruntime-gpu in place of onnxruntime.")
    graphs, on_gpu = (open_graphs(places.bundle(f"mini-{case}"), _BATCH, 0, device) for device in ("cpu", "cuda"))
    what = orders(graphs.model, _PICTURES)
    began = time.monotonic()
    pictures = drawn(on_gpu, what)
    report.add(opened_and_drawn_seconds=round(time.monotonic() - began, 2))
    found = agreement(pictures, drawn(graphs, what))
    report.add(chain=found)
    if not all_equal(found):
        raise Departure("Whole pictures draw other tokens on the GPU than on the CPU.")
