"""The engine over buffers, with ONNX Runtime's sessions on the host: buffers, the KV window, lanes, and recordings.

A stream that records is `cuda_memory.CudaStream` over the stand-in of `gpu_on_host.py`: there a run waits on its stream
like everything else, so what is recorded is the runs, too.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_on_host import HostCuda
from small_models import small_config, vivid_model

from actvar.bundle.contract import MASKED_SCALES, SCALES
from actvar.bundle.manifest import Manifest, read_manifest
from actvar.config import Activation, Sampling
from actvar.errors import BundleError
from actvar.export.onnx_export import export_bundle
from actvar.runtime.backends import cuda_memory, ort
from actvar.runtime.backends.buffered import BufferedEngine, Buffers, Place
from actvar.runtime.backends.cuda_memory import CudaMemory
from actvar.runtime.backends.memory import HostMemory, HostStream, Memory, decode, encode
from actvar.runtime.pictures import Order, Picture
from actvar.runtime.pipeline import GraphSource

SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)
CONFIG = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    export_bundle(vivid_model(CONFIG), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> BufferedEngine:
    return ort.load(bundle, read_manifest(bundle), threads=1, scales="each")


@pytest.fixture
def manifest(loaded: BufferedEngine) -> Manifest:
    return loaded.manifest


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    stand_in = HostCuda()
    monkeypatch.setattr(cuda_memory, "cudart", stand_in)
    return stand_in


class OnStream:
    """ONNX Runtime's executor, whose runs are put on a stream of the stand-in's like a kernel."""

    recordable, kv_grows = True, False

    def __init__(self, inner: Any, host: HostCuda):
        self._inner, self._host = inner, host
        self.forgotten: list[int] = []

    def run(self, graph: str, inputs: Buffers, outputs: Buffers, lane: Place) -> None:
        class Host:
            number, stream = 0, HostStream()

        lane.scratch(1000 * max(buffer.shape[0] for buffer in inputs.values() if buffer.shape))
        self._host.put(lane.stream.handle, lambda: self._inner.run(graph, inputs, outputs, Host()))

    def forget(self, lane: int) -> None:
        self.forgotten.append(lane)


@pytest.fixture
def on_stream(loaded: BufferedEngine, host: HostCuda) -> Callable[[int], BufferedEngine]:
    """Engines whose streams record."""
    executor = loaded._lanes[0]._executor
    return lambda lanes: BufferedEngine(loaded.manifest, OnStream(executor, host), CudaMemory(), lanes)


def orders(count: int, first: int = 0) -> list[Order]:
    return [Order((7 * number) % 5, number) for number in range(first, first + count)]


def draw(engine: BufferedEngine, wanted: Sequence[Order], batch_size: int, seed: int = 7) -> list[Picture]:
    return list(GraphSource(engine, batch_size).draw(wanted, SAMPLING, seed))


def assert_same(found: Sequence[Picture], wanted: Sequence[Picture]) -> None:
    for picture, same in zip(found, wanted, strict=True):
        assert picture.order == same.order
        np.testing.assert_array_equal(picture.pixels_HW3, same.pixels_HW3)
        for tokens, same_tokens in zip(picture.token_ids, same.token_ids, strict=True):
            np.testing.assert_array_equal(tokens, same_tokens)


def addresses(engine: BufferedEngine) -> dict[Any, int]:
    return {(lane.number, place): block.address for lane in engine._lanes for place, block in lane._blocks.items()}


# ---- the KV window


@pytest.mark.parametrize("memory", ["host", "stream"])
def test_the_window_holds_the_concatenation_of_what_was_appended(loaded, host: HostCuda, memory: str):
    """[D, 2, G, B, h, T, d] with T filled from the left, whatever was in it; a scale may keep any number of tokens."""
    kinds: dict[str, Memory] = {"host": HostMemory(), "stream": CudaMemory()}
    engine = BufferedEngine(loaded.manifest, loaded._lanes[0]._executor, kinds[memory])
    rng = np.random.default_rng(0)
    for pictures in (2, 1, 3):
        cache = engine.kv_cache(pictures)
        *rows, room, width = cache.past.shape
        assert (*rows[2:4], room) == (2, pictures, CONFIG.cached_tokens[-1])
        parts = [rng.standard_normal((*rows, kept, width)).astype(np.float32) for kept in (1, 4, 2)]
        for part in parts:
            cache.append(engine.upload(part))
        whole = engine.download(cache.past)
        np.testing.assert_array_equal(whole[..., :7, :], np.concatenate(parts, axis=-2))


@pytest.mark.parametrize("scales", [SCALES, MASKED_SCALES])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_cache_that_grows_is_the_cache_of_the_window(
    bundle: Path, loaded: BufferedEngine, batch_size: int, scales: str
):
    """One graph of all scales gives old and new keys and values as attention put them together, a batch of any size."""
    joined = ort.load(bundle, read_manifest(bundle), threads=1, scales=scales)
    assert joined._lanes[0]._executor.kv_grows
    assert_same(draw(joined, orders(5), batch_size), draw(loaded, orders(5), batch_size))
    places = {place for _, place in addresses(joined)}
    assert {("new_kv", 0), ("new_kv", 1)} < places
    assert "past_kv" not in places


def test_the_decoder_is_given_one_picture_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """On a CPU, so that its maps take the memory of one."""
    runs = []
    engine = ort.load(bundle, read_manifest(bundle), threads=1)
    run = ort.Session.run_with_iobinding

    def counted(session: ort.Session, *arguments: Any) -> None:
        runs.append(session)
        run(session, *arguments)

    monkeypatch.setattr(ort.Session, "run_with_iobinding", counted)
    draw(engine, orders(5), 3)
    decoder = engine._lanes[0]._executor._sessions["decoder"].result()
    assert runs.count(decoder) == 5


# ---- buffers


def test_batches_of_changing_size_draw_what_each_picture_is_alone(loaded: BufferedEngine, manifest: Manifest):
    """Buffers that grew keep bytes of other batches, and a smaller batch lies in a larger one's place."""
    alone = draw(loaded, orders(9), 1)
    engine = BufferedEngine(manifest, loaded._lanes[0]._executor, HostMemory())
    for batch_size in (2, 5, 1, 3, 5, 9):
        assert_same(draw(engine, orders(9), batch_size), alone)


