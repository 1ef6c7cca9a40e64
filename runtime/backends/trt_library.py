"""The engine's library behind `trt.py`: TensorRT or TensorRT-RTX, two Python modules with one API.

Knows which of them is there, how they report errors, and the few things that only one of them does; nothing else tells
them apart. Written for TensorRT 10 and 11 and TensorRT-RTX 1.7.
"""

import logging
import re
from collections import deque
from importlib import import_module
from pathlib import Path
from typing import Any

from actvar.bundle.plans import BUILD_AGAIN, MODULES, RTX, Gpu
from actvar.errors import EngineError
from actvar.files import written_whole
from actvar.runtime.backends.memory import Block
from actvar.runtime.machine import cache_folder

DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "bool": "BOOL",
}
"""What the library calls the types of a bundle."""

_LOG = logging.getLogger(__name__)
_KEPT_LINES, _SHOWN_LINES = 50, 3
_PLUGIN_NAMESPACE, _PLUGIN_VERSION = "actvar", "1"


class EngineLibrary:
    """A library, and what it said last.

    Args:
        engine: its name, as in `actvar.bundle.plans.ENGINES`.
        module: its Python module.
    """

    def __init__(self, engine: str, module: Any):
        self.engine, self.module = engine, module
        self._said: deque[tuple[bool, str]] = deque(maxlen=_KEPT_LINES)
        self._logger = _logger(module, self._said)
        self._runtime: Any = None
        self._kernels: _KernelCache | None = None

    @property
    def version(self) -> str:
        """As plans are marked with it."""
        return str(self.module.__version__)

    def failed(self, what: str, advice: str = "") -> EngineError:
        """The error that says what failed, with the last lines of the log: errors, if there are any."""
        lines = list(self._said)
        shown = [text for is_error, text in lines if is_error] or [text for _, text in lines]
        said = " / ".join(shown[-_SHOWN_LINES:]) or "it gave no reason"
        return EngineError(f"With {self.engine} {self.version}, {what}: {said}. {advice}".rstrip())

    def give_memory(self, context: Any, scratch: Block) -> None:
        """What a context works in; TensorRT 10.0 is told the address alone."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(scratch.address, scratch.bytes)
        else:
            context.device_memory = scratch.address

    def load_plugins(self, library: Path, operators: set[str]) -> None:
        """Make plugins known, without which a plan of theirs cannot be loaded.

        Args:
            library: the file, known to be the one that the plans were built with.
            operators: those that must be there then.

        Raises:
            EngineError: it cannot be loaded, or lacks one.
        """
        registry = self.module.get_plugin_registry()

        def missing() -> list[str]:
            return sorted(o for o in operators if not registry.get_creator(o, _PLUGIN_VERSION, _PLUGIN_NAMESPACE))

        if missing() and registry.load_library(str(library)) is None:  # it refuses to load what it has
            raise self.failed(f"the plugin library {library} cannot be loaded")
        if missing():
            raise EngineError(f"The plugin library {library} has no plugin for {', '.join(missing())}. Build it again.")

    def engine_of(self, plan: bytes, what: str) -> Any:
        """The engine of a plan.

        Raises:
            EngineError: the library refuses it.
        """
        if self._runtime is None:
            try:
                self._runtime = self.module.Runtime(self._logger)
            except (RuntimeError, TypeError):  # the second is pybind's for a null pointer
                raise self.failed("no runtime can be made") from None
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.failed(f"{what} cannot be loaded", BUILD_AGAIN)
        return engine

    def context_of(self, engine: Any, graph: str) -> Any:
        """A new execution context that is given its memory by us.

        Raises:
            EngineError: there is none to be had.
        """
        managed = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.engine == RTX:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            # What is recorded is what is run from then on, so no kernel may come later, and nobody else may record.
            strategies = self.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            config.cuda_graph_strategy = self.module.CudaGraphStrategy.DISABLED
            if self._kernels:
                self._kernels.attach(config)
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(managed)
        if context is None:
            raise self.failed(f"the graph {graph} gets no context to run in")
        return context

    def keep_kernels_for(self, gpu: Gpu) -> None:
        """Remember the kernels that are compiled for this GPU from one process to the next, where any are (RTX)."""
        if self.engine == RTX:
            name = re.sub(r"[^a-z0-9.]+", "-", f"{self.version}-{gpu.name}-{gpu.capability}".lower()).strip("-")
            self._kernels = _KernelCache(cache_folder() / RTX / f"kernels-{name}.bin")

    def kernels_were_compiled(self) -> None:
        """Kernels may be new: keep them, if they are to be kept."""
        if self._kernels:
            self._kernels.save()


class _KernelCache:
    """TensorRT-RTX's runtime cache: kernels are compiled where they run, and kept in a file.

    The library holds what it reads to its own version and to the GPU. A file that it refuses, or that cannot be read or
    written, only costs the time to compile.
    """

    def __init__(self, path: Path):
        self._path = path
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Let a context use the cache; all contexts share it."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            try:
                known = self._cache.deserialize(self._path.read_bytes())
                _LOG.debug("%s was %s", self._path, "read" if known else "refused")
            except OSError:
                _LOG.debug("%s is not there yet", self._path)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = self._cache.serialize()
        if content is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path) as file:
                file.write(content)
        except OSError as error:
            _LOG.warning("%s cannot be written (%s), so kernels are compiled again next time", self._path, error)


def installed_libraries() -> list[EngineLibrary]:
    """The libraries that can be loaded, TensorRT first.

    Raises:
        EngineError: there is none.
    """
    found, broken = [], []
    for engine, module in MODULES.items():
        try:
            found.append(EngineLibrary(engine, import_module(module)))
        except (ImportError, OSError) as error:  # the second: of a library that the package loads
            if not (isinstance(error, ModuleNotFoundError) and error.name == module):
                broken.append(f"The package {module} is installed and cannot be loaded: {error}.")
    if not found:
        raise EngineError(
            " ".join(broken)
            or "There is no TensorRT to run plans with. "
            "Install one: pip install tensorrt for a data-centre GPU, pip install tensorrt-rtx for an RTX card."
        )
    return found


def _logger(module: Any, said: "deque[tuple[bool, str]]") -> Any:
    """A logger of the library's that remembers lines, and passes warnings on. It may be called from any thread."""
    severity = module.ILogger.Severity

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level == severity.VERBOSE:
                return
            is_error = level in (severity.INTERNAL_ERROR, severity.ERROR)
            said.append((is_error, message))
            # What is an error leaves with the exception that it causes.
            _LOG.log(logging.WARNING if level == severity.WARNING else logging.DEBUG, "%s", message)

    return Log()
