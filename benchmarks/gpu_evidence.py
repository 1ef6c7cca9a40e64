"""Everything that only a GPU can show, in one command, on a machine that has one and where the project is installed.

    python benchmarks/gpu_evidence.py --out results

The steps of `gpu/steps.py` run in order of importance, each case in a process and within a time of its own; bundles
that are missing are made before the first step that needs them. summary.json is written as each case ends, and is the
only file; the summary in words is printed at the end. A later step builds on what an earlier one found, in this call or
in one before it with the same --out. What a machine lacks is said, case by case.

    python benchmarks/gpu_evidence.py --rehearse

needs no GPU: it runs every step's code over stand-ins, with a model of a few neurons, so that a slip costs no time of
the machine. It measures nothing.

Exit codes: 0, everything was done; 1, something failed, ran out of time, or cannot be used; 2, a wrong option;
3, nothing failed, but some of it was skipped, and the summary says why.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actvar.benchmarks.gpu.case import SUMMARY_FILE
from actvar.benchmarks.gpu.step_runner import Case, Run, Step, exit_code, run_steps
from actvar.benchmarks.gpu.steps import STEPS, chosen
from actvar.benchmarks.gpu.summary import summary
from actvar.errors import ActVARError, UsageError
from actvar.export.bundle_cache import exporter_digest
from actvar.plugins.library import LIBRARY_FILE, PLUGIN_VARIABLE
from actvar.provenance import commit, typed
from actvar.runtime.machine import cache_folder, this_machine

REHEARSED = ("test_gpu_evidence.py", "test_gpu_steps.py", "test_gpu_kernel_steps.py", "test_kernel_bench.py")
"""Files of the tests that are the steps' rehearsal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; returns the exit code. A user's mistake is a message, not a traceback."""
    try:
        given = _options(arguments)
        return _rehearse() if given.rehearse else _run(given)
    except ActVARError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"Error: {error.filename}: {error.strerror}. Name another folder, or make room.", file=sys.stderr)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for.

    Raises:
        UsageError: it cannot be.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for summary.json")
    parser.add_argument("--rehearse", action="store_true", help="run every step's code over stand-ins instead")
    parser.add_argument("--official-var", type=Path, help="checkout of VAR's own code, to compare with")
    parser.add_argument("--deadline", type=float, help="seconds for all steps together; the bundles do not count")
    parser.add_argument("--steps", help="some of " + ",".join(step.name for step in STEPS) + "; all if left out")
    parser.add_argument("--bundles", type=Path, help="folder of the bundles; in the cache if left out")
    parser.add_argument("--libraries", type=Path, help="folder of the compiled libraries; the checkout's if left out")
    given = parser.parse_args(arguments)
    if given.out is None and not given.rehearse:
        parser.error("the following arguments are required: --out")
    given.steps = given.steps.split(",") if given.steps else []
    for name in given.steps:
        if name not in [step.name for step in STEPS]:
            raise UsageError(f"No step is called {name!r}. There are {', '.join(step.name for step in STEPS)}.")
    if given.official_var and not given.official_var.is_dir():
        raise UsageError(f"--official-var {given.official_var} is no folder. Name a checkout, or leave it out.")
    if given.libraries and not (given.libraries / LIBRARY_FILE).is_file():
        raise UsageError(
            f"--libraries {given.libraries} holds no {LIBRARY_FILE}. Name the folder that it was built in."
        )
    if given.deadline is not None and not given.deadline > 0:
        raise UsageError(f"--deadline must be more than 0 seconds, got {given.deadline:g}.")
    return given


def _rehearse() -> int:
    """Run the tests of the steps.

    Raises:
        ActVARError: they are not here.
    """
    files = [Path(__file__).resolve().parents[1] / "tests" / name for name in REHEARSED]
    if not all(file.is_file() for file in files):
        raise ActVARError("The tests of the steps are not here. Run this from a checkout.")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", *map(str, files)]
    return 1 if subprocess.run(command, check=False).returncode else 0


def _run(given: argparse.Namespace) -> int:
    deadline = time.monotonic() + (float("inf") if given.deadline is None else given.deadline)
    bundles: Path = given.bundles or cache_folder() / "gpu-evidence" / exporter_digest()[:16]
    out, bundles = given.out.resolve(), bundles.resolve()
    for folder in (out, bundles):
        folder.mkdir(parents=True, exist_ok=True)
    official = ["--official-var", str(given.official_var.resolve())] if given.official_var else []
    libraries = {PLUGIN_VARIABLE: str(given.libraries.resolve() / LIBRARY_FILE)} if given.libraries else {}
    header = {
        "command": typed(["python", *sys.argv]),
        **commit(),
        "machine": asdict(this_machine()),
        "gpu": _gpu(),
    }
    with TemporaryDirectory(dir=bundles, prefix=".scratch-") as scratch:

        def command(step: Step, case: Case, answer: Path) -> list[str]:
            places = ["--bundles", str(bundles), "--scratch", scratch, "--out", str(out), *official]
            child = [sys.executable, "-m", "actvar.benchmarks.gpu.child"]
            return [*child, step.name, case.name, "--answer", str(answer), *places]

        def tell(text: str) -> None:
            print(text, flush=True)

        run = Run(command, {**os.environ, **libraries}, Path.cwd(), Path(scratch), out, header, deadline, tell)
        records = run_steps(chosen(given.steps), run)
    print(f"\n{summary(records)}\n\nAll of it: {out / SUMMARY_FILE}")
    return exit_code(records)


def _gpu() -> dict[str, Any] | None:
    """The first GPU, as nvidia-smi has it."""
    query = ["nvidia-smi", "-i", "0", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    name, driver, memory = (part.strip() for part in done.stdout.strip().split(","))
    return {"name": name, "driver": driver, "memory": memory}


if __name__ == "__main__":
    sys.exit(main())
