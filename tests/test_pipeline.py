"""The chain of graphs: the same tokens as the eager model, and pictures that do not depend on their neighbours."""

import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_config, vivid_model

from actvar.bundle.contract import MASKED_SCALES, SCALES
from actvar.bundle.manifest import read_manifest, write_manifest
from actvar.config import MINI, Activation, Sampling
from actvar.errors import ActVARError, BundleError, UsageError
from actvar.export.onnx_export import export_bundle
from actvar.files import hash_file
from actvar.generation import generate
from actvar.models.actvar import ActVAR
from actvar.runtime.backends import ort
from actvar.runtime.backends.torch_source import eager_source
from actvar.runtime.pictures import Order, Picture, PictureSource, ScaleEnd, SeededOrder
from actvar.runtime.sources import open_graphs

SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)
ORDERS = [Order(class_id, number) for class_id, number in ((3, 0), (0, 1), (4, 7), (3, 1), (1, 2**40))]

SPARSE = Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))
CONFIGS = {
    "dense": small_config(),
    "active": small_config(activation=SPARSE),
    "shared AdaLN": small_config(activation=SPARSE, shared_adaln=True),
    "ten scales": replace(MINI, depth=1, num_classes=5, class_names=(), activation=Activation()),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ActVAR, Path]]:
    """Each configuration's model and bundle, made once."""
    made: dict[str, tuple[ActVAR, Path]] = {}

    def get(name: str) -> tuple[ActVAR, Path]:
        if name not in made:
            model, folder = vivid_model(CONFIGS[name]), tmp_path_factory.mktemp("bundles") / "bundle"
            export_bundle(model, folder, "fp32", "a test")
            made[name] = model, folder
        return made[name]

    return get


def draw(folder: Path, batch_size: int, orders: list[Order] = ORDERS, seed: int = 7) -> list[Picture]:
    return list(open_graphs(folder, batch_size, threads=1).draw(orders, SAMPLING, seed))


