"""TensorRT: the plans of a bundle on an NVIDIA GPU, with TensorRT itself or with TensorRT-RTX.

Knows what an engine binds and when a context may be used again. Plans hold no weights: all engines are given addresses
in one block. They hold no memory to work in, either: that is the lane's, one block for all of its contexts, as they run
one after another.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actvar.bundle.contract import CPU_PRECISIONS, TensorSpec
from actvar.bundle.manifest import FOR_A_GPU, WEIGHTS_FILE, GraphSpec, Manifest
from actvar.bundle.memory import lanes_that_fit
from actvar.bundle.plans import BUILD_AGAIN, PlanManifest, read_plan, usable_plans
from actvar.errors import BundleError, EngineError, counted
from actvar.files import hash_file
from actvar.plugins.library import PLUGIN_VARIABLE, plugin_library
from actvar.runtime.backends.buffered import BufferedEngine, Buffers, Place
from actvar.runtime.backends.cuda_memory import CudaMemory, device_info
from actvar.runtime.backends.device_weights import upload_weights
from actvar.runtime.backends.memory import Block, Memory
from actvar.runtime.backends.trt_library import DTYPES, EngineLibrary, installed_libraries

_ALIGNMENT = 256  # that the library asks of every address
_LANES = 2
_MOST_BOUND = 512  # contexts of a lane; its recordings want fewer, and runs by themselves come from ever new buffers


def load(folder: Path, manifest: Manifest, pictures: int = 1, lanes: int = _LANES) -> BufferedEngine:
    """Load the plans of a bundle for the GPU at hand. Plans and weights are verified on the way.

    Args:
        folder: the bundle.
        manifest: its manifest, which must have weights.
        pictures: the most that are to be drawn at once.
        lanes: batches that may be under way at a time; fewer where the GPU's memory does not hold so many.

    Raises:
        BundleError: there are no plans for this GPU, library and batch; or a plan or the weights are not what they
            should be.
        EngineError: there is no library, or it refuses a plan; or the GPU is too small for one such batch.
        ActVARError: there is no GPU that can be used.
        MemoryError: the weights do not fit on the GPU.
    """
    if manifest.precision in CPU_PRECISIONS:
        raise BundleError(f"{folder} is in {manifest.precision}, which is for ONNX Runtime on a CPU. {FOR_A_GPU}")
    device = device_info()
    gpu, refusals = device.gpu, []
    for library in installed_libraries():
        try:
            plan_folder, plans = usable_plans(folder, manifest, library.engine, library.version, gpu, pictures)
        except BundleError as error:
            refusals.append(error)
            continue
        lanes = lanes_that_fit(manifest, pictures, device.memory, lanes)
        library.keep_kernels_for(gpu)
        return load_plans(folder, manifest, library, plan_folder, plans, CudaMemory(), lanes)
    raise refusals[0]


def load_plans(
    folder: Path,
    manifest: Manifest,
    library: EngineLibrary,
    plan_folder: Path,
    plans: PlanManifest,
    memory: Memory,
    lanes: int,
) -> BufferedEngine:
    """Load these plans with this library; the rest is as in `load`."""
    entry = manifest.weights.entry
    if entry is None:
        raise BundleError(
            f"{folder} has no weights yet. Give it some with `actvar-trt bind BUNDLE --model CHECKPOINT`."
        )
    operators = {name for spec in plans.plans.values() for name, count in spec.plugins.items() if count}
    if operators:
        library.load_plugins(_plugins_of(plan_folder, plans), operators)
    engines = {}
    for graph, spec in manifest.graphs.items():
        path = plan_folder / plans.plans[graph].entry.file
        engines[graph] = library.engine_of(read_plan(plan_folder, plans.plans[graph]), str(path))
        check_bindings(library.module, engines[graph], manifest, graph, spec, path)
    weights = upload_weights(folder / WEIGHTS_FILE, entry, memory)
    batch = plans.options.batch
    return BufferedEngine(
        manifest, TrtExecutor(manifest, library, engines, weights, batch), memory, lanes, fewest=batch[0]
    )


def check_bindings(module: Any, engine: Any, manifest: Manifest, graph: str, spec: GraphSpec, path: Path) -> None:
    """Hold what an engine reads and writes to what the manifest says of its graph and of the weights.

    Args:
        module: the library's, for its names.
        engine: of the plan, or whatever describes its tensors in the same way.
        manifest: the bundle's.
        graph, spec: the graph that the plan was built from.
        path: of the plan, for messages.

    Raises:
        BundleError: a tensor is missing, unknown, of another type or shape, or cannot be bound.
    """
    wanted = {
        **{tensor.name: ("INPUT", tensor.dtype, _open_shape(tensor)) for tensor in spec.inputs},
        **{tensor.name: ("OUTPUT", tensor.dtype, _open_shape(tensor)) for tensor in spec.outputs},
    }
    for name, shape in spec.weights.items():
        stored = manifest.weights.tensors[name]
        if stored.offset % _ALIGNMENT:
            raise BundleError(
                f"{path}: the weight {name} does not lie at a multiple of {_ALIGNMENT} bytes. {BUILD_AGAIN}"
            )
        wanted[name] = ("INPUT", stored.dtype, shape)
    found = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for name in sorted(wanted.keys() ^ set(found)):
        lack = "does not bind" if name in wanted else "binds, unknown to its graph,"
        raise BundleError(f"{path} {lack} the tensor {name}. {BUILD_AGAIN}")
    for name, (mode, dtype, shape) in wanted.items():
        is_so = (
            engine.get_tensor_mode(name).name,
            engine.get_tensor_dtype(name).name,
            tuple(engine.get_tensor_shape(name)),
        )
        if is_so != (mode, DTYPES[dtype], shape):
            raise BundleError(
                f"{path}: the graph {graph} wants {name} as {mode} {DTYPES[dtype]} {list(shape)}, "
                f"and the plan has it as {is_so[0]} {is_so[1]} {list(is_so[2])}. {BUILD_AGAIN}"
            )
        if engine.get_tensor_location(name) != module.TensorLocation.DEVICE:
            raise BundleError(f"{path} reads {name} on the host, in the middle of a chain. {BUILD_AGAIN}")


class TrtExecutor:
    """Engines and their contexts; see `Executor`.

    A recorded run must find its context as it was when it was recorded. So there is a context for every set of buffers
    that a graph has run with; it is bound once, and is bound anew only when its lane has forgotten what was recorded.

    Args:
        manifest: the bundle's.
        library: what made the engines.
        engines: by graph.
        weights: the weights file, where the engines run.
        batch: the fewest pictures that the engines can draw at once, those they are best at, and the most.
    """

    def __init__(
        self,
        manifest: Manifest,
        library: EngineLibrary,
        engines: Mapping[str, Any],
        weights: Block,
        batch: tuple[int, int, int],
    ):
        self._bound: defaultdict[int, dict[Hashable, tuple[tuple[str, int], Any]]] = defaultdict(dict)  # by lane
        self._spare: defaultdict[tuple[str, int], list[Any]] = defaultdict(list)  # by graph and profile
        self._manifest, self._library, self._engines = manifest, library, engines
        self._weights, self._batch = weights, batch
        self._compiled = False

    @property
    def recordable(self) -> bool:
        """See `Executor`."""
        return True

    @property
    def kv_grows(self) -> bool:
        """See `Executor`."""
        return False

    def run(self, graph: str, inputs: Buffers, outputs: Buffers, lane: Place) -> None:
        """See `Executor`."""
        key = graph, *((name, buffer.address, buffer.shape) for name, buffer in (*inputs.items(), *outputs.items()))
        if key not in self._bound[lane.number]:
            if len(self._bound[lane.number]) >= _MOST_BOUND:
                lane.forget()
            context = self._bind(graph, inputs, outputs, lane)  # which may make the lane forget
            self._bound[lane.number][key] = (graph, self._profile(graph, inputs)), context
        _, context = self._bound[lane.number][key]
        if not context.execute_async_v3(lane.stream.handle):
            raise self._failed(graph)
        if self._compiled and graph == "decoder":
            self._compiled = False
            self._library.kernels_were_compiled()

    def forget(self, lane: int) -> None:
        """See `Executor`."""
        for kind, context in self._bound.pop(lane, {}).values():
            self._spare[kind].append(context)

    def _bind(self, graph: str, inputs: Buffers, outputs: Buffers, lane: Place) -> Any:
        """A context that runs a graph from these buffers to those."""
        self._check_batch(graph, inputs)
        spare, profile = self._spare[graph, self._profile(graph, inputs)], self._profile(graph, inputs)
        context = spare.pop() if spare else self._new_context(graph, profile, lane)
        taken = [
            *(context.set_input_shape(tensor.name, inputs[tensor.name].shape) for tensor in self._growing(graph)),
            *(context.set_tensor_address(name, buffer.address) for name, buffer in inputs.items()),
            *(context.set_tensor_address(name, buffer.address) for name, buffer in outputs.items()),
        ]
        if not all(taken):
            raise self._failed(graph)
        for name, buffer in outputs.items():
            if tuple(context.get_tensor_shape(name)) != buffer.shape:
                shape = list(context.get_tensor_shape(name))
                raise EngineError(f"The plan of {graph} gives {name} as {shape}, and not as {list(buffer.shape)}.")
        # The library wants an address even where it needs no byte.
        scratch = lane.scratch(max(context.update_device_memory_size_for_shapes(), _ALIGNMENT))
        self._library.give_memory(context, scratch)
        self._compiled = True
        return context

    def _profile(self, graph: str, inputs: Buffers) -> int:
        """Of the engine: TensorRT's have one for the fewest pictures, and one for the range."""
        tensor = next(self._growing(graph))
        fewest = inputs[tensor.name].shape[tensor.shape.index("B")] == self._batch[0]
        return 0 if fewest else self._engines[graph].num_optimization_profiles - 1

    def _new_context(self, graph: str, profile: int, lane: Place) -> Any:
        """A context of a profile that knows its weights."""
        context = self._library.context_of(self._engines[graph], graph)
        if profile and not context.set_optimization_profile_async(profile, lane.stream.handle):
            raise self._failed(graph)
        for name in self._manifest.graphs[graph].weights:
            if not context.set_tensor_address(
                name, self._weights.address + self._manifest.weights.tensors[name].offset
            ):
                raise self._failed(graph)
        return context

    def _check_batch(self, graph: str, inputs: Buffers) -> None:
        """Refuse a batch that the plans were not built for, in words that help."""
        low, _, high = self._batch
        for tensor in self._growing(graph):
            pictures = inputs[tensor.name].shape[tensor.shape.index("B")]
            if not low <= pictures <= high:
                raise BundleError(
                    f"The plans draw {low} to {counted(high, 'picture')} at once, and {pictures} are to be drawn. "
                    f"Take another --batch-size, or build with another --batch-range."
                )

    def _growing(self, graph: str) -> Iterator[TensorSpec]:
        """The inputs that grow with the batch; the others are as they were built."""
        return (t for t in self._manifest.graphs[graph].inputs if any(isinstance(size, str) for size in t.shape))

    def _failed(self, graph: str) -> EngineError:
        return self._library.failed(f"the graph {graph} cannot be run", "Try a smaller --batch-size.")


def _open_shape(tensor: TensorSpec) -> tuple[int, ...]:
    """A shape as an engine has it, with -1 for what grows with the batch."""
    return tuple(-1 if isinstance(size, str) else size for size in tensor.shape)


def _plugins_of(plan_folder: Path, plans: PlanManifest) -> Path:
    """The plugin library that plans were built with.

    Raises:
        BundleError: it is not here, or another one is.
    """
    library = plugin_library()
    if library is None:
        raise BundleError(
            f"The plans in {plan_folder} need our plugins, and there is no plugin library here. "
            f"Name it in {PLUGIN_VARIABLE}, or build the plans without."
        )
    if hash_file(library).sha256 != plans.plugin_library:
        raise BundleError(f"{library} is not the plugin library that the plans were built with. {BUILD_AGAIN}")
    return library
