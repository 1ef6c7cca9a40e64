"""Codes that are given in place of drawn ones: by the graphs and by PyTorch, in any batch."""

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from rich.console import Console
from small_models import small_config, vivid_model

from actvar.benchmarks.given_cost import copy_without
from actvar.bundle.contract import DRAWN, ENCODER
from actvar.bundle.manifest import read_manifest
from actvar.bundle.report import bundle_report
from actvar.config import Activation, Sampling
from actvar.errors import BundleError, UsageError
from actvar.export.onnx_export import export_bundle
from actvar.export.parity.check import check_parity
from actvar.runtime.backends import ort
from actvar.runtime.backends.torch_source import eager_source
from actvar.runtime.pictures import Order, Picture
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_graphs

MODEL = vivid_model(small_config(activation=Activation(4, (3, 4), (0.5, 0.6), (0.75, 0.5))))
CONFIG, SAMPLING = MODEL.config, Sampling(cfg=2.0, top_k=20, top_p=0.9)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODEL's, in fp32."""
    folder = tmp_path_factory.mktemp("editing") / "bundle"
    export_bundle(MODEL, folder, "fp32", "random weights")
    return folder


def some_codes(seed: int) -> tuple[np.ndarray, ...]:
    """Codes for about half of all tokens, of every scale [L]."""
    random = np.random.default_rng(seed)
    chosen = [random.integers(CONFIG.vqvae.vocab_size, size=tokens) for tokens in CONFIG.schedule.tokens]
    return tuple(np.where(random.random(len(codes_L)) < 0.5, codes_L, DRAWN) for codes_L in chosen)


def test_given_codes_stand_in_every_picture_and_change_what_is_drawn_beside_them(bundle: Path):
    """By each graph of scales, in a batch of given and drawn pictures: PyTorch's tokens, which hold what was given."""
    orders = [Order(1, 0), Order(2, 1, given=some_codes(1)), Order(1, 0, given=some_codes(2))]
    eager = list(eager_source(MODEL).draw(orders, SAMPLING, seed=3))
    for scales in ("each", "scales", "scales_masked"):
        drawn = list(open_graphs(bundle, batch_size=3, threads=1, scales=scales).draw(orders, SAMPLING, seed=3))
        for found, wanted in zip(drawn, eager, strict=True):
            assert same_tokens(found, wanted), scales
            assert np.abs(found.pixels_HW3.astype(int) - wanted.pixels_HW3).max() <= 1
    for picture in eager[1:]:
        for codes_L, ids_L in zip(picture.order.given, picture.token_ids, strict=True):
            assert (ids_L[codes_L != DRAWN] == codes_L[codes_L != DRAWN]).all()
    drawn_beside = eager[2].order.given[-1] == DRAWN
    assert (eager[0].token_ids[-1] != eager[2].token_ids[-1])[drawn_beside].any()


def test_codes_that_are_all_to_be_drawn_change_nothing(bundle: Path):
    """Whoever edits nothing has the pictures of `generate`."""
    nothing = tuple(np.full(tokens, DRAWN) for tokens in CONFIG.schedule.tokens)
    source = open_graphs(bundle, batch_size=2, threads=1)
    plain, edited = source.draw([Order(1, 0), Order(1, 0, given=nothing)], SAMPLING)
    assert same_tokens(plain, edited) and (plain.pixels_HW3 == edited.pixels_HW3).all()


@pytest.mark.parametrize("scales", ["each", "scales"])
def test_graphs_without_the_input_draw_the_same(bundle: Path, tmp_path: Path, scales: Literal["each", "scales"]):
    """What benchmarks/given_cost.py compares: nothing but the input, and what reads it, is gone."""
    copy = tmp_path / "without"
    source = GraphSource(ort.load(copy, copy_without(bundle, copy), 1, "cpu", scales))
    orders = [Order(1, 0), Order(2, 1)]
    with_it = open_graphs(bundle, batch_size=1, threads=1, scales=scales).draw(orders, SAMPLING, seed=3)
    assert all(map(same_tokens, source.draw(orders, SAMPLING, seed=3), with_it))
    assert not any(
        "given" in {tensor.name for tensor in spec.inputs} for spec in source.engine.manifest.graphs.values()
    )


@pytest.mark.parametrize("codes", [-2, 48])
def test_a_code_that_the_model_has_not_is_refused(bundle: Path, codes: int):
    """A graph would read beyond its codebook."""
    given = tuple(np.full(tokens, codes) for tokens in CONFIG.schedule.tokens)
    with pytest.raises(UsageError, match=r"must lie in 0\.\.47 for this model, or be -1"):
        list(open_graphs(bundle, batch_size=1, threads=1).draw([Order(1, 0, given=given)], SAMPLING))


