"""Steps: kernels in processes that a tool watches: compute-sanitizer for wrong accesses and races, ncu for shares."""

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from actvar.benchmarks.gpu.case import Departure, Places, Report, Skipped
from actvar.benchmarks.gpu.kernel_runs import PROFILED
from actvar.benchmarks.gpu.project import built_kernels

CHECKED = {
    "memcheck": (
        "select",
        "gather",
        "scatter",
        "gather + norm",
        "gate + scatter",
        "order",
        "routed ffn, float32, M = 70",
        "routed ffn, float16, M = 70",
        "routed ffn, float16, M = 1100",
        "routed ffn, bfloat16, M = 1100",
    ),
    "racecheck": ("gather + norm", "order", "routed ffn, float16, M = 70"),
}
"""Runs of `kernel_runs.py`, by tool: racecheck takes longest, and looks at shared memory alone."""

METRICS = {
    "issue": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "tensor_pipe": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "memory": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
"""Shares of the peak, in per cent."""

_FOUND = 9  # compute-sanitizer's exit code, as we ask for it
_LINES = 40


def sanitizer(case: str, places: Places, report: Report) -> None:
    """One of its tools."""
    built_kernels()
    done = _watched("compute-sanitizer", ["--tool", case, "--error-exitcode", str(_FOUND)], CHECKED[case])
    lines = (done.stdout + done.stderr).strip().splitlines()
    report.add(runs=list(CHECKED[case]), exit_code=done.returncode, output=lines[-_LINES:])
    said = [line for line in lines if "SUMMARY" in line]
    if done.returncode == _FOUND:
        raise Departure(f"{case} found something: {said[-1] if said else 'see the output'}.")
    if done.returncode or not said:
        raise Departure(f"compute-sanitizer ended with {done.returncode} and no verdict.")


def profile(case: str, places: Places, report: Report) -> None:
    """The hidden and the output kernel of the routed FFN, once each."""
    built_kernels()
    wanted = ["--csv", "--kernel-name", f"regex:{case}_kernel", "--launch-count", "1"]
    done = _watched("ncu", [*wanted, "--metrics", ",".join(METRICS.values())], [PROFILED])
    report.add(run=PROFILED, exit_code=done.returncode)
    if re.search(r"ERR_NVGPUCTRPERM", done.stdout + done.stderr):
        raise Skipped("The driver gives its counters to the administrator alone (ERR_NVGPUCTRPERM).")
    found = _metrics(done.stdout.splitlines())
    report.add(shares_of_peak_in_per_cent=found)
    if done.returncode or found.keys() != METRICS.keys():
        report.add(output=(done.stdout + done.stderr).strip().splitlines()[-_LINES:])
        raise Departure(f"ncu ended with {done.returncode} and gave {len(found)} of {len(METRICS)} figures.")


def _watched(tool: str, options: Sequence[str], names: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The kernels' process under a tool.

    Raises:
        Skipped: it is not installed.
    """
    if not shutil.which(tool):
        raise Skipped(f"There is no {tool} on the PATH. It comes with the CUDA toolkit.")
    runs = [sys.executable, "-m", "actvar.benchmarks.gpu.kernel_runs", *names]
    return subprocess.run([tool, *options, *runs], capture_output=True, text=True, check=False)


def _metrics(lines: Sequence[str]) -> dict[str, float]:
    """Those of ncu's table, which stands after its own lines and the program's."""
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    values: dict[str, Any] = {row["Metric Name"]: row["Metric Value"] for row in csv.DictReader(lines[start:])}
    return {name: float(values[metric].replace(",", "")) for name, metric in METRICS.items() if metric in values}
