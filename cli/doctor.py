"""`actvar-trt doctor`: what this machine offers for drawing, and what to install for more.

An engine counts as there when it loads, as its libraries may be missing; PyTorch is slow to load and is looked up.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from typing import Any

from rich.markup import escape
from rich.table import Table

from actvar import __version__
from actvar.bundle.manifest import MANIFEST_FILE
from actvar.cli.options import JsonOption
from actvar.errors import ActVARError, UsageError, counted
from actvar.plugins.library import PLUGIN_VARIABLE, plugin_library
from actvar.reports import check_json_option, deliver
from actvar.runtime.machine import CACHE_VARIABLE, cache_folder

EXAMPLES = """Examples:

actvar-trt doctor

actvar-trt doctor --json -"""

FORMAT, VERSION = "actvar-doctor", 1
_INSTALL = "pip install 'actvar-trt"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: what is there (nothing if empty), and what to do for more."""

    subject: str
    found: str
    advice: str = ""


def doctor(*, json_file: JsonOption = None) -> None:
    """Show what this machine offers for drawing, and what to install for more."""
    check_json_option(json_file)
    found = findings()
    content = {"format": FORMAT, "version": VERSION, "findings": [asdict(finding) for finding in found]}
    deliver([_table(found)], json.dumps(content, indent=1, ensure_ascii=False) + "\n", json_file)


def _table(found: Sequence[Finding]) -> Table:
    table = Table(box=None, show_header=False)
    for finding in found:
        mark = "[green]yes[/]" if finding.found else "[yellow]no[/]"
        text = "; ".join(part for part in (finding.found, finding.advice) if part)
        table.add_row(mark, f"[bold]{finding.subject}[/]", escape(text))
    return table


def findings() -> list[Finding]:
    """Everything that matters to drawing, from the machine to the cache."""
    cores = counted(os.cpu_count() or 1, "core")
    system = f"{platform.system()} {platform.machine()}, {cores}, Python {platform.python_version()}"
    return [
        Finding("actvar-trt", f"{__version__}, {system}"),
        _gpu(),
        _engine("ONNX Runtime", "onnxruntime", f"{_INSTALL}[cpu]', to draw with graphs"),
        _package(
            "PyTorch",
            "torch",
            f"{_INSTALL}[export]', to read .pth files, or [train], to train and for --backend torch",
        ),
        _package("ONNX", "onnx", "pip install onnx, to export checkpoints"),
        _package("Polygraphy", "polygraphy", f"{_INSTALL}[export]', for the parity command"),
        _engine(
            "TensorRT", "tensorrt", "pip install tensorrt, to build engines for this machine's GPU and to run them"
        ),
        _engine("TensorRT-RTX", "tensorrt_rtx", f"{_INSTALL}[tensorrt-rtx]', to build engines anywhere"),
        _package("CUDA for Python", "cuda-bindings", f"{_INSTALL}[tensorrt-rtx]', to run engines"),
        _plugins(),
        _cache(),
    ]


def _gpu() -> Finding:
    subject = "NVIDIA GPU"
    if not shutil.which("nvidia-smi"):
        return Finding(subject, "", "there is no nvidia-smi; pictures are drawn on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return Finding(subject, "", "nvidia-smi is there and lists none; see to the driver")
    return Finding(subject, ", ".join(listed.strip().splitlines()), "draw on it with --backend tensorrt")


def _engine(subject: str, module: str, how: str) -> Finding:
    """A package that is loaded to see whether its libraries are there."""
    try:
        engine: Any = import_module(module)
    except (ImportError, OSError) as error:  # the second: of a library that the package loads
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return Finding(subject, "", how)
        return Finding(subject, "", f"installed, but cannot be loaded: {error}")
    if module != "onnxruntime":
        return Finding(subject, engine.__version__)
    return Finding(subject, f"{engine.__version__} with {', '.join(engine.get_available_providers())}")


def _package(subject: str, distribution: str, how: str) -> Finding:
    """A package that takes long to load, by what its installation says."""
    try:
        return Finding(subject, metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return Finding(subject, "", how)


def _plugins() -> Finding:
    without = f"engines use standard operators; build the library with CMake, or name it in {PLUGIN_VARIABLE}"
    try:
        library = plugin_library()
    except UsageError as error:
        return Finding("CUDA plugins", "", str(error))
    return Finding("CUDA plugins", str(library)) if library else Finding("CUDA plugins", "", without)


def _cache() -> Finding:
    try:
        folder = cache_folder()
        place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            return Finding("cache", "", f"{folder} cannot be a folder that is written; set {CACHE_VARIABLE} to one")
    except (ActVARError, OSError) as error:
        return Finding("cache", "", str(error))
    bundles = [path.parent for path in folder.glob(f"bundles/*/{MANIFEST_FILE}")]
    size = sum(file.stat().st_size for bundle in bundles for file in bundle.rglob("*"))
    return Finding(
        "cache", f"{folder}: {counted(len(bundles), 'bundle')}, {size / 1e6:.0f} MB", f"set {CACHE_VARIABLE} to move it"
    )
