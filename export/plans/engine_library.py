"""The engine library that plans are built with: which one is installed, and what it can build for here."""

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actvar.bundle.plans import MODULES, RTX, TENSORRT, Gpu, PlanTarget
from actvar.errors import EngineError, UsageError
from actvar.files import locked
from actvar.runtime.machine import cache_folder, first_gpu

INSTALL = (
    "Install one: pip install tensorrt-rtx builds on any machine, with a GPU or without; "
    "pip install tensorrt builds for the GPU at hand, and a data-centre GPU needs it."
)
WITHOUT_FP32_PRODUCTS = "7.5"  # "Turing: FP32 GEMM is not supported", says TensorRT-RTX 1.7; our heads are fp32


def installed(engine: str) -> bool:
    """Whether an engine's Python module can be found; it is not loaded."""
    return find_spec(MODULES[engine]) is not None


def load_engine(engine: str) -> Any:
    """An engine's Python module.

    Raises:
        EngineError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        return import_module(MODULES[engine])
    except (ImportError, OSError) as error:
        if not installed(engine):
            raise EngineError(f"The package {MODULES[engine]} is not installed. {INSTALL}") from None
        raise EngineError(f"The package {MODULES[engine]} is installed and cannot be loaded: {error}.") from None


def choose_target(engine: str | None, architectures: Sequence[str] | None) -> PlanTarget:
    """What to build for: TensorRT for the GPU at hand if both are there, else TensorRT-RTX, ahead of time.

    Args:
        engine: builds with this one, whatever is there.
        architectures: compute capabilities to build for; None takes all that TensorRT-RTX has, but Turing, or that of
            the GPU at hand if it is none of them.

    Raises:
        EngineError: no library is installed that could build here.
        UsageError: the engine cannot build for these architectures.
    """
    gpu = first_gpu()
    if engine is None:
        at_hand = gpu is not None and architectures is None and installed(TENSORRT)
        engine = TENSORRT if at_hand else RTX
        if not at_hand and not installed(RTX):
            if not installed(TENSORRT):
                raise EngineError(f"There is no TensorRT to build plans with. {INSTALL}")
            if gpu is None:
                raise EngineError(f"TensorRT builds for the GPU at hand, and there is none. {INSTALL}")
            raise EngineError(f"--gpu-arch is for TensorRT-RTX, which is not installed. Leave it out. {INSTALL}")
    if engine == TENSORRT:
        if architectures:
            raise UsageError(
                "TensorRT builds for the GPU at hand. Leave --gpu-arch out, or take --engine tensorrt-rtx."
            )
        if gpu is None:
            raise EngineError("TensorRT builds for the GPU at hand, and there is none. Take --engine tensorrt-rtx.")
        return PlanTarget(engine, load_engine(engine).__version__, (gpu.capability,), gpu.name)
    library = load_engine(engine)
    return PlanTarget(engine, library.__version__, _architectures(library, architectures, gpu))


def _architectures(library: Any, wanted: Sequence[str] | None, gpu: Gpu | None) -> tuple[str, ...]:
    """Compute capabilities, ascending and once each."""
    listed = capabilities(library)
    if wanted is None and gpu and gpu.capability not in listed:
        return (gpu.capability,)
    if wanted is None:
        return tuple(name for name in listed if name != WITHOUT_FP32_PRODUCTS)
    for name in wanted:
        if name not in listed and not (gpu and list(wanted) == [gpu.capability]):
            raise UsageError(f"TensorRT-RTX builds for {', '.join(listed)}, and not for {name!r}. Give some of these.")
    return tuple(sorted(set(wanted), key=float))


def capabilities(library: Any) -> dict[str, Any]:
    """The compute capabilities that TensorRT-RTX can build for without a GPU, by names such as "8.9", ascending."""
    members = library.ComputeCapability.__members__.items()
    numbers = {int(name[2:]): member for name, member in members if name.startswith("SM") and name[2:].isdecimal()}
    return {f"{number // 10}.{number % 10}": numbers[number] for number in sorted(numbers)}


def library_path(engine: str) -> str | None:
    """LD_LIBRARY_PATH of a process that builds with plugins; None where it may stay as it is.

    The parser of TensorRT-RTX's wheel looks for libtensorrt_rtx.so as soon as a graph has a plugin, and aborts the
    process without one; the wheel brings libtensorrt_rtx.so.1 alone. A link in the cache cures it.

    Raises:
        OSError: the cache cannot be written.
    """
    wheel = find_spec("tensorrt_rtx_libs") if engine == RTX else None
    if wheel is None or wheel.origin is None:
        return None
    library = Path(wheel.origin).with_name("libtensorrt_rtx.so.1")
    if not library.exists() or library.with_suffix("").exists():
        return None
    link = cache_folder() / "tensorrt-rtx" / "libtensorrt_rtx.so"
    if not link.is_symlink() or link.readlink() != library:
        link.parent.mkdir(parents=True, exist_ok=True)
        with locked(link.with_suffix(".lock")):
            unfinished = link.with_suffix(".tmp")
            unfinished.unlink(missing_ok=True)  # of a process that was killed here
            unfinished.symlink_to(library)
            unfinished.replace(link)
    return os.pathsep.join(filter(None, (str(link.parent), os.environ.get("LD_LIBRARY_PATH"))))