def test_buffers_are_kept_for_smaller_batches_and_move_for_larger_ones(loaded: BufferedEngine, manifest: Manifest):
    """What a recording relies on: places do not change by themselves."""
    engine = BufferedEngine(manifest, loaded._lanes[0]._executor, HostMemory())
    draw(engine, orders(3), 3)
    before = addresses(engine)
    for batch_size in (3, 1, 2):
        draw(engine, orders(4), batch_size)
    assert addresses(engine) == before
    room = engine._lanes[0]._blocks["past_kv"].bytes
    draw(engine, orders(4), 4)
    assert addresses(engine).keys() == before.keys()
    # Its address says nothing: the old place is free by then, and the new one may begin there.
    assert 3 * engine._lanes[0]._blocks["past_kv"].bytes == 4 * room


def test_a_buffer_that_grows_is_freed_before_the_larger_one_is_there(host: HostCuda, on_stream):
    """The KV window of a large batch is gigabytes: both at a time may not fit where one does."""
    engine = on_stream(1)
    small, large = engine.kv_cache(1).past.bytes, 4 * engine.kv_cache(1).past.bytes
    held = sum(block.nbytes for block in host.live.values()) - small
    host.memory = held + large + small // 2
    assert engine.kv_cache(4).past.bytes == large


# ---- lanes


def test_two_lanes_draw_the_pictures_of_one(host: HostCuda, on_stream, loaded: BufferedEngine):
    """Batches that are under way together must not share a buffer."""
    wanted = draw(loaded, orders(11), 2)
    for lanes in (1, 2, 3):
        assert_same(draw(on_stream(lanes), orders(11), 2), wanted)


def test_a_launch_keeps_the_result_of_the_one_whose_places_it_takes(host: HostCuda, on_stream, manifest: Manifest):
    """Three launches on two lanes before any result is asked for: the first is fetched before it is overwritten."""
    engine = on_stream(2)
    pipeline = GraphSource(engine)

    def chain(graphs, given):
        return {"modulation": graphs.run("condition", given)["modulation"]}

    wanted = [
        engine.download(engine.run("condition", {"class_ids": engine.upload(np.array([c]))})["modulation"])
        for c in (0, 1, 2)
    ]
    assert not np.array_equal(wanted[0], wanted[2])
    launched = [engine.launch("condition", chain, {"class_ids": np.array([c])}, 1) for c in (0, 1, 2)]
    for found, same in zip(launched, wanted, strict=True):
        np.testing.assert_array_equal(found.result()["modulation"], same)
        assert found.result() is found.result()
    assert pipeline.model == manifest.model


