"""What every test run shares: the header that says what this machine offers, and the rule for `gpu` tests.

Imports no engine: the tests that hunt for unwanted imports run in processes of their own, but the rest should not pay
for PyTorch to learn that they do not need it.
"""

import os
import shutil
import subprocess
from functools import cache
from importlib import metadata

import pytest

# Any of several distributions may provide an engine; the first that is installed is named.
ENGINES = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "TensorRT": ("tensorrt",),
    "TensorRT-RTX": ("tensorrt-rtx",),
}


def installed(distributions: tuple[str, ...]) -> str:
    """Name and version of the first distribution that is installed, or "none"."""
    for name in distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "none"


@cache
def gpu() -> str:
    """The first NVIDIA GPU as its driver names it, or an empty string."""
    if shutil.which("nvidia-smi") is None:
        return ""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return listed.stdout.partition("\n")[0] if listed.returncode == 0 else ""


def pytest_configure() -> None:
    """Make the processes of xdist like one that runs alone.

    readline leaves them the size of a terminal, and commands print to no terminal.
    """
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    _take_own_cores()


def _take_own_cores() -> None:
    """Give each process of xdist cores of its own: threads that outnumber the cores spin, and wait for each other."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if worker and len(cores) >= count:
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count])


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their length: gzip's hold the time, and xdist wants one name in all processes."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_report_header() -> list[str]:
    """One line each for the engines and the GPU, so that a log shows what its skips rest on."""
    engines = ", ".join(f"{engine}: {installed(names)}" for engine, names in ENGINES.items())
    return [f"engines: {engines}", f"GPU: {gpu() or 'none'}"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have measured and recorded (`record_property("figure", ...)`), so that a log shows it."""
    reports = terminalreporter.getreports("passed")
    figures = [text for report in reports for name, text in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.line(text)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none."""
    if any(item.get_closest_marker("gpu") for item in items) and not gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and nvidia-smi lists none"))
