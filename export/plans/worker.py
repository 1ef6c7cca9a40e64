"""One plan from one graph, in a process of its own.

An engine's library takes gigabytes and gives few of them back, and where it meets a fault it may end its process. Here
nothing but one plan is lost by either. The job comes as JSON on stdin, what the library says goes to stdout and stderr,
which are the log, and a pipe takes lines of JSON to the parent: shares of the work, then a result or a failure.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actvar.bundle.manifest import EXPORT_AGAIN
from actvar.bundle.plans import RTX, TENSORRT
from actvar.errors import ActVARError, BundleError, EngineError
from actvar.export.operators.fused import ALL_OPERATORS
from actvar.export.operators.lowering import Lowered, lower
from actvar.export.operators.sparse import PLUGIN_NAMESPACE, PLUGIN_VERSION
from actvar.export.plans.engine_library import capabilities, load_engine
from actvar.files import FileEntry, locked, read_verified, written_whole
from actvar.process_memory import process_memory

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_SHARE_STEP = 0.01
_TOKEN_OPERATORS = "ActVarToken"  # what the names of those begin with that choose and move tokens


@dataclass(frozen=True)
class BuildJob:
    """What a worker is told; JSON types only.

    Args:
        engine: the library.
        capabilities: what to build for; empty for the GPU at hand.
        graph, bytes, sha256: the graph's file and what must be in it.
        weights: the names of all that the graph reads from the weights file.
        shapes: of every input that grows with the batch: the smallest, the usual and the largest shape.
        plan: the file to write, which must not be there.
        workspace, aux_streams, plugins: as in PlanOptions.
        plugin_library: with our plugins; None builds without.
        timing_cache: a file that remembers how fast which kernel was; None where nothing is timed.
        tf32: whether products of fp32 may be multiplied in TF32.
        pipe: the descriptor that results go to; known once there is a process.
        parent: the process without which the work is for nothing.
    """

    engine: str
    capabilities: Sequence[str]
    graph: str
    bytes: int
    sha256: str
    weights: Sequence[str]
    shapes: Mapping[str, Sequence[Sequence[int]]]
    plan: str
    workspace: int | None
    aux_streams: int | None
    plugins: str
    plugin_library: str | None
    timing_cache: str | None
    tf32: bool
    pipe: int = -1
    parent: int = -1


@dataclass(frozen=True)
class BuildResult:
    """What a worker has to say of its plan; see PlanSpec."""

    layers: dict[str, int]
    plugins: dict[str, int]
    bodies: dict[str, int]
    seconds: float
    peak_bytes: int


def main() -> None:
    """Do the job on stdin; the exit code is 0 if there is a plan."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    job = BuildJob(**json.load(sys.stdin))
    if os.getppid() != job.parent:  # it died before it could be asked for its signal
        sys.exit(1)
    with open(job.pipe, "w", buffering=1) as pipe:

        def tell(**message: Any) -> None:
            pipe.write(json.dumps(message) + "\n")

        try:
            result = build(job, lambda share: tell(share=share))
        except ActVARError as error:
            tell(failure=str(error), of_engine=isinstance(error, EngineError))
            sys.exit(1)
        except OSError as error:
            tell(failure=f"{error.filename or job.plan} cannot be written: {error.strerror or error}", of_engine=True)
            sys.exit(1)
        tell(result=asdict(result))