def test_a_result_is_not_overwritten_by_later_launches(host: HostCuda, on_stream):
    """Whoever holds pictures holds arrays of their own."""
    engine = on_stream(1)

    def chain(graphs, given):
        return {"start": graphs.run("condition", given)["start"]}

    first = engine.launch("start", chain, {"class_ids": np.array([1])}, 1).result()["start"]
    kept = first.copy()
    engine.launch("start", chain, {"class_ids": np.array([2])}, 1).result()
    np.testing.assert_array_equal(first, kept)


# ---- recordings


def test_a_result_that_nobody_holds_is_gone_when_the_next_chain_runs(loaded: BufferedEngine, manifest: Manifest):
    """A batch of pictures in floats would otherwise stay for as long as the next one is drawn."""
    engine = BufferedEngine(manifest, loaded._lanes[0]._executor, HostMemory())
    results: list[weakref.ref[np.ndarray]] = []

    def chain(graphs: Any, given: Any) -> Any:
        assert not any(result() is not None for result in results)
        return {"twice": given["x"]}

    for value in range(3):
        result = engine.launch("twice", chain, {"x": np.full(4, value)}, 1).result()["twice"]
        assert result.tolist() == [value] * 4
        results.append(weakref.ref(result))
        del result


def test_a_replayed_chain_draws_what_a_fresh_run_draws(host: HostCuda, on_stream, loaded: BufferedEngine):
    """Other classes, numbers and seeds than it was recorded with; from the third batch of a size nothing runs anew."""
    engine = on_stream(1)
    for first, seed in ((0, 7), (10, 8)):
        draw(engine, orders(2, first), 2, seed)
    assert (host.launches, len(host.graphs)) == (0, 1)
    for first, seed in ((20, 9), (30, 7)):
        assert_same(draw(engine, orders(2, first), 2, seed), draw(loaded, orders(2, first), 2, seed))
    assert host.launches == 2


def test_recordings_of_several_sizes_stand_side_by_side(host: HostCuda, on_stream, loaded: BufferedEngine):
    """A large batch first, then its remainder, over and over: neither replay may disturb the other."""
    engine = on_stream(2)
    for _ in range(5):
        assert_same(draw(engine, orders(5), 3), draw(loaded, orders(5), 3))
    assert len(host.graphs) == 2  # on either lane one size
    assert host.launches == 6


def test_growth_forgets_what_was_recorded(host: HostCuda, on_stream, loaded: BufferedEngine):
    """A replay would write to where the buffers were. The stand-in refuses memory that was freed."""
    engine = on_stream(1)
    for _ in range(3):
        draw(engine, orders(2), 2)
    assert (host.launches, len(host.graphs)) == (1, 1)
    forgotten = engine._lanes[0]._executor.forgotten
    known = len(forgotten)
    assert_same(draw(engine, orders(4), 4), draw(loaded, orders(4), 4))
    assert len(host.graphs) == 0 and len(forgotten) > known and set(forgotten) == {0}
    for _ in range(3):
        assert_same(draw(engine, orders(2), 2), draw(loaded, orders(2), 2))
    assert host.launches == 2


def test_a_chain_with_other_outputs_has_a_recording_of_its_own(host: HostCuda, on_stream, loaded: BufferedEngine):
    """The decoder runs after every scale then, each time to another place."""
    pipeline = GraphSource(on_stream(1), 2)
    for with_partials in (True, False, True, False, True, False, True):
        found = list(pipeline.draw(orders(2), SAMPLING, 7, with_partials))
        wanted = list(GraphSource(loaded, 2).draw(orders(2), SAMPLING, 7, with_partials))
        assert_same(found, wanted)
        for picture, same in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(np.stack(picture.partials or [0]), np.stack(same.partials or [0]))
    assert host.launches == 3


