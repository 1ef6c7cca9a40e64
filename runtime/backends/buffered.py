"""An engine over buffers: every tensor of a chain has a place of its own that it keeps from one chain to the next.

Knows which buffers a chain needs, how the KV cache grows in its window, and when a chain can be replayed; what memory
is and what runs a graph is behind `Memory` and `Executor`. The same code draws on the host and on a GPU.

A *lane* is all that one chain needs to be under way: a stream and the buffers. An engine with two lanes prepares and
fetches one batch of pictures while the other is drawn.

Letters in shapes: D depth, G groups of rows, B pictures, h heads, T tokens that the cache has room for, K new tokens,
d = 64.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Protocol

import numpy as np

from actvar.bundle.contract import ITEM_BYTES, TensorSpec, graph_names
from actvar.bundle.manifest import EXPORT_AGAIN, GraphSpec, Manifest
from actvar.config import HEAD_WIDTH
from actvar.errors import BundleError
from actvar.runtime.backends.memory import Block, Buffer, Memory, Rows, Stream, decode, encode
from actvar.runtime.backends.protocol import Chain, KVCache, Launched
from actvar.runtime.pictures import Turn

Buffers = Mapping[str, Buffer]

_MAX_RECORDINGS = 16  # of a lane: a recorded chain takes memory of the GPU's, and most who draw use two sizes of batch


class Place(Protocol):
    """What an executor sees of a lane."""

    @property
    def number(self) -> int:
        """0 for the first lane."""

    @property
    def stream(self) -> Stream:
        """Where runs are put."""

    def scratch(self, count: int) -> Block:
        """Memory of at least so many bytes for the run that is being put on the stream; all runs share it."""

    def forget(self) -> None:
        """Let go of all that was recorded, here and in the executor, when all work is done."""


class Executor(Protocol):
    """The loaded graphs of a bundle."""

    @property
    def recordable(self) -> bool:
        """Whether all of a run is on the lane's stream, so that whoever records the stream has recorded the run."""

    @property
    def kv_grows(self) -> bool:
        """Whether its scales read the KV cache as it has grown so far, and give it grown by their own part.

        Else the cache has one place: they read in its window, and give their own part alone.
        """

    def run(self, graph: str, inputs: Buffers, outputs: Buffers, lane: Place) -> None:
        """Put one run of a graph on a stream.

        Args:
            graph: its name in the bundle.
            inputs: all that its `GraphSpec` names, in the sizes of one batch.
            outputs: likewise, to be written.
            lane: two lanes may run the same graph at the same time.

        Raises:
            BundleError: the graph cannot be run.
            EngineError: the library that runs it failed.
        """

    def forget(self, lane: int) -> None:
        """What was recorded of a lane is not replayed any more, and nothing runs on it: buffers may have moved."""