def build(job: BuildJob, progress: Callable[[float], None]) -> BuildResult:
    """Read, lower, parse and build.

    Raises:
        BundleError: the graph is not what the bundle's manifest says.
        EngineError: the library refuses it, or fails.
    """
    started = time.perf_counter()
    trt = load_engine(job.engine)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    graph = Path(job.graph)
    read_verified(graph, FileEntry(graph.name, job.bytes, job.sha256), EXPORT_AGAIN)
    lowered = lower(graph, _load_plugins(trt, job))
    if set(lowered.weights) != set(job.weights):
        raise BundleError(f"{job.graph} reads other weights than the manifest says. {EXPORT_AGAIN}")
    network = _parsed(trt, builder, logger, lowered)
    layers = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    made, expected = sum(layers[name] for name in layers if name.startswith("PLUGIN")), sum(lowered.plugins.values())
    if made != expected:
        raise EngineError(f"The parser made {made} plugin layers of {expected} nodes that must become plugins")
    config = _config(trt, builder, network, job)
    monitor = _monitor(trt, progress)  # must outlive the build
    config.progress_monitor = monitor
    cache = _timing_cache(config, job.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError("The builder gave up")
    with open(job.plan, "xb") as file:
        file.write(plan)
    if job.timing_cache:
        _keep_timing_cache(config, cache, Path(job.timing_cache))
    seconds = round(time.perf_counter() - started, 3)
    kept, replaced = dict(lowered.plugins), dict(lowered.bodies)
    return BuildResult(dict(sorted(layers.items())), kept, replaced, seconds, process_memory().peak)


def _load_plugins(trt: Any, job: BuildJob) -> tuple[str, ...]:
    """Make our plugins known to the builder; returns the operators that are to be plugins and have one."""
    if job.plugin_library is None:
        return ()
    registry = trt.get_plugin_registry()
    if registry.load_library(job.plugin_library) is None:
        raise EngineError(f"The plugin library {job.plugin_library} cannot be loaded")
    wanted = [name for name in ALL_OPERATORS if job.plugins == "all" or name.startswith(_TOKEN_OPERATORS)]
    return tuple(name for name in wanted if registry.get_creator(name, PLUGIN_VERSION, PLUGIN_NAMESPACE))


def _parsed(trt: Any, builder: Any, logger: Any, lowered: Lowered) -> Any:
    """The network of a lowered graph; every type is the graph's own."""
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows no other
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(lowered.model.SerializeToString()):
        errors = (parser.get_error(i) for i in range(parser.num_errors))
        said = "; ".join(f"{error.node_name() or 'the graph'}: {error.desc()}" for error in errors)
        raise EngineError(f"The parser refused {said or 'the graph'}")
    return network


def _config(trt: Any, builder: Any, network: Any, job: BuildJob) -> Any:
    config = builder.create_builder_config()
    (config.set_flag if job.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # a run that allocates could not be recorded
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if job.engine == RTX and job.capabilities:
        listed = capabilities(trt)
        config.num_compute_capabilities = len(job.capabilities)
        for place, name in enumerate(job.capabilities):  # one that is not listed is the GPU's at hand
            config.set_compute_capability(listed.get(name, trt.ComputeCapability.CURRENT), place)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace << 20)
    if job.aux_streams is not None:
        config.max_aux_streams = job.aux_streams
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    for shapes in profiles_of(job):
        profile = builder.create_optimization_profile()
        for name in inputs & shapes.keys():
            profile.set_shape(name, *map(tuple, shapes[name]))
        config.add_optimization_profile(profile)
    return config


def profiles_of(job: BuildJob) -> list[dict[str, list[Sequence[int]]]]:
    """The shapes of every input for the fewest pictures, the best and the most, by profile.

    TensorRT makes kernels for the best number alone, so the fewest pictures, mostly one, have a profile of their own.
    TensorRT-RTX makes them for the shapes that come, on the GPU, and needs but one.
    """
    whole = {name: list(sizes) for name, sizes in job.shapes.items()}
    apart = {name: [sizes[0]] * 3 for name, sizes in job.shapes.items()}
    is_apart = job.engine == TENSORRT and any(low != best for low, best, _ in job.shapes.values())
    return [apart, whole] if is_apart else [whole]


def _logger(trt: Any) -> Any:
    """A logger that writes what is worth keeping to stdout, where aborting C++ code leaves its last words, too."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.INFO:
                print(f"[{severity.name}] {message}", flush=True)

    return Log()


def _monitor(trt: Any, progress: Callable[[float], None]) -> Any:
    """A monitor that adds up nested phases: a step counts as done in part while a phase below it is under way."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, list[Any]] = {}  # by name: parent, steps, steps done
            self.told, self.lock = 0.0, threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self.lock:
                self.phases[name] = [parent, steps, 0]

        def phase_finish(self, name: str) -> None:
            with self.lock:
                self.phases.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            with self.lock:
                if name in self.phases:
                    self.phases[name][2] = step + 1
                    self.tell(name)
            return True

        def tell(self, name: str) -> None:
            parent, share = name, 0.0
            while parent in self.phases:
                parent, steps, done = self.phases[parent]
                share = min((done + share) / max(steps, 1), 1.0)
            if share >= self.told + _SHARE_STEP:
                self.told = share
                progress(share)

    return Monitor()


def _timing_cache(config: Any, path: str | None) -> Any:
    """Give a build what earlier builds on this GPU have timed."""
    if path is None:
        return None
    known = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(known)  # an empty one, if these bytes are no cache of this library's
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _keep_timing_cache(config: Any, cache: Any, path: Path) -> None:
    """Add what was timed now to the file, which another build may have written meanwhile."""
    with locked(path.with_suffix(".lock")):
        if path.is_file():
            cache.combine(config.create_timing_cache(path.read_bytes()), ignore_mismatch=False)
        with written_whole(path) as file:
            file.write(cache.serialize())