def test_codes_of_another_schedule_are_refused(bundle: Path):
    """They would be of other places."""
    with pytest.raises(UsageError, match="for every scale"):
        list(eager_source(MODEL).draw([Order(1, 0, given=(np.zeros(1, np.int64),))], SAMPLING))


def picture(seed: int) -> np.ndarray:
    """Smooth colours and some noise, of the model's size: uint8 [H, W, 3]."""
    random, size = np.random.default_rng(seed), CONFIG.picture_size
    coarse = np.kron(random.random((2, 2, 3)), np.ones((size // 2, size // 2, 1)))
    return (255 * np.clip(coarse + 0.1 * random.standard_normal((size, size, 3)), 0, 1)).astype(np.uint8)


def test_the_encoder_gives_the_codes_of_pytorch(bundle: Path):
    """Of every scale: the greedy residual quantizer, graph against model."""
    source, eager = open_graphs(bundle, batch_size=1, threads=1), eager_source(MODEL)
    for seed in range(3):
        found, wanted = (each.encode(picture(seed)) for each in (source, eager))
        assert [len(codes_L) for codes_L in found] == list(CONFIG.schedule.tokens)
        assert all(map(np.array_equal, found, wanted)), seed


def test_a_vqvae_of_another_form_draws_and_encodes_as_pytorch(tmp_path: Path):
    """Codes by their direction, and convolutions of another number and size: every graph of scales, and the encoder."""
    vqvae = replace(CONFIG.vqvae, phi_count=3, code_kernel=1, znorm=True)
    model = vivid_model(small_config(vqvae=vqvae))
    export_bundle(model, tmp_path / "bundle", "fp32", "random weights")
    for scales in ("each", "scales"):
        source = open_graphs(tmp_path / "bundle", batch_size=2, threads=1, scales=scales)
        drawn, eager = (list(each.draw([Order(1, 0), Order(2, 1)], SAMPLING)) for each in (source, eager_source(model)))
        assert all(map(same_tokens, drawn, eager)), scales
    for seed in range(3):
        found, wanted = (each.encode(picture(seed)) for each in (source, eager_source(model)))
        assert all(map(np.array_equal, found, wanted)), seed
    unlike = eager_source(vivid_model(small_config(vqvae=replace(vqvae, znorm=False)))).encode(picture(0))
    assert not all(map(np.array_equal, source.encode(picture(0)), unlike)), "there must be something to see"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16-weights", "int8"])
def test_parity_compares_the_encoder(precision: str, tmp_path: Path):
    """In every precision that ONNX Runtime draws in; int8 and fp16-weights hold the encoder in fp32."""
    export_bundle(MODEL, tmp_path / "bundle", precision, "random weights")
    report = check_parity(MODEL, open_graphs(tmp_path / "bundle", batch_size=2, threads=1), pictures=2)
    difference = report.found[ENCODER, "token_ids"]
    assert difference.choices == 2 * CONFIG.schedule.total and difference.passed, difference


def test_an_encoder_that_is_wrong_departs(bundle: Path):
    """What parity finds is the encoder's, whatever was drawn before."""
    wrong = copy.deepcopy(MODEL)
    wrong.vqvae.encoder.conv_out.weight.mul_(-1)
    report = check_parity(wrong, open_graphs(bundle, batch_size=2, threads=1), pictures=2)
    assert report.first_departure.graph == ENCODER


def test_a_bundle_without_an_encoder_draws_and_says_why_it_cannot_edit(tmp_path: Path):
    """It is smaller by the encoder's weights; its report says it, too."""
    folder = tmp_path / "bundle"
    manifest = export_bundle(MODEL, folder, "fp32", "random weights", encoder=False)
    assert read_manifest(folder) == manifest and ENCODER not in manifest.graphs
    assert not any("encoder" in name for name in manifest.weights.tensors)
    source = open_graphs(folder, batch_size=1, threads=1)
    list(source.draw([Order(1, 0)], SAMPLING))
    with pytest.raises(BundleError, match=r"no encoder, so it can edit no picture\. .* without --no-encoder"):
        source.encode(picture(0))
    assert "it has no encoder" in shown_report(folder)


def shown_report(folder: Path) -> str:
    """What `inspect` prints of a bundle."""
    console = Console(file=io.StringIO(), width=120)
    for part in bundle_report(folder).parts():
        console.print(part)
    return console.file.getvalue()


def same_tokens(one: Picture, other: Picture) -> bool:
    """Of every scale."""
    return all(np.array_equal(*ids) for ids in zip(one.token_ids, other.token_ids, strict=True))