class BufferedEngine:
    """See `actvar.runtime.backends.protocol.Engine`; tensors are `Buffer`s.

    Launches take turns: on the host a turn is a whole chain, on a GPU only as long as it takes to put one on a stream.
    Nobody waits for a chain's end while he holds the turn, but for that of the chain whose lane he takes.

    Args:
        manifest: of the bundle that the executor has loaded.
        executor: what runs its graphs.
        memory: where they run.
        lanes: chains that may be under way at a time.
        fewest: the least that B may be.
    """

    def __init__(self, manifest: Manifest, executor: Executor, memory: Memory, lanes: int = 1, fewest: int = 1):
        self.manifest, self.fewest = manifest, fewest
        self._memory = memory
        ran = _with_growing_kv(manifest) if executor.kv_grows else manifest
        self._lanes = [_Lane(ran, executor, memory, number) for number in range(lanes)]
        self._launches, self._turn = 0, Turn()
        self._staged: np.ndarray | None = None

    @property
    def lanes(self) -> int:
        """See `Engine`."""
        return len(self._lanes)

    def upload(self, array: np.ndarray, dtype: str = "") -> Buffer:
        """Bring an array to where the graphs run, as this type of a bundle if it is named."""
        dtype = dtype or array.dtype.name
        raw = encode(array, dtype)
        block, staged = self._memory.allocate(raw.nbytes), self._stage(raw.nbytes)
        staged[:] = raw
        stream = self._lanes[0].stream
        stream.write(block.address, staged)
        stream.wait()
        return Buffer(block.address, dtype, array.shape, block)

    def download(self, tensor: Buffer) -> np.ndarray:
        """See `Engine`; bfloat16 comes back as float32."""
        staged, stream = self._stage(tensor.bytes), self._lanes[0].stream
        stream.read(staged, tensor.address)
        stream.wait()
        return decode(staged, tensor.dtype, tensor.shape)

    def run(self, graph: str, inputs: Buffers) -> dict[str, Buffer]:
        """See `Engine`; the next run of the same graph writes to the same places."""
        self._lanes[0].begin()
        return self._lanes[0].run(graph, inputs)

    def kv_cache(self, pictures: int) -> KVCache:
        """See `Engine`."""
        return self._lanes[0].kv_cache(pictures)

    def launch(
        self, name: str, chain: Chain, inputs: Mapping[str, np.ndarray], pictures: int, replayable: bool = True
    ) -> Launched:
        """See `Engine`."""
        with self._turn:
            lane = self._lanes[self._launches % len(self._lanes)]
            self._launches += 1
            return lane.launch(name, chain, inputs, pictures, replayable)

    def _stage(self, count: int) -> np.ndarray:
        """Staged bytes for one transfer that is waited for. They are kept: to pin memory takes longer than to copy."""
        if self._staged is None or self._staged.nbytes < count:
            self._staged = self._memory.stage(count)
        return self._staged[:count]


@dataclass(frozen=True)
class _Recording:
    """A chain of one name and batch: where its outputs arrive, and what replays it; None if it has only been run."""

    outputs: dict[str, "_Staged"]
    replay: Callable[[], None] | None


@dataclass(frozen=True)
class _Staged:
    """A tensor in staged host memory."""

    raw: np.ndarray
    dtype: str
    shape: tuple[int, ...]


