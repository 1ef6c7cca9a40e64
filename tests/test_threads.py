"""One source of pictures in several threads: every thread gets its own pictures, and a stream at rest stops nobody."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from small_models import small_config, vivid_model

from actvar.bundle.manifest import read_manifest
from actvar.config import Activation, Sampling
from actvar.export.onnx_export import export_bundle
from actvar.models.actvar import ActVAR
from actvar.runtime.backends.buffered import BufferedEngine
from actvar.runtime.backends.memory import HostMemory
from actvar.runtime.backends.torch_source import eager_source
from actvar.runtime.pictures import Order, Picture, PictureSource
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_graphs

THREADS, PICTURES = 4, 12
SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)
CONFIG = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))


@pytest.fixture(scope="module")
def model() -> ActVAR:
    return vivid_model(CONFIG)


@pytest.fixture(scope="module")
def bundle(model: ActVAR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    export_bundle(model, folder, "fp32", "a test")
    return folder


def of_thread(thread: int) -> list[Order]:
    """What a thread asks for: classes and numbers that no other one has."""
    return [Order((thread + i) % CONFIG.num_classes, 100 * thread + i) for i in range(PICTURES)]


def draw(source: PictureSource, thread: int) -> list[Picture]:
    return list(source.draw(of_thread(thread), SAMPLING, seed=thread, with_partials=thread % 2 == 1))


def assert_same(found: Picture, wanted: Picture) -> None:
    assert found.order == wanted.order
    np.testing.assert_array_equal(found.pixels_HW3, wanted.pixels_HW3)
    assert len(found.partials) == len(wanted.partials)
    for a, b in zip((*found.token_ids, *found.partials), (*wanted.token_ids, *wanted.partials), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_every_thread_gets_its_own(source: PictureSource, alone: Callable[[int], PictureSource]) -> None:
    """Threads that begin together draw what each of them draws where it is the only one."""
    wanted = [draw(alone(thread), thread) for thread in range(THREADS)]
    together = Barrier(THREADS)

    def begin(thread: int) -> list[Picture]:
        together.wait(60)
        return draw(source, thread)

    with ThreadPoolExecutor(THREADS) as threads:
        for found, right in zip(threads.map(begin, range(THREADS)), wanted, strict=True):
            assert len(found) == PICTURES
            for picture, same in zip(found, right, strict=True):
                assert_same(picture, same)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("scales", ["fastest", "each"])
def test_every_thread_gets_its_own_pictures(bundle: Path, scales, batch_size: int):
    """Buffers and the window of the KV cache are an engine's: whoever writes there alone must be alone."""
    source = open_graphs(bundle, batch_size, threads=1, scales=scales)
    assert_every_thread_gets_its_own(source, lambda thread: source)


def test_threads_that_draw_in_batches_of_their_own_size_share_an_engine(bundle: Path):
    """The engine is what must not be shared at a time, not the source: a copy of one has the same engine."""
    source = open_graphs(bundle, 1, threads=1)
    sources = [replace(source, batch_size=size) for size in (1, 2, 3, 7)]
    wanted = [draw(source, thread) for thread in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        for found, right in zip(threads.map(draw, sources, range(THREADS)), wanted, strict=True):
            for picture, same in zip(found, right, strict=True):
                assert_same(picture, same)


def test_batches_under_way_on_two_lanes_are_kept_for_the_thread_that_launched_them(bundle: Path):
    """A launch takes the oldest lane, whoever has not fetched its pictures yet."""
    loaded = open_graphs(bundle, 1, threads=1, scales="each")
    executor = loaded.engine._lanes[0]._executor
    engine = BufferedEngine(read_manifest(bundle), executor, HostMemory(), lanes=2)
    assert_every_thread_gets_its_own(GraphSource(engine, 2), lambda thread: loaded)


def test_the_eager_model_is_drawn_with_by_one_thread_at_a_time(model: ActVAR):
    """The same promise behind the same seam."""
    source = eager_source(model)
    assert_every_thread_gets_its_own(source, lambda thread: source)


def test_a_stream_that_is_not_exhausted_stops_nobody(bundle: Path):
    """Somebody takes a picture, and looks at it for an hour."""
    source = open_graphs(bundle, 2, threads=1)
    wanted = draw(source, 0), draw(source, 2)
    resting = source.draw(of_thread(0), SAMPLING, 0)
    first = next(resting)
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(draw, source, 2).result(timeout=60)
    for picture, same in zip((first, *resting, *other), (*wanted[0], *wanted[1]), strict=True):
        assert_same(picture, same)
