"""ONNX Runtime: the sessions of a bundle's graphs over one copy of its weights, on the CPU or on an NVIDIA GPU.

On the CPU all scales are run by one session where the bundle has a graph for that. Of an ActVAR in fp32 it has two
(`MASKED_SCALES`), and the processor decides. That session packs its matrices into a layout of its own as
it is made: it reads the weights file itself, one tensor at a time, and gives back what it has packed. All other weights
are views of the file, which is mapped into memory once; packing is switched off for them, as every session would pack a
copy. The pages of `condition`, a quarter of a model that is read once for a picture, are let go as it runs: the next
picture finds them in the system's cache of files.

Threads spin while they wait for each other within a run, and not between two runs, where they would take the cores from
the next session and from everyone else; and not at all where a control group's quota would pay for it.

On a GPU the weights are brought there once, and every session is given the same tensors.
"""

import logging
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from actvar.bundle.contract import (
    CPU_PRECISIONS,
    ENCODER,
    ITEM_BYTES,
    MASKED_SCALES,
    SCALE_INPUT,
    SCALES,
    graph_names,
    kv_parts,
)
from actvar.bundle.graph_file import ExternalTensor, external_tensors
from actvar.bundle.manifest import EXPORT_AGAIN, FOR_A_GPU, WEIGHTS_FILE, Manifest, StoredTensor
from actvar.config import HEAD_WIDTH
from actvar.errors import ActVARError, BundleError, DamagedError, EngineError, shown
from actvar.runtime.backends.buffered import BufferedEngine, Buffers, Place
from actvar.runtime.backends.memory import Buffer, HostMemory, Memory, give_back, keep_blocks
from actvar.runtime.backends.protocol import Device, Scales
from actvar.runtime.machine import cpu_instructions, has_binding_quota, usable_cores

Session: TypeAlias = onnxruntime.InferenceSession
_LOG = logging.getLogger(__name__)

_SWEEP_SECONDS = 0.004

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
UNWANTED = ["GatherSliceToSplitFusion"]
"""Optimizers that are switched off: it copies all of past_kv at once, where each block would take its own share."""

_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "not enough memory")
_FATAL_ONLY = 4  # what goes wrong comes back as an exception, too
_LEAST_MASKED = 0.5  # of the experts: with AVX-512 routed and masked are equally fast at this rate (docs/notebook.md)
_MAKERS = 2  # sessions that are made at a time


def load(
    folder: Path, manifest: Manifest, threads: int = 0, device: Device = "cpu", scales: Scales = "fastest"
) -> BufferedEngine:
    """Load a bundle whose files have been verified.

    The sessions are made in the background, in the order in which they run, so that the first graphs work while the
    last are still being made; the encoder's when it is first run. On the CPU the process from here on keeps memory that
    it has freed (`keep_blocks`).

    Args:
        folder: the bundle.
        manifest: its manifest.
        threads: of the CPU that a graph runs on, at most its cores; 0 is `usable_cores`.
        device: where the graphs run.
        scales: what runs the scales on the CPU; on a GPU each scale's own graph does.

    Raises:
        BundleError: a graph would read a file that is not the bundle's, or weights that are not in it; or the bundle is
            in bf16, of which numpy and so ONNX Runtime's Python know nothing; or of a precision that is for the CPU
            alone, and not for it; or it lacks the graph that `scales` names.
        ActVARError: the device cannot be used, or there is too little memory.
    """
    _require_utf8(folder)
    if manifest.precision == "bf16":
        raise BundleError(
            f"{folder} is in bf16, which ONNX Runtime does not draw with here. "
            "Export it in fp16 or fp32, or take --backend tensorrt."
        )
    if manifest.precision in CPU_PRECISIONS and device != "cpu":
        raise BundleError(f"{folder} is in {manifest.precision}, which is for the CPU alone. {FOR_A_GPU}")
    joined = joined_scales(manifest, scales) if device == "cpu" else None
    drawing = ("condition", joined, "decoder") if joined else graph_names(manifest.model)
    names = (*drawing, ENCODER) if ENCODER in manifest.graphs else drawing
    for name in names:
        path = folder / f"{name}.onnx"
        _check_weights(path, external_tensors(path, WEIGHTS_FILE), _weights_of(manifest, name))
    weights = _Weights(folder / WEIGHTS_FILE, manifest, device)
    memory: Memory
    if device == "cpu":
        keep_blocks()
        memory = HostMemory()
    else:
        memory = _cuda_memory()
    packed = (joined, "decoder") if manifest.precision == "int8" else (joined,)  # a convolution in int8 loses without
    makers = ThreadPoolExecutor(_MAKERS, thread_name_prefix="actvar-load")
    # Folded, each session would keep a copy of its own, `condition` of matrices that it reads once for a picture.
    as_read = set(drawing) - {joined, "decoder"} if manifest.precision == "fp16-weights" else set()

    def arguments(name: str) -> tuple[Any, ...]:
        given = None if name in packed else dict(weights.of_graph(name))
        return folder, name, given, threads, device, name not in as_read

    sessions: dict[str, _Made] = {name: makers.submit(_make_session, *arguments(name)) for name in drawing}
    if ENCODER in names:
        sessions[ENCODER] = _WhenAsked(lambda: _make_session(*arguments(ENCODER)))
    makers.shutdown(wait=False)
    return BufferedEngine(manifest, OrtExecutor(sessions, joined, weights, manifest, device), memory)