def test_recordings_of_many_sizes_do_not_pile_up(host: HostCuda, on_stream):
    """A server may be asked for every size there is."""
    engine = on_stream(1)

    def chain(graphs, given):
        return {"start": graphs.run("condition", given)["start"]}

    for size in (*range(40, 0, -1), *range(40, 0, -1)):
        for _ in range(2):
            engine.launch("start", chain, {"class_ids": np.zeros(size, np.int64)}, size).result()
        assert len(host.graphs) <= 16


def test_what_cannot_be_recorded_is_run_every_time(host: HostCuda, on_stream, loaded: BufferedEngine, caplog):
    """As where an engine waits in the middle: the same pictures, and one warning."""
    engine = on_stream(1)
    executor = engine._lanes[0]._executor
    run = executor.run

    def waiting(graph, inputs, outputs, lane):
        lane.stream.wait()
        run(graph, inputs, outputs, lane)

    executor.run = waiting
    for _ in range(4):
        assert_same(draw(engine, orders(2), 2), draw(loaded, orders(2), 2))
    assert host.launches == 0
    assert sum("cannot be recorded" in message for message in caplog.messages) == 1


def test_an_executor_of_another_stream_is_not_recorded(host: HostCuda, loaded, manifest: Manifest, caplog):
    """ONNX Runtime on a GPU: a recording of our stream would lack its runs, and draw the same picture for ever."""
    engine = BufferedEngine(manifest, loaded._lanes[0]._executor, CudaMemory())
    for first in (0, 10, 20):
        assert_same(draw(engine, orders(2, first), 2), draw(loaded, orders(2, first), 2))
    assert not host.graphs
    assert caplog.messages == []  # as nothing was tried


# ---- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f_hat": None}, "reads f_hat as float32 .* given nothing"),
        (
            {"f_hat": np.zeros((1, 6, 5, 4), np.float32)},
            r"reads f_hat as float32 \[1, 6, 5, 5\], given float32 \[1, 6, 5, 4\]",
        ),
        ({"f_hat": np.zeros((1, 6, 5, 5), np.float16)}, r"reads f_hat as float32 .*, given float16 \[1, 6, 5, 5\]"),
        (
            {"f_hat": np.zeros((2, 6, 5, 5), np.float32)},
            r"\[1, .*given .*\[2, |\[2, .*given .*\[1, |\[4, .*given .*\[2, ",
        ),
    ],
)
def test_a_tensor_of_another_shape_or_type_is_refused_by_name(
    loaded: BufferedEngine, manifest: Manifest, change, message
):
    """An address has neither: a graph would read whatever lies there."""
    spec = manifest.graphs["scale_02"]
    arrays = {t.name: np.zeros(t.sized(1), t.dtype) for t in spec.inputs} | change
    inputs = {name: loaded.upload(array) for name, array in arrays.items() if array is not None}
    with pytest.raises(BundleError, match=f"The graph scale_02 {message}|The graph scale_02 reads .*{message}"):
        loaded.run("scale_02", inputs)


# ---- types


def test_bfloat16_is_rounded_as_pytorch_rounds():
    """Every bit pattern of the upper half, ties to even among them, numbers below the smallest, infinities and NaN."""
    some = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)
    bits = np.concatenate([some, np.arange(2**16, dtype=np.uint32) << 16])
    ties = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, ties, ties + 1, ties - 1]).view(np.float32)
    raw = encode(values, "bfloat16")
    wanted = torch.from_numpy(values).to(torch.bfloat16)
    found = torch.from_numpy(raw.copy()).view(torch.bfloat16)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    back = decode(raw, "bfloat16", values.shape)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, wanted.float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "bool"])
def test_other_types_keep_their_bytes(dtype: str):
    array = (np.arange(24) % 5).astype(dtype).reshape(2, 3, 4)[:, ::2]
    raw = encode(array, dtype)
    assert raw.tobytes() == array.tobytes()
    np.testing.assert_array_equal(decode(raw, dtype, array.shape), array)


def test_an_upload_may_name_its_type(loaded: BufferedEngine):
    """numpy has no bfloat16, so an array cannot say it."""
    values = np.array([[1.0, -2.5], [0.1, 3e38]], np.float32)
    buffer = loaded.upload(values, "bfloat16")
    assert (buffer.dtype, buffer.shape, buffer.bytes) == ("bfloat16", (2, 2), 8)
    np.testing.assert_array_equal(loaded.download(buffer), torch.from_numpy(values).bfloat16().float().numpy())


