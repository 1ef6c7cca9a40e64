"""Steps that are commands of the project's own: its tests that are marked `gpu`, and the benchmark of its kernels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from actvar.benchmarks.gpu.case import Departure, Places, Report, Skipped, the_gpu
from actvar.plugins.library import kernel_library
from actvar.plugins.machine_code import require_machine_code

_CHECKOUT = Path(__file__).resolve().parents[2]
_NOTHING_COLLECTED = 5  # pytest's exit code
_LINES = 60
_BENCH = (
    *(sys.executable, "-c", "from actvar.cli.main import main; main()", "bench", "kernels"),
    *("--presets", "d20", "--token-counts", "254,384,4096,24576", "--active-experts", "8,12,16"),
)
_TEST_LIBRARIES = "ACTVAR_TEST_LIBRARIES"  # of the tests: a folder of built libraries, with which they compile nothing
_RECORDER = (sys.executable, "-m", "actvar.benchmarks.kernel_routing")


def gpu_tests(case: str, places: Places, report: Report) -> None:
    """Run them, from the files that have any: nothing else need be importable here."""
    files = sorted(path for path in (_CHECKOUT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text())
    if not files:
        raise Skipped("There are no tests here. Run this from a checkout.")
    libraries = built_kernels().parent
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rA", "-p", "no:cacheprovider", "--tb=short"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", _TEST_LIBRARIES: str(libraries)}
    done = subprocess.run(
        [*command, *map(str, files)], cwd=_CHECKOUT, env=environment, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    counts = {what: int(number) for number, what in re.findall(r"(\d+) ([a-z]+)", lines[-1] if lines else "")}
    report.add(files=[path.name for path in files], counts=counts, output=lines[-_LINES:], exit_code=done.returncode)
    if done.returncode == _NOTHING_COLLECTED:
        raise Skipped("No test is marked gpu.")
    if done.returncode:
        raise Departure(f"pytest ended with {done.returncode}: {lines[-1] if lines else 'it said nothing'}.")


def kernels(case: str, places: Places, report: Report) -> None:
    """The benchmark, with masks that the mini model's router makes beside random ones; takes over its JSON."""
    built_kernels()
    routing, out = places.scratch / "routing.npy", places.scratch / "kernels"
    recorded = subprocess.run([*_RECORDER, "--out", str(routing)], check=False).returncode == 0
    report.add(recorded_masks=recorded)
    done = subprocess.run([*_BENCH, "--out", str(out), *(["--routing", str(routing)] if recorded else [])], check=False)
    figures = out / "kernels.json"
    if figures.exists():
        report.add(kernels=json.loads(figures.read_bytes()))
    if done.returncode:
        raise Departure(f"`bench kernels` ended with {done.returncode}.")


def built_kernels() -> Path:
    """The library of the kernels: nothing compiles while a GPU waits.

    Raises:
        Skipped: there are none.
        ActVARError: this GPU could not run them as they are.
    """
    library = kernel_library()
    if library is None:
        raise Skipped("The kernels are not built here. Build them, or name the folder with --libraries.")
    require_machine_code(library, the_gpu().capability)
    return library