class _Lane:
    """What one chain needs; see `GraphRunner` for what the chain sees of it."""

    def __init__(self, manifest: Manifest, executor: Executor, memory: Memory, number: int):
        self.number, self.stream = number, memory.stream()
        self._manifest, self._executor, self._memory = manifest, executor, memory
        self._blocks: dict[Hashable, Block] = {}
        self._stages: dict[Hashable, np.ndarray] = {}
        self._turns: Counter[str] = Counter()
        self._recordings: dict[tuple[str, int], _Recording] = {}
        self._under_way: _Launched | None = None

    # ---- what a chain sees

    def begin(self) -> None:
        """From here on outputs go to the first places again."""
        self._turns.clear()

    def run(self, graph: str, inputs: Buffers) -> dict[str, Buffer]:
        """See `GraphRunner`. A graph that runs twice in a chain has places for the outputs of either run."""
        spec = self._manifest.graphs[graph]
        pictures = _pictures(graph, spec, inputs)
        turn = self._turns[graph]
        self._turns[graph] += 1
        outputs = {}
        for tensor in spec.outputs:
            place: Hashable = (graph, turn, tensor.name)
            if tensor.name == "new_kv":
                place = self._kv_place(graph)
            outputs[tensor.name] = self._buffer(place, tensor.dtype, tensor.sized(pictures))
        self._executor.run(graph, inputs, outputs, self)
        return outputs

    def download(self, tensor: Buffer) -> np.ndarray:
        """See `GraphRunner`."""
        staged = self._stage("download", tensor.bytes)
        self.stream.read(staged, tensor.address)
        self.stream.wait()
        return decode(staged, tensor.dtype, tensor.shape)

    def scratch(self, count: int) -> Block:
        """See `Place`."""
        return self._block("scratch", count)

    def forget(self) -> None:
        """See `Place`. When something moves, what was recorded would write to where it was."""
        self.stream.wait()
        self._recordings.clear()
        self._executor.forget(self.number)

    def _kv_place(self, graph: str) -> Hashable:
        """Keys and values are large, and read by the next scale, or before it runs: all scales share a place or two."""
        return "new_kv", tuple(self._manifest.graphs).index(graph) % 2 if self._executor.kv_grows else 0

    def kv_cache(self, pictures: int) -> KVCache:
        """See `GraphRunner`."""
        if self._executor.kv_grows:
            return _GrowingKVCache()
        model = self._manifest.model
        dtypes = (t.dtype for graph in self._manifest.graphs.values() for t in graph.outputs if t.name == "new_kv")
        rows = model.row_groups(0), pictures
        shape = (model.depth, 2, *rows, model.heads, model.cached_tokens[-1], HEAD_WIDTH)
        return _WindowedKVCache(self._buffer("past_kv", next(dtypes), shape), self.stream)

    # ---- a whole chain

    def launch(
        self, name: str, chain: Chain, inputs: Mapping[str, np.ndarray], pictures: int, replayable: bool
    ) -> "_Launched":
        """Start a chain: it is run at first; the second time it is recorded after its run, and replayed from then on.

        What is not to be replayed is run every time. What is recorded is so right after a run of the same shapes: an
        engine that meets new shapes may need its host's hand once.
        """
        if self._under_way:
            self._under_way.result()  # its outputs arrive where this one's will
            self._under_way = None  # whoever wants them has them
        for input_name, array in inputs.items():
            raw = encode(array, array.dtype.name)
            self._stage(("in", input_name), raw.nbytes)[:] = raw
        shapes = {input_name: (array.dtype.name, array.shape) for input_name, array in inputs.items()}
        recording = self._recordings.get((name, pictures))
        if not replayable:
            outputs = self._work(chain, shapes)
        elif recording and recording.replay:
            recording.replay()
            outputs = recording.outputs
        else:
            if recording is None and len(self._recordings) == _MAX_RECORDINGS:
                self.forget()
            outputs = self._work(chain, shapes)
            replay = None
            # If the run itself made something move, what it bound is not all bound any more: not yet.
            still_known = (name, pictures) in self._recordings
            if still_known and self._executor.recordable:
                replay = self.stream.record(lambda: self._work(chain, shapes))
            self._recordings[name, pictures] = _Recording(outputs, replay)
        self._under_way = _Launched(self.stream, outputs)
        return self._under_way

    def _work(self, chain: Chain, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, _Staged]:
        """Everything of a chain from staged inputs to staged outputs, put on the stream."""
        self.begin()
        given = {}
        for name, (dtype, shape) in shapes.items():
            given[name] = self._buffer(("in", name), dtype, shape)
            self.stream.write(given[name].address, self._stage(("in", name), given[name].bytes))
        outputs = {}
        for name, buffer in chain(self, given).items():
            raw = self._stage(("out", name), buffer.bytes)
            self.stream.read(raw, buffer.address)
            outputs[name] = _Staged(raw, buffer.dtype, buffer.shape)
        return outputs

    def _buffer(self, place: Hashable, dtype: str, shape: tuple[int, ...]) -> Buffer:
        """The buffer of a place; a larger one than before moves the place."""
        block = self._block(place, math.prod(shape) * ITEM_BYTES[dtype])
        return Buffer(block.address, dtype, shape, block)

    def _block(self, place: Hashable, count: int) -> Block:
        if place in self._blocks and self._blocks[place].bytes < count:
            self.forget()
            del self._blocks[place]  # before there is a new one
        if place not in self._blocks:
            self._blocks[place] = self._memory.allocate(count)
        return self._blocks[place]

    def _stage(self, place: Hashable, count: int) -> np.ndarray:
        """Staged bytes of a place, likewise."""
        if place in self._stages and self._stages[place].nbytes < count:
            self.forget()
            del self._stages[place]
        if place not in self._stages:
            self._stages[place] = self._memory.stage(count)
        return self._stages[place][:count]