def png(pixels_HW3: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels_HW3).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_chain_draws_the_tokens_of_the_eager_model(drawn, name: str):
    """The whole way, with the cache of every scale: order of the graphs, of the rows, of cache and uniforms."""
    model, folder = drawn(name)
    for picture in draw(folder, batch_size=2):
        eager = generate(model, [picture.order.class_id], SAMPLING, 7, [picture.order.number])
        for found, wanted in zip(picture.token_ids, eager.token_ids, strict=True):
            np.testing.assert_array_equal(found, wanted[0].numpy())
        pixels_HW3 = eager.pictures_B3HW[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(picture.pixels_HW3 - pixels_HW3).max() <= 1.01  # truncated, and rounding on the way


@pytest.mark.parametrize("name", ["active", "ten scales"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_picture_is_the_same_bytes_alone_and_in_any_batch(drawn, name: str, threads: int):
    """The promise of --seed: no kernel may round by the number of rows that go through it."""
    _, folder = drawn(name)
    source = open_graphs(folder, 1, threads)
    alone = [png(next(source.draw([order], SAMPLING, 7)).pixels_HW3) for order in ORDERS]
    assert len(set(alone)) == len(ORDERS)
    for batch_size in (1, 2, 3, 5, 8):
        batches = replace(source, batch_size=batch_size).draw(ORDERS, SAMPLING, 7)
        assert [png(picture.pixels_HW3) for picture in batches] == alone


def test_a_picture_depends_on_class_number_and_seed_alone(drawn):
    """Neither the order nor what else is drawn; each of the three changes it."""
    _, folder = drawn("active")
    first, other_number, other_class = draw(folder, 3, [Order(3, 0), Order(3, 1), Order(2, 0)])
    last = draw(folder, 3, [Order(2, 0), Order(3, 1), Order(3, 0)])[-1]
    np.testing.assert_array_equal(first.pixels_HW3, last.pixels_HW3)
    for other in (other_number, other_class, draw(folder, 1, [Order(3, 0)], seed=8)[0]):
        assert (first.pixels_HW3 != other.pixels_HW3).any()


def test_partial_pictures_are_those_of_each_scale(drawn):
    """As many as scales, the last of them the picture, each what the decoder makes of that f_hat."""
    model, folder = drawn("active")
    picture = next(open_graphs(folder, 2, 1).draw(ORDERS[1:], SAMPLING, 7, with_partials=True))
    f_hats = generate(model, [picture.order.class_id], SAMPLING, 7, [picture.order.number]).f_hats
    assert len(picture.partials) == len(f_hats) == 4
    np.testing.assert_array_equal(picture.partials[-1], picture.pixels_HW3)
    for pixels_HW3, f_hat in zip(picture.partials, f_hats, strict=True):
        wanted_HW3 = (model.vqvae.decode(f_hat)[0].permute(1, 2, 0).numpy() + 1) / 2 * 255
        assert np.abs(pixels_HW3 - wanted_HW3).max() <= 1.01


def test_pictures_come_as_they_are_drawn(drawn):
    """A grid of hundreds shows progress, and stops at once when nobody wants the rest."""
    _, folder = drawn("active")
    source = open_graphs(folder, 2, 1)
    launches = []
    launch = source.engine.launch

    def counted(name, chain, inputs, pictures, replayable):
        launches.append(pictures)
        return launch(name, chain, inputs, pictures, replayable)

    source.engine.launch = counted  # type: ignore[method-assign]
    pictures = source.draw(ORDERS, SAMPLING)
    assert launches == []
    next(pictures)
    next(pictures)
    assert launches == [2]


def test_orders_are_taken_batch_by_batch(drawn):
    """Of orders without an end no more than the batch under way are asked for."""
    _, folder = drawn("active")
    taken = []

    def endless() -> Iterator[Order]:
        for number in itertools.count():
            taken.append(number)
            yield Order(2, number)

    pictures = open_graphs(folder, 3, 1).draw(endless(), SAMPLING, 7)
    for number in range(8):
        assert next(pictures).order == Order(2, number)
        assert len(taken) == 3 * (number // 3 + 1)


# ---- looking on while a batch is drawn


@pytest.fixture(params=["fastest", "each", "eager"])
def source(request: pytest.FixtureRequest, drawn) -> PictureSource:
    """What draws, two pictures at a time where it can."""
    model, folder = drawn("active")
    return eager_source(model) if request.param == "eager" else open_graphs(folder, 2, 1, scales=request.param)


def test_every_scale_is_shown_and_no_picture_changes(source: PictureSource):
    """The partial pictures of all of a batch, each equal to the one that is kept when partials are asked for."""
    wanted, shown = list(source.draw(ORDERS, SAMPLING, 7, with_partials=True)), []
    found = list(source.draw(ORDERS, SAMPLING, 7, on_scale_end=shown.append))
    for picture, same in zip(found, wanted, strict=True):
        assert picture.partials == ()
        np.testing.assert_array_equal(picture.pixels_HW3, same.pixels_HW3)
    partials: dict[Order, list[np.ndarray]] = {order: [] for order in ORDERS}
    for end in shown:
        assert end.scales == 4 and end.scale == len(partials[end.orders[0]]) + 1
        for order, pixels_HW3 in zip(end.orders, end.pixels_BHW3, strict=True):
            partials[order].append(pixels_HW3)
    for same in wanted:
        np.testing.assert_array_equal(np.stack(partials[same.order]), np.stack(same.partials))


def test_an_order_may_have_a_seed_of_its_own(source: PictureSource):
    """A server puts pictures of many seeds into one batch: each is the one that its seed draws alone."""
    orders = [SeededOrder(order.class_id, order.number, 2**64 - 1 - i) for i, order in enumerate(ORDERS)]
    for i, found in enumerate(source.draw(orders, SAMPLING, 7)):
        assert found.order is orders[i]
        [wanted] = source.draw([ORDERS[i]], SAMPLING, 2**64 - 1 - i)
        np.testing.assert_array_equal(found.pixels_HW3, wanted.pixels_HW3)
    with pytest.raises(UsageError, match="seed must lie in"):
        list(source.draw([SeededOrder(0, 0, 2**64)], SAMPLING, 7))


def test_a_scale_is_shown_before_the_next_one_runs(drawn):
    """Whoever streams partial pictures must not get them all at the end."""
    source, events = open_graphs(drawn("active")[1], 2, 1, scales="each"), []
    executor = source.engine._lanes[0]._executor  # type: ignore[attr-defined]
    run = executor.run

    def watched(graph: str, *arguments: object) -> None:
        if graph != "decoder":
            events.append(graph)
        run(graph, *arguments)

    executor.run = watched
    for _ in source.draw(ORDERS[:3], SAMPLING, on_scale_end=lambda end: events.append(f"shown {end.scale}")):
        events.append("taken")
    batch = ["condition", *(event for si in range(1, 5) for event in (f"scale_{si:02d}", f"shown {si}"))]
    assert events == [*batch, "taken", "taken", *batch, "taken"]


def test_the_eager_model_shows_a_scale_before_the_next_one(drawn, monkeypatch: pytest.MonkeyPatch):
    """Seen from the model's own work."""
    source, events = eager_source(drawn("active")[0]), []
    infer = source.drawer.network.var.infer

    def watched(*arguments):
        events.append("scale")
        return infer(*arguments)

    monkeypatch.setattr(source.drawer.network.var, "infer", watched)
    list(source.draw(ORDERS[:1], SAMPLING, on_scale_end=lambda end: events.append("shown")))
    assert events == ["scale", "shown"] * 4


def test_who_looks_on_may_stop_the_drawing_and_may_not_draw(source: PictureSource):
    """An error leaves through `draw`, and the source draws on as before; it would wait for itself for ever."""
    wanted = list(source.draw(ORDERS, SAMPLING, 7))

    def stop(end: ScaleEnd) -> None:
        if end.scale == 2:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        list(source.draw(ORDERS, SAMPLING, 7, on_scale_end=stop))
    with pytest.raises(UsageError, match="Draw when the callback is over"):
        list(source.draw(ORDERS, SAMPLING, 7, on_scale_end=lambda end: list(source.draw(ORDERS[:1], SAMPLING))))
    for picture, same in zip(source.draw(ORDERS, SAMPLING, 7), wanted, strict=True):
        np.testing.assert_array_equal(picture.pixels_HW3, same.pixels_HW3)


@pytest.mark.parametrize(
    ("order", "seed", "message"),
    [
        (Order(-1, 0), 0, r"class must lie in 0\.\.4 for this model, got -1"),
        (Order(6, 0), 0, "got 6"),
        (Order(500, 0), 0, "got 500"),
        (Order(0, -1), 0, "number must lie in"),
        (Order(0, 2**64), 0, "number must lie in"),
        (Order(0, 0), -1, "seed must lie in"),
        (Order(0, 0), 2**64, "seed must lie in"),
    ],
)
def test_what_the_model_cannot_draw_is_refused(source: PictureSource, order: Order, seed: int, message: str):
    """A class beyond the table reads what lies behind it, and -1 its last row: a picture of something else."""
    pictures = source.draw([ORDERS[0], ORDERS[1], order], SAMPLING, seed)
    with pytest.raises(UsageError, match=message):
        for _ in pictures:
            pass


def test_a_picture_of_no_class_needs_no_guidance(source: PictureSource):
    """The class after the last is none: a picture's two rows are one, and their difference is nothing."""
    none = source.model.num_classes
    pictures = [next(iter(source.draw([Order(none, 3)], replace(SAMPLING, cfg=cfg), 7))) for cfg in (0.0, 4.0)]
    for plain, guided in zip(*(picture.token_ids for picture in pictures), strict=True):
        np.testing.assert_array_equal(plain, guided)
    other = next(iter(source.draw([Order(none - 1, 3)], SAMPLING, 7)))
    assert (other.pixels_HW3 != pictures[0].pixels_HW3).any()


def test_a_picture_of_no_class_is_the_same_in_graphs_and_beside_others(drawn):
    model, folder = drawn("active")
    orders = [Order(3, 0), Order(model.config.num_classes, 0), Order(0, 1)]
    wanted = generate(model, [model.config.num_classes], SAMPLING, 7, [0])
    for found in (draw(folder, 1, orders)[1], draw(folder, 3, orders)[1]):
        for ids_L, ids_BL in zip(found.token_ids, wanted.token_ids, strict=True):
            np.testing.assert_array_equal(ids_L, ids_BL[0].numpy())


def test_the_eager_source_draws_what_generate_draws(drawn):
    """--backend torch is the oracle itself, behind the seam of the graphs."""
    model, folder = drawn("active")
    for eager, graphs in zip(eager_source(model).draw(ORDERS, SAMPLING, 7, True), draw(folder, 1), strict=True):
        assert eager.order == graphs.order
        for a, b in zip(eager.token_ids, graphs.token_ids, strict=True):
            np.testing.assert_array_equal(a, b)
        assert len(eager.partials) == 4
        np.testing.assert_array_equal(eager.partials[-1], eager.pixels_HW3)
    without = next(iter(eager_source(model).draw(ORDERS, SAMPLING, 7)))
    assert without.partials == ()


def test_fp16_draws_with_a_cache_of_fp16(drawn, tmp_path: Path):
    """The types of what passes between graphs are the manifest's; a cache in fp32 would not fit the graph."""
    model, _ = drawn("active")
    export_bundle(model, tmp_path / "half", "fp16", "a test")
    source = open_graphs(tmp_path / "half", 2, 1)
    cache = source.engine.kv_cache(1)
    assert source.engine.download(cache.past).dtype == np.float16
    assert len(list(source.draw(ORDERS, SAMPLING))) == len(ORDERS)


# ---- what an engine may meet


def test_values_that_are_no_numbers_are_told(drawn, tmp_path: Path):
    """Weights that overflow would otherwise give a black picture, or a crash in the conversion."""
    model, _ = drawn("active")
    broken = ActVAR(model.config).eval().requires_grad_(False)
    broken.load_state_dict(model.state_dict())
    broken.vqvae.decoder.conv_out.bias.fill_(torch.nan)
    export_bundle(broken, tmp_path / "nan", "fp32", "a test")
    with pytest.raises(ActVARError, match="values that are not numbers"):
        draw(tmp_path / "nan", 1)


def test_the_processor_decides_which_graph_runs_all_scales(drawn, monkeypatch: pytest.MonkeyPatch):
    """Only where there are two, and where half of the experts or more are used: the active one uses a quarter."""
    dense, most, few = (read_manifest(drawn(name)[1]) for name in ("dense", "ten scales", "active"))
    for instructions, chosen in (((), SCALES), (("avx2",), SCALES), (("avx2", "avx512f"), MASKED_SCALES)):
        monkeypatch.setattr(ort, "cpu_instructions", lambda these=instructions: these)
        assert ort.joined_scales(most) == chosen
        assert ort.joined_scales(dense) == ort.joined_scales(few) == SCALES


def test_a_graph_of_all_scales_that_is_not_there_is_refused(drawn):
    """By name, with what is there."""
    with pytest.raises(BundleError, match=r"no graph scales_masked; .* it has scales\."):
        ort.joined_scales(read_manifest(drawn("dense")[1]), "scales_masked")


@pytest.fixture
def altered(drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], Path]:
    """A bundle with another content of a file, and a manifest that agrees with it: made by someone who means it.

    Its scales are run by `scales.onnx`, whatever the processor.
    """
    monkeypatch.setattr(ort, "cpu_instructions", lambda: ())

    def alter(name: str, content: bytes) -> Path:
        folder = Path(shutil.copytree(drawn("active")[1], tmp_path / "altered"))
        manifest = read_manifest(folder)
        (folder / name).write_bytes(content)
        entry = hash_file(folder / name)
        graphs = {g: replace(s, entry=entry) if s.entry.file == name else s for g, s in manifest.graphs.items()}
        weights, scales = manifest.weights, dict(manifest.scales)
        if name == "weights.bin":
            weights = replace(weights, bytes=entry.bytes, sha256=entry.sha256)
        if name == "scales.onnx":
            scales[SCALES] = replace(scales[SCALES], entry=entry)
        write_manifest(folder, replace(manifest, graphs=graphs, weights=weights, scales=scales))
        return folder

    return alter


@pytest.mark.parametrize("name", ["condition.onnx", "scales.onnx", "decoder.onnx"])
@pytest.mark.parametrize("content", [b"", b"\x08\x0a", b"\x3a\x00", b"not a graph at all"])
def test_a_graph_that_is_none_is_our_error(altered, name: str, content: bytes):
    """The hash is right and the content is not: ONNX Runtime's own exceptions must not reach a user."""
    with pytest.raises(BundleError, match=name):
        draw(altered(name, content), 1)


def test_another_graph_in_its_place_is_our_error(drawn, altered):
    """It would load, and draw from the wrong weights or fail in the middle of a picture."""
    other = (drawn("dense")[1] / "scales.onnx").read_bytes()
    with pytest.raises(BundleError, match=r"scales\.onnx: .* is not read as the manifest says"):
        draw(altered("scales.onnx", other), 1)


def test_a_graph_that_reads_outside_the_bundle_is_refused(drawn, altered, tmp_path: Path):
    """With a hash that is right, and a file that is there: some releases of ONNX Runtime would read it."""
    (tmp_path / "secret.b").write_bytes((drawn("active")[1] / "weights.bin").read_bytes())
    content = (drawn("active")[1] / "decoder.onnx").read_bytes()
    with pytest.raises(BundleError, match=r"'\.\./secret\.b', and may read weights\.bin alone"):
        draw(altered("decoder.onnx", content.replace(b"weights.bin", b"../secret.b")), 1)


@pytest.mark.parametrize("size", [0, 5000])
def test_weights_that_are_too_few_are_refused(drawn, altered, size: int):
    """A view beyond the end of the mapped file would be a crash of the process; the manifest itself shows it."""
    whole = (drawn("active")[1] / "weights.bin").read_bytes()
    with pytest.raises(BundleError, match=rf"the end of weights\.tensors\..* must be a whole number in 0\.\.{size}"):
        draw(altered("weights.bin", whole[:size]), 1)


def test_the_weights_are_mapped_once_but_for_the_small_ones_that_all_scales_read(drawn):
    """The session that packs its matrices gives their pages back; what it does not pack, it keeps mapped."""
    folder = drawn("ten scales")[1]
    source = open_graphs(folder, 1, 1)
    list(source.draw(ORDERS[:1], SAMPLING))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    assert all("weights.bin" in fields[-1] for fields in maps)
    sizes = sorted(int(end, 16) - int(start, 16) for start, end in (fields[0].split("-") for fields in maps))
    whole = (folder / "weights.bin").stat().st_size
    assert sizes[-1] >= whole > 10 * sum(sizes[:-1])
