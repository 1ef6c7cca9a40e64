"""Step: the kernels' own benchmark, if this version has one (`actvar-trt bench kernels`)."""

import json
import subprocess
import sys

from gpu.case import Departure, Places, Report, Skipped

_COMMAND = (sys.executable, "-c", "from actvar.runtime.cli import main; main()", "bench", "kernels")


def run(case: str, places: Places, report: Report) -> None:
    """Run it, and take over its JSON."""
    if "kernels" not in subprocess.run([*_COMMAND[:-1], "--help"], capture_output=True, text=True, check=False).stdout:
        raise Skipped("This version has no `actvar-trt bench kernels`.")
    figures = places.work / "kernels.json"
    done = subprocess.run([*_COMMAND, "--json", str(figures)], check=False)
    if figures.exists():
        report.add(kernels=json.loads(figures.read_bytes()))
    if done.returncode:
        raise Departure(f"actvar-trt bench kernels ended with {done.returncode}.")
