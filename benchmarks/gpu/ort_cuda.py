"""Step: the mini model through ONNX Runtime's CUDA provider, token by token against its CPU.

The build with CUDA lies in a folder of its own, as two builds of one module must not be installed together.
"""

import sys
import time

from actvar.benchmarks.gpu.case import Departure, Places, Report, Skipped
from actvar.benchmarks.gpu.drawing import agreement, all_equal, drawn, orders
from actvar.runtime.sources import open_graphs

SITE = "site-onnxruntime-gpu"
BUNDLE = "mini-fp32"
_BATCH, _PICTURES = 4, 8


def run(case: str, places: Places, report: Report) -> None:
    """Compare in fp32."""
    site = places.work / SITE
    if not site.is_dir():
        raise Skipped("No wheel of onnxruntime-gpu was carried.")
    sys.path.insert(0, str(site))
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's libraries, from the packages that PyTorch brought
    report.add(onnxruntime=onnxruntime.__version__, providers=onnxruntime.get_available_providers())
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Skipped("The onnxruntime-gpu that was carried has no CUDA provider here.")
    bundle = places.bundle(BUNDLE)
    graphs, on_gpu = (open_graphs(bundle, _BATCH, 0, device) for device in ("cpu", "cuda"))
    what = orders(graphs.model, _PICTURES)
    began = time.monotonic()
    pictures = drawn(on_gpu, what)
    report.add(opened_and_drawn_seconds=round(time.monotonic() - began, 2))
    report.add(chain=agreement(pictures, drawn(graphs, what)))
    if not all_equal(agreement(pictures, drawn(graphs, what))):
        raise Departure("Whole pictures draw other tokens on the GPU than on the CPU.")
