"""Step: the tests that are marked `gpu`."""

import os
import re
import subprocess
import sys
from pathlib import Path

from actvar.benchmarks.gpu.case import Departure, Places, Report, Skipped

ROOT = Path(__file__).resolve().parents[2]
_NOTHING_COLLECTED = 5  # pytest's exit code
_LINES = 60


def run(case: str, places: Places, report: Report) -> None:
    """Run them, from the files that have any: nothing else need be importable here."""
    files = sorted(path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text())
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rA", "-p", "no:cacheprovider", "--tb=short"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, *map(str, files)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    counts = {what: int(number) for number, what in re.findall(r"(\d+) ([a-z]+)", lines[-1] if lines else "")}
    report.add(files=[path.name for path in files], counts=counts, output=lines[-_LINES:], exit_code=done.returncode)
    if done.returncode == _NOTHING_COLLECTED or not files:
        raise Skipped("No test is marked gpu.")
    if done.returncode:
        raise Departure(f"pytest ended with {done.returncode}: {lines[-1] if lines else 'it said nothing'}.")