def joined_scales(manifest: Manifest, scales: Scales = "fastest") -> str | None:
    """The graph that runs all scales on this CPU, if one is to.

    Raises:
        BundleError: the bundle does not have the one that is named.
    """
    if scales == "each" or (scales == "fastest" and not manifest.scales):
        return None
    if scales == "fastest":
        rates = manifest.model.activation.expert_rates if manifest.model.activation else (1.0,)
        masks = MASKED_SCALES in manifest.scales and "avx512f" in cpu_instructions() and min(rates) >= _LEAST_MASKED
        return MASKED_SCALES if masks else SCALES
    if scales not in manifest.scales:
        there = ", ".join(manifest.scales) or "none"
        raise BundleError(f"The bundle has no graph {scales}; of graphs that run all scales it has {there}.")
    return scales


class OrtExecutor:
    """Sessions that read and write buffers; see `Executor`."""

    def __init__(
        self,
        sessions: Mapping[str, "_Made"],
        joined: str | None,
        weights: "_Weights",
        manifest: Manifest,
        device: Device,
    ):
        self._sessions, self._joined, self._device = sessions, joined, device
        self._weights = weights  # the sessions only borrow them
        self._manifest = manifest
        past_kv, new_kv = zip(*kv_parts(manifest.model), strict=True)
        self._kv_parts = {"past_kv": past_kv, "new_kv": new_kv} if joined else {}

    @property
    def recordable(self) -> bool:
        """See `Executor`. ONNX Runtime has a stream of its own."""
        return False

    @property
    def kv_grows(self) -> bool:
        """See `Executor`. The graph of all scales gives what its attention has put together."""
        return bool(self._kv_parts)

    def run(self, graph: str, inputs: Buffers, outputs: Buffers, lane: Place) -> None:
        """See `Executor`. A run starts when the lane's stream is done, and is waited for.

        On the CPU decoder and encoder, whose maps are the largest of all, are given one picture at a time: a batch of
        them takes the cores no better, and its memory would grow with it.
        """
        of_maps = {"decoder": "f_hat", ENCODER: "picture"}
        if self._device == "cpu" and graph in of_maps and (pictures := inputs[of_maps[graph]].shape[0]) > 1:
            for i in range(pictures):
                self.run(graph, _picture(inputs, i), _picture(outputs, i), lane)
            return
        own = self._sessions.get(graph)
        session = (own or self._sessions[self._joined or graph]).result()
        lane.stream.wait()
        try:
            sweep = self._weights.let_go() if graph == "condition" else nullcontext()
            binding = session.io_binding()
            for name, buffer in self._apart(graph, inputs):
                binding.bind_input(*self._place(name, buffer))
            for name, value in ({} if own else self._unread(graph, inputs)).items():
                binding.bind_ortvalue_input(name, value)
            unwanted = {} if own or "new_kv" in outputs else self._kv_nobody_reads(inputs["f_hat"].shape[0], lane)
            for name, buffer in (*self._apart(graph, outputs), *unwanted.items()):
                binding.bind_output(*self._place(name, buffer))
            with sweep:
                session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise _refusal(f"the graph {graph} cannot be run", error) from None

    def forget(self, lane: int) -> None:
        """See `Executor`. Nothing is kept from one run to the next."""

    def _apart(self, graph: str, buffers: Buffers) -> Iterator[tuple[str, Buffer]]:
        """What a session reads or gives; the graph of all scales has a tensor for each part of the KV cache.

        After the last guided scale it reads the first group of each part alone, with which the part begins.
        """
        for name, buffer in buffers.items():
            if name not in self._kv_parts:
                yield name, buffer
                continue
            parts, model = self._kv_parts[name], self._manifest.model
            groups = model.row_groups(graph_names(model).index(graph) - 1)
            for i, part in enumerate(parts):
                address = buffer.address + i * (buffer.bytes // len(parts))
                yield part, Buffer(address, buffer.dtype, (groups, *buffer.shape[3:]), buffer.owner)

    def _kv_nobody_reads(self, pictures: int, lane: Place) -> dict[str, Buffer]:
        """Places for the keys and values that the last scale gives: one for all blocks' keys, and one for all values.

        Each block writes there and reads it in its attention, without which the next block has nothing to write. Not
        bound, they would all be held to the end of the run: at d16 that is as much as a quarter of the weights.
        """
        model, last = self._manifest.model, len(self._manifest.model.schedule) - 1
        tokens = model.cached_tokens[-1] + model.kept_tokens(last)
        shape = (model.row_groups(last), pictures, model.heads, tokens, HEAD_WIDTH)
        size = math.prod(shape) * ITEM_BYTES["float32"]
        scratch = lane.scratch(2 * size)
        return {
            name: Buffer(scratch.address + i % 2 * size, "float32", shape, scratch)
            for i, name in enumerate(self._kv_parts["new_kv"])
        }

    def _place(self, name: str, buffer: Buffer) -> tuple[str, str, int, type, tuple[int, ...], int]:
        return name, self._device, 0, np.dtype(buffer.dtype).type, buffer.shape, buffer.address

    def _unread(self, graph: str, inputs: Buffers) -> dict[str, onnxruntime.OrtValue]:
        """What the graph of all scales reads and this scale does not: its index, and what it has no use for."""
        model, pictures = self._manifest.model, inputs["f_hat"].shape[0]
        si = graph_names(model).index(graph) - 1
        rows = model.row_groups(si), pictures
        unread: dict[str, tuple[int, ...]] = {"start": (*rows, 1, model.width)}
        if si == 0:
            unread = {name: (*rows, model.heads, 0, HEAD_WIDTH) for name in self._kv_parts["past_kv"]}
            unread["tokens_in"] = (pictures, 1, model.vqvae.z_channels)
        if model.is_guided and "cfg" not in inputs:
            unread["cfg"] = ()
        arrays = {name: np.zeros(shape, np.float32) for name, shape in unread.items()} | {SCALE_INPUT: np.array(si)}
        return {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


class _WhenAsked:
    """A session that is made when it is first wanted: most who draw never want it."""

    def __init__(self, make: Callable[[], Session]):
        self.result = cache(make)


_Made: TypeAlias = "Future[Session] | _WhenAsked"


def _picture(buffers: Buffers, i: int) -> Buffers:
    """Picture i of a batch's buffers."""
    return {
        name: Buffer(b.address + i * (b.bytes // b.shape[0]), b.dtype, (1, *b.shape[1:]), b.owner)
        for name, b in buffers.items()
    }


class _Weights:
    """The weights of a bundle as ONNX Runtime's values, each made once for each shape that it is read in."""

    def __init__(self, path: Path, manifest: Manifest, device: Device):
        self._mapping = _mapped(path)
        self._bytes = np.frombuffer(self._mapping or b"", np.uint8)
        self._manifest, self._device = manifest, device
        self._made: dict[tuple[str, tuple[int, ...]], onnxruntime.OrtValue] = {}

    def of_graph(self, graph: str) -> Iterator[tuple[str, onnxruntime.OrtValue]]:
        """By name."""
        for name, shape in self._manifest.graphs[graph].weights.items():
            if (name, shape) not in self._made:
                self._made[name, shape] = self._make(self._manifest.weights.tensors[name], shape)
            yield name, self._made[name, shape]

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """While the block runs, let the system have the pages that were read, so that few of them are held at a time.

        They are the file's own: who reads one again finds it in the system's cache.
        """
        mapping, done = self._mapping, Event()
        if mapping is None or not hasattr(mmap, "MADV_DONTNEED"):
            yield
            return

        def sweep() -> None:
            while not done.wait(_SWEEP_SECONDS):
                mapping.madvise(mmap.MADV_DONTNEED)
            mapping.madvise(mmap.MADV_DONTNEED)

        sweeper = Thread(target=sweep, name="actvar-let-go", daemon=True)  # a process that is stopped waits for no one
        try:
            sweeper.start()
            yield
        finally:
            done.set()
            sweeper.join()

    def _make(self, stored: StoredTensor, shape: tuple[int, ...]) -> onnxruntime.OrtValue:
        values = self._bytes[stored.offset : stored.offset + stored.length].view(stored.dtype)
        array = values[: math.prod(shape)].reshape(shape)  # the first rows, where a graph reads no more
        if self._device == "cpu":
            return onnxruntime.OrtValue.ortvalue_from_numpy(array)  # a view: nothing is copied
        return unowned(onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0))


def _weights_of(manifest: Manifest, graph: str) -> set[ExternalTensor]:
    """The weights that a manifest says a graph reads."""
    if graph in manifest.scales:
        read = manifest.scales[graph].weights
    else:
        stored, shapes = manifest.weights.tensors, manifest.graphs[graph].weights
        read = {name: replace(stored[name], shape=shape) for name, shape in shapes.items()}
    return {ExternalTensor(name, tensor.dtype, tensor.shape, tensor.offset) for name, tensor in read.items()}


def _check_weights(path: Path, read: list[ExternalTensor], said: set[ExternalTensor]) -> None:
    """Hold what a graph's file reads of the weights to what the manifest says of it.

    Raises:
        BundleError: they differ, so one of them is not the exporter's.
    """
    for tensor in said ^ set(read):
        raise DamagedError(f"{path}: {tensor.name} is not read as the manifest says it is. {EXPORT_AGAIN}")


def unowned(value: onnxruntime.OrtValue) -> onnxruntime.OrtValue:
    """The same value as a view, which keeps it: a session takes no initializer that owns its memory."""
    return onnxruntime.OrtValue.from_dlpack(value._ortvalue)


def _mapped(path: Path) -> mmap.mmap | None:
    """A file as memory; nothing for an empty one, which cannot be mapped."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else None


def _cuda_memory() -> Memory:
    """The memory of the first GPU.

    Raises:
        ActVARError: this ONNX Runtime has no CUDA, or there is no GPU.
    """
    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise ActVARError(
            f"This ONNX Runtime {onnxruntime.__version__} is built for the CPU alone, so --device cuda cannot be used. "
            "Replace it: pip uninstall onnxruntime, then pip install 'actvar-trt[gpu]'."
        )
    from actvar.runtime.backends.cuda_memory import CudaMemory, device_info

    device_info()
    return CudaMemory()


def _make_session(
    folder: Path,
    name: str,
    weights: Mapping[str, onnxruntime.OrtValue] | None,
    threads: int,
    device: Device,
    folds: bool = True,
) -> Session:
    """The session of a graph over weights that are given; without them it reads the file by itself, and packs them.

    What it read before it was packed has left holes in the heap by then, which no picture fills. Weights that are held
    in fp16 and multiplied in fp32 are widened for good where it `folds`, and as they are read where it does not.
    """
    path, options = folder / f"{name}.onnx", session_options(threads, device, packs=weights is None)
    for weight, value in (weights or {}).items():
        options.add_initializer(weight, value)
    if not folds:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = Session(path, options, providers=[_PROVIDERS[device]], disabled_optimizers=UNWANTED)
    except Exception as error:  # see `run`
        raise _refusal(f"{path} cannot be loaded", error) from None
    if weights is None:
        give_back()
    return session


def session_options(threads: int, device: Device, packs: bool) -> onnxruntime.SessionOptions:
    """How every session is made; see `load` for the arguments, and above for why.

    Args:
        threads: as for `load`.
        device: where the graph runs.
        packs: whether it packs its matrices.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads(threads)
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if device == "cpu":
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if has_binding_quota():  # what threads spin away is missing to those that work
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not packs:
            options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _threads(wanted: int) -> int:
    """As many as are wanted, and no more than there are cores: they would wait for each other by turns."""
    cores = len(os.sched_getaffinity(0))
    if wanted > cores:
        _LOG.warning("%d threads on %d cores would only be slower: taking %d.", wanted, cores, cores)
    return min(wanted, cores) or usable_cores()


def _refusal(what: str, error: Exception) -> ActVARError:
    """What ONNX Runtime said, by its kind: too little memory, no graph, one that it cannot run, or the rest."""
    reason = shown((str(error).splitlines() or [type(error).__name__])[0], 300)
    said = f"With ONNX Runtime {onnxruntime.__version__}, {what}: {reason}."
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
        return ActVARError(
            f"There is not enough memory: {what} by ONNX Runtime {onnxruntime.__version__}. Take a smaller "
            "--batch-size, a bundle in int8, or a smaller model."
        )
    if isinstance(error, (state.InvalidProtobuf, state.InvalidGraph)):
        return DamagedError(f"{said} {EXPORT_AGAIN}")
    if isinstance(error, state.NotImplemented):
        return BundleError(f"{said} It lacks an operator in this precision here: export the model in fp32.")
    return EngineError(said)


def _require_utf8(folder: Path) -> None:
    """Make sure that ONNX Runtime can be told a path.

    Raises:
        ActVARError: it cannot.
    """
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise ActVARError(
            f"ONNX Runtime opens no path with bytes that are no UTF-8, as in {str(folder)!a}. Move the bundle."
        ) from None
