"""Step: the kernels' own benchmark, with masks that the mini model's router makes beside random ones."""

import json
import subprocess
import sys

from actvar.benchmarks.checkout import ROOT
from actvar.benchmarks.gpu.case import Departure, Places, Report, Skipped
from actvar.plugins.library import kernel_library

_COMMAND = (sys.executable, "-c", "from actvar.cli.main import main; main()", "bench", "kernels")


def run(case: str, places: Places, report: Report) -> None:
    """Record, run it, and take over its JSON."""
    if kernel_library() is None:
        raise Skipped("The kernels are not built here, and no library of them was carried.")
    routing, out = places.work / "routing.npy", places.work / "kernels"
    recorder = [sys.executable, str(ROOT / "benchmarks" / "kernel_routing.py"), "--out", str(routing)]
    recorded = subprocess.run(recorder, check=False).returncode == 0
    report.add(recorded_masks=recorded)
    done = subprocess.run(
        [*_COMMAND, "--out", str(out), *(["--routing", str(routing)] if recorded else [])], check=False
    )
    figures = out / "kernels.json"
    if figures.exists():
        report.add(kernels=json.loads(figures.read_bytes()))
    if done.returncode:
        raise Departure(f"actvar-trt bench kernels ended with {done.returncode}.")