def test_an_initializer_that_owns_its_memory_is_given_as_a_view():
    """On a GPU weights own theirs, and ONNX Runtime refuses such; the view keeps the owner."""
    import onnxruntime

    owner = onnxruntime.OrtValue.ortvalue_from_shape_and_type([4], np.float32, "cpu", 0)
    owner.update_inplace(np.arange(4, dtype=np.float32))
    options = onnxruntime.SessionOptions()
    with pytest.raises(Exception, match="must be owned by the user"):
        options.add_initializer("weight", owner)
    view = ort.unowned(owner)
    assert view.data_ptr() == owner.data_ptr()
    del owner
    options.add_initializer("weight", view)
    np.testing.assert_array_equal(view.numpy(), np.arange(4, dtype=np.float32))


def test_the_manifest_decides_the_cache_and_not_the_batch_before(loaded: BufferedEngine, manifest: Manifest):
    """A cache for fewer pictures lies in the same place with another shape."""
    engine = BufferedEngine(replace(manifest), loaded._lanes[0]._executor, HostMemory())
    large, small = engine.kv_cache(3).past, engine.kv_cache(1).past
    assert (large.address, small.shape[2]) == (small.address, 2)


def test_keys_of_another_type_than_the_cache_are_refused(loaded: BufferedEngine, manifest: Manifest):
    """A manifest may give each scale's new_kv a type of its own: the larger one would be written beyond the window."""
    outputs = (replace(t, dtype="float16") if t.name == "new_kv" else t for t in manifest.graphs["scale_01"].outputs)
    graphs = {**manifest.graphs, "scale_01": replace(manifest.graphs["scale_01"], outputs=tuple(outputs))}
    engine = BufferedEngine(replace(manifest, graphs=graphs), loaded._lanes[0]._executor, HostMemory())
    cache = engine.kv_cache(1)
    assert cache.past.dtype == "float16"
    with pytest.raises(BundleError, match="new_kv as float32, and an earlier one as float16"):
        cache.append(engine.upload(np.zeros((*cache.past.shape[:-2], 1, cache.past.shape[-1]), np.float32)))


def test_a_graph_that_tells_no_number_of_pictures_is_refused(loaded: BufferedEngine, manifest: Manifest):
    """A manifest may leave inputs out, and then all that have pictures: how large the outputs are nobody knows."""
    spec = manifest.graphs["scale_02"]
    inputs = tuple(tensor for tensor in spec.inputs if "B" not in tensor.shape)
    graphs = {**manifest.graphs, "scale_02": replace(spec, inputs=inputs)}
    engine = BufferedEngine(replace(manifest, graphs=graphs), loaded._lanes[0]._executor, HostMemory())
    with pytest.raises(BundleError, match="scale_02 reads nothing that tells how many pictures"):
        engine.run("scale_02", {t.name: engine.upload(np.zeros(t.sized(1), t.dtype)) for t in inputs})


def test_a_run_after_which_something_moved_is_not_recorded(host: HostCuda, on_stream, manifest: Manifest):
    """What it bound before that is to be bound anew, which a capture would not survive."""
    engine = on_stream(1)
    lane, moves = engine._lanes[0], [False, True, False, False]

    def chain(graphs, given):
        made = graphs.run("condition", given)["start"]
        if moves and moves.pop(0):
            lane.forget()
        return {"start": made}

    for _ in range(2):
        engine.launch("start", chain, {"class_ids": np.zeros(1, np.int64)}, 1).result()
    assert not host.graphs
    for _ in range(2):
        engine.launch("start", chain, {"class_ids": np.zeros(1, np.int64)}, 1).result()
    assert len(host.graphs) == 1 and host.launches == 1


def test_transfers_share_one_place_in_staged_memory(host: HostCuda, on_stream, monkeypatch: pytest.MonkeyPatch):
    """To pin memory takes longer than a small copy: a clock that waits by a download would measure that."""
    engine = on_stream(1)
    first = engine.upload(np.arange(12, dtype=np.float32))
    staged = []
    monkeypatch.setattr(engine._memory, "stage", lambda count: staged.append(count))
    second = engine.upload(np.arange(12, 24, dtype=np.float32).reshape(3, 4))
    found = engine.download(first), engine.download(second)
    np.testing.assert_array_equal(np.concatenate([array.reshape(-1) for array in found]), np.arange(24))
    assert not staged