class _WindowedKVCache:
    """The whole cache as one buffer; every scale's keys and values go to their place in it."""

    def __init__(self, past_D2GBhTd: Buffer, stream: Stream):
        self.past = past_D2GBhTd
        self._stream, self._filled = stream, 0

    def append(self, new_kv: Buffer) -> None:
        """See `KVCache`.

        Raises:
            BundleError: it is of another type than the cache, as whose bytes it would not lie where it should.
        """
        if new_kv.dtype != self.past.dtype:
            raise BundleError(
                f"A scale gives new_kv as {new_kv.dtype}, and an earlier one as {self.past.dtype}. {EXPORT_AGAIN}"
            )
        *_, tokens, width = new_kv.shape
        item = width * ITEM_BYTES[new_kv.dtype]
        target = self.past.address + self._filled * item
        copied, of_target = (math.prod(each.shape[2:-2]) for each in (new_kv, self.past))
        rows = Rows(copied, of_target, planes=math.prod(new_kv.shape[:2]))
        self._stream.copy_rows(target, self.past.shape[-2] * item, new_kv.address, tokens * item, rows)
        self._filled += tokens


class _GrowingKVCache:
    """The cache as the last scale gave it."""

    def __init__(self) -> None:
        self._past: Buffer | None = None

    @property
    def past(self) -> Buffer:
        """See `KVCache`."""
        assert self._past, "no scale has given any keys and values yet"
        return self._past

    def append(self, new_kv: Buffer) -> None:
        """See `KVCache`; what is given holds all before it."""
        self._past = new_kv


def _with_growing_kv(manifest: Manifest) -> Manifest:
    """The same graphs, with a cache of as many tokens as it holds before and after each scale."""
    model = manifest.model
    graphs = dict(manifest.graphs)
    for si, name in enumerate(graph_names(model)[1:-1]):
        before, kept = model.cached_tokens[si], model.kept_tokens(si)

        def sized(tensor: TensorSpec, part: str, giver: int, tokens: int) -> TensorSpec:
            if tensor.name != part:
                return tensor
            depth, parts, _, *rows, _, width = tensor.shape
            return replace(tensor, shape=(depth, parts, model.row_groups(giver), *rows, tokens, width))

        graphs[name] = replace(
            graphs[name],
            inputs=tuple(sized(tensor, "past_kv", si - 1, before) for tensor in graphs[name].inputs),
            outputs=tuple(sized(tensor, "new_kv", si, before + kept) for tensor in graphs[name].outputs),
        )
    return replace(manifest, graphs=graphs)


class _Launched:
    """See `Launched`. Asked for by whoever launched it, and by whoever takes its lane, which may be another thread."""

    def __init__(self, stream: Stream, outputs: Mapping[str, _Staged]):
        self._stream, self._outputs, self._lock = stream, outputs, Lock()
        self._arrays: dict[str, np.ndarray] | None = None

    def result(self) -> dict[str, np.ndarray]:
        """See `Launched`."""
        with self._lock:
            if self._arrays is None:
                self._stream.wait()
                self._arrays = {name: decode(o.raw, o.dtype, o.shape) for name, o in self._outputs.items()}
            return self._arrays


def _pictures(graph: str, spec: GraphSpec, inputs: Buffers) -> int:
    """B of a run, for which all inputs must be sized.

    Raises:
        BundleError: they are not, or one is missing: this is not the graph's chain.
    """
    of_pictures = next((tensor for tensor in spec.inputs if tensor.shape[:1] == ("B",)), None)
    if of_pictures is None:
        raise BundleError(f"The graph {graph} reads nothing that tells how many pictures there are. {EXPORT_AGAIN}")
    pictures = inputs[of_pictures.name].shape[0] if of_pictures.name in inputs else 1
    for tensor in spec.inputs:
        found = inputs.get(tensor.name)
        wanted = tensor.dtype, tensor.sized(pictures)
        if found is None or (found.dtype, found.shape) != wanted:
            was = f"{found.dtype} {list(found.shape)}" if found else "nothing"
            raise BundleError(f"The graph {graph} reads {tensor.name} as {wanted[0]} {list(wanted[1])}, given {was}.")
    return pictures
