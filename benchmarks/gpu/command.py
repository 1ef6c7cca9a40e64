"""The command line of the evidence: prepares a folder, or runs the steps with one. See `gpu_evidence.py`."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actvar.benchmarks.checkout import ROOT
from actvar.benchmarks.gpu import pieces, prepare
from actvar.benchmarks.gpu.step_runner import SUMMARY_FILE, Case, Run, Step, exit_code, run_steps
from actvar.benchmarks.gpu.steps import STEPS
from actvar.benchmarks.gpu.summary import summary
from actvar.errors import ActVARError, UsageError

CALL_BYTES = 64 << 20  # that travel with one call to a lent machine, the checkout included
MARGIN_BYTES = 2 << 20
MEBIBYTE = 1 << 20
SITE, SITE_ORT_GPU, OFFICIAL_VAR = "site", "site-onnxruntime-gpu", "official-var"
NAMED_VERSIONS = (
    *("torch", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu13-libs", "cuda-bindings", "onnx", "onnxruntime"),
    *("onnxruntime-gpu", "onnx-graphsurgeon", "polygraphy", "numpy", "triton", "pytest"),
)


def main(description: str, arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; returns the exit code. A user's mistake is a message, not a traceback."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", type=Path, metavar="FOLDER", help="collect what a GPU machine needs")
    what.add_argument("--run", type=Path, metavar="FOLDER", help="run all steps with what was collected")
    parser.add_argument("--pieces-mb", type=int, help="MiB of a piece; what is left of 64 beside the checkout")
    parser.add_argument("--python", default="3.12", help="version of the GPU machine's Python; 3.12 if left out")
    parser.add_argument("--there", nargs="*", default=[], help="packages that the machine has; not carried")
    parser.add_argument("--wheels", type=Path, help="more wheels to carry: TensorRT's, or onnxruntime-gpu's")
    parser.add_argument("--out", type=Path, help="folder for the JSON of the steps")
    parser.add_argument("--official-var", type=Path, help="checkout of VAR's own code, to carry or to compare with")
    parser.add_argument("--deadline", type=float, default=570, help="seconds for all of --run; 570 if left out")
    given = parser.parse_args(arguments)
    try:
        if given.official_var and not given.official_var.is_dir():
            raise UsageError(f"--official-var {given.official_var} is no folder. Name a checkout, or leave it out.")
        return _prepare(given) if given.prepare else _run(given)
    except ActVARError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"Error: {error.filename}: {error.strerror}. Name another folder, or make room.", file=sys.stderr)
        return 1


# ---- preparing


def _prepare(given: argparse.Namespace) -> int:
    folder: Path = given.prepare
    limit = _piece_bytes(given)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".payload-") as scratch:
        prepare.collect(Path(scratch), given.python, given.there, given.wheels, print)
        if given.official_var:
            shutil.copytree(given.official_var, Path(scratch) / OFFICIAL_VAR, ignore=shutil.ignore_patterns(".git"))
        made = pieces.pack(Path(scratch), folder, limit)
    size = sum(piece.bytes for piece in made) / MEBIBYTE
    print(f"{folder}: {size:.0f} MiB in {len(made)} pieces. On a lent machine, one call at once after the other:")
    for call in prepare.calls([piece.file for piece in made], pieces.MANIFEST_FILE, folder):
        print(f"  {call}")
    return 0


def _piece_bytes(given: argparse.Namespace) -> int:
    if given.pieces_mb is None:
        tree = prepare.bytes_of_tree(given.prepare.resolve()) or 0
        limit = CALL_BYTES - MARGIN_BYTES - tree
    else:
        limit = given.pieces_mb * MEBIBYTE
    if limit < MEBIBYTE:
        raise UsageError("A piece would be smaller than 1 MiB. Give --pieces-mb 1 or more.")
    return limit


# ---- running


def _run(given: argparse.Namespace) -> int:
    if given.out is None:
        raise UsageError("--run needs a folder for its findings. Name one with --out.")
    deadline = time.monotonic() + given.deadline
    out, work = given.out.resolve(), given.run.resolve() / "work"
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    pieces.unpack(given.run, work)
    scratch = work / "scratch"
    scratch.mkdir()
    installed = {
        SITE: _installed(work / prepare.WHEELS, work / SITE),
        SITE_ORT_GPU: _installed(work / prepare.WHEELS_ORT_GPU, work / SITE_ORT_GPU),
    }
    header = {
        "gpu": _gpu(),
        **prepare.source_of(work),
        "python": sys.version.split()[0],
        "versions": _versions(work / SITE),
        "installed": installed,
    }
    official_var = given.official_var or work / OFFICIAL_VAR
    official = ["--official-var", str(official_var.resolve())] if official_var.is_dir() else []

    def command(step: Step, case: Case, answer: Path) -> list[str]:
        places = ["--answer", str(answer), "--work", str(work), "--out", str(out), *official]
        return [sys.executable, "-m", "gpu.child", step.name, case.name, *places]

    run = Run(command, _environment(work), ROOT, scratch, out, header, deadline, lambda text: print(text, flush=True))
    records = run_steps(STEPS, run)
    print(f"\n{summary(records)}\n\nAll of it: {out / SUMMARY_FILE}")
    return exit_code(records)


def _installed(wheels: Path, site: Path) -> str:
    """Unpack wheels into a folder of their own; what cannot be installed is said, and missed by the steps."""
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        return "no wheels were carried"
    options = ("--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site))
    command = [sys.executable, "-m", "pip", "install", "-q", *options, *found]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{len(found)} wheels" if done.returncode == 0 else f"pip failed: {done.stderr.strip()[-500:]}"


def _environment(work: Path) -> dict[str, str]:
    """The user's; packages come from the wheels first, then from the checkout, then from the machine."""
    path = [str(work / SITE), str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "ACTVAR_CACHE": str(work / "cache")}
    libraries = list((work / prepare.PLUGINS).glob("*.so"))
    return {**os.environ, **own, **({"ACTVAR_PLUGIN_LIBRARY": str(libraries[0])} if libraries else {})}


def _versions(site: Path) -> dict[str, str]:
    """Of the packages that matter, those that the steps will import."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions(path=[str(site), *sys.path]):
        found.setdefault(distribution.metadata["Name"].lower().replace("_", "-"), distribution.version)
    return {name: found[name] for name in NAMED_VERSIONS if name in found}


def _gpu() -> dict[str, Any] | None:
    """The first GPU, as nvidia-smi has it."""
    query = ["nvidia-smi", "-i", "0", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    name, driver, memory = (part.strip() for part in done.stdout.strip().split(","))
    return {"name": name, "driver": driver, "memory": memory}
