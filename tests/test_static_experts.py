"""Static experts and fixed tokens, exported: first rows of the same bytes, held once; and what PyTorch draws.

What each graph computes is `test_export.py`'s, and what the weights file holds `test_weights_file.py`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import small_config, vivid_model

from actvar.bundle.contract import SCALES, graph_names
from actvar.bundle.manifest import Manifest, read_manifest, write_manifest
from actvar.checkpoint.own import save_model
from actvar.config import DYNAMIC, FIXED, STATIC, Activation, Sampling
from actvar.errors import BundleError
from actvar.export.binder import bind
from actvar.export.onnx_export import export_bundle, export_graphs
from actvar.export.operators.fused import ALL_OPERATORS
from actvar.export.operators.lowering import lower
from actvar.export.operators.sparse import OPERATORS
from actvar.export.parity.check import check_parity
from actvar.generation import generate
from actvar.models.actvar import ActVAR
from actvar.runtime.backends import ort
from actvar.runtime.pictures import Order
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_graphs

RATES = Activation(8, (2, 4), (0.5, 0.6), (0.75, 0.25))
CHOICES = list(product((DYNAMIC, FIXED), (DYNAMIC, STATIC)))
SAMPLING = Sampling(cfg=2.0, top_k=30, top_p=0.9)
PIECES = [64 * 2, 64 * 4, 64 * 2]
"""Rows that are run alike: 2 experts of 64 neurons at scale 4, 6 at scale 2, 8 elsewhere."""
ORDERS = [Order(class_id, 7 * class_id) for class_id in range(5)]


@dataclass(frozen=True)
class Made:
    """A model and its bundle."""

    model: ActVAR
    folder: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """By choices and precision, each once."""
    found: dict[tuple[str, str, str], Made] = {}

    def get(token_choice: str, expert_choice: str, precision: str = "fp32") -> Made:
        key = token_choice, expert_choice, precision
        if key not in found:
            activation = replace(RATES, token_choice=token_choice, expert_choice=expert_choice)
            model, folder = vivid_model(small_config(activation=activation)), tmp_path_factory.mktemp("made") / "bundle"
            found[key] = Made(model, folder, export_bundle(model, folder, precision, "a test", debug=True))
        return found[key]

    return get


# ---- what is drawn


@pytest.mark.parametrize("graph", ["each", SCALES])
@pytest.mark.parametrize(("token_choice", "expert_choice"), CHOICES)
def test_every_picture_is_pytorchs(made, token_choice: str, expert_choice: str, graph: str):
    """Token by token, picture by picture, each alone and in batches of two."""
    bundle = made(token_choice, expert_choice)
    expected = generate(bundle.model, [o.class_id for o in ORDERS], SAMPLING, 3, [o.number for o in ORDERS])
    for batch in (1, 2):
        source = GraphSource(ort.load(bundle.folder, bundle.manifest, 1, scales=graph), batch)
        for number, picture in enumerate(source.draw(ORDERS, SAMPLING, 3)):
            for found, wanted in zip(picture.token_ids, expected.token_ids, strict=True):
                np.testing.assert_array_equal(found, wanted[number].numpy())


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp16-weights"])
@pytest.mark.parametrize(("token_choice", "expert_choice"), CHOICES[1:])
def test_other_precisions_are_within_their_tolerance(made, token_choice: str, expert_choice: str, precision: str):
    """Graph by graph at equal inputs and choices, by the graph of all scales where there is one."""
    bundle = made(token_choice, expert_choice, precision)
    report = check_parity(bundle.model, open_graphs(bundle.folder, 3, 1), pictures=3)
    assert report.passed, report.verdict


@pytest.mark.parametrize(("token_choice", "expert_choice"), CHOICES[1:])
def test_a_picture_does_not_depend_on_its_batch_in_int8_either(made, token_choice: str, expert_choice: str):
    """Nor on which graph runs the scales: every piece of an FFN has scales of its own in both."""
    bundle, drawn = made(token_choice, expert_choice, "int8"), []
    for graph, batch in (("each", 1), (SCALES, 1), (SCALES, 3)):
        source = GraphSource(ort.load(bundle.folder, bundle.manifest, 1, scales=graph), batch)
        drawn.append([np.concatenate(picture.token_ids) for picture in source.draw(ORDERS, SAMPLING)])
    np.testing.assert_array_equal(drawn[1], drawn[0])
    np.testing.assert_array_equal(drawn[2], drawn[0])


# ---- one copy


def initializers(folder: Path, graph: str) -> dict[str, tuple[tuple[int, ...], int, int]]:
    """Shape, offset and bytes of each tensor that a graph reads from the weights file."""
    model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            found[tensor.name] = tuple(tensor.dims), int(entries["offset"]), int(entries["length"])
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp16-weights"])
def test_an_active_scale_reads_the_first_rows_of_the_same_bytes(made, precision: str):
    """At the same place and shorter; and a graph has neither an operator of ours for experts nor a router."""
    bundle = made(DYNAMIC, STATIC, precision)
    whole = initializers(bundle.folder, "scale_03")
    for graph, active in (("scale_02", 6), ("scale_04", 2)):
        found = initializers(bundle.folder, graph)
        for block, layer in product(range(2), ("fc1.weight", "fc1.bias", "fc2.weight_t")):
            name = f"var.blocks.{block}.ffn.{layer}"
            (rows, *width), offset, length = found[name]
            assert ([rows * 8, *width], offset, length * 8) == (
                [whole[name][0][0] * active, *whole[name][0][1:]],
                whole[name][1],
                whole[name][2] * active,
            )
        nodes = onnx.load(bundle.folder / f"{graph}.onnx", load_external_data=False).graph.node
        assert not any("router" in node.name or node.op_type == "ActVarRoutedFFN" for node in nodes)
    assert not any("router" in name for name in bundle.manifest.weights.tensors)
    dense = export_bundle(vivid_model(bundle.model.config.dense()), bundle.folder.parent / "dense", precision, "dense")
    names = dense.weights.tensors.keys()
    assert {name: t.shape for name, t in bundle.manifest.weights.tensors.items() if name in names} == {
        name: t.shape for name, t in dense.weights.tensors.items()
    }
    selectors = [name for name in bundle.manifest.weights.tensors if name not in names]
    assert all(".selector." in name for name in selectors)


def test_the_graph_of_all_scales_reads_every_row_once(made):
    """In pieces, one behind the other: what is packed is one copy, whichever scales leave something out."""
    bundle = made(DYNAMIC, STATIC)
    found = initializers(bundle.folder, SCALES)
    for block, layer in product(range(2), ("fc1.weight", "fc1.bias", "fc2.weight_t")):
        name = f"var.blocks.{block}.ffn.{layer}"
        pieces = sorted(place[1:] for each, place in found.items() if each == name or each.startswith(f"{name}."))
        stored = bundle.manifest.weights.tensors[name]
        assert [length * 8 // stored.length for _, length in pieces] == [2, 4, 2]
        assert pieces[0][0] == stored.offset and sum(length for _, length in pieces) == stored.length
        assert all(start + length == then for (start, length), (then, _) in pairwise(pieces))
    assert SCALES in bundle.manifest.scales and len(bundle.manifest.scales) == 1


def test_int8_holds_every_row_once(made):
    """A prefix of fc1 in [in, out] is no prefix of its bytes, so each piece is a layer of its own."""
    tensors = made(DYNAMIC, STATIC, "int8").manifest.weights.tensors
    for layer, shapes in (("fc1", [(128, rows) for rows in PIECES]), ("fc2", [(rows, 128) for rows in PIECES])):
        names = [f"var.blocks.0.ffn.{layer}.{place}.weight_int8" for place in range(3)]
        assert [tensors[name].shape for name in names] == shapes
        assert [name for name in tensors if name.startswith(f"var.blocks.0.ffn.{layer}.weight")] == []


def test_sessions_of_all_scales_share_one_copy_in_memory(made):
    """What an active scale is given begins where the whole does, and nothing is copied for it."""
    bundle = made(DYNAMIC, STATIC)
    weights = ort._Weights(bundle.folder / "weights.bin", bundle.manifest, "cpu")
    given = {graph: dict(weights.of_graph(graph)) for graph in ("scale_02", "scale_03", "scale_04")}
    name = "var.blocks.1.ffn.fc2.weight_t"
    addresses = {values[name].data_ptr() for values in given.values()}
    assert addresses == {weights._bytes.ctypes.data + bundle.manifest.weights.tensors[name].offset}
    assert [values[name].shape()[0] for values in given.values()] == [64 * 6, 64 * 8, 64 * 2]


def test_more_rows_than_there_are_and_rows_of_another_width_are_refused(made, tmp_path: Path):
    """A manifest may name the first rows of a tensor, and nothing that lies beyond it."""
    manifest, matrix, vector = made(DYNAMIC, STATIC).manifest, "fc2.weight_t", "fc1.bias"
    for part, shape, is_right in (
        (matrix, (128, 128), True),
        (matrix, (513, 128), False),
        (matrix, (128, 64), False),
        (matrix, (64, 128, 2), False),
        (vector, (), False),
    ):
        graph, name = manifest.graphs["scale_04"], f"var.blocks.0.ffn.{part}"
        changed = replace(graph, weights={**graph.weights, name: shape})
        write_manifest(tmp_path, replace(manifest, graphs={**manifest.graphs, "scale_04": changed}))
        if is_right:
            assert read_manifest(tmp_path).graphs["scale_04"] == graph
            continue
        with pytest.raises(BundleError, match=rf"{part} must be of as many values as .*, or its first rows"):
            read_manifest(tmp_path)


# ---- what an engine has a plugin for


@pytest.mark.parametrize(("token_choice", "expert_choice"), CHOICES)
def test_static_experts_need_no_plugin_and_fixed_tokens_one_of_each_kind(tmp_path, token_choice, expert_choice):
    """In each block, or once a scale: tokens are selected, gathered and scattered; and experts where tokens choose."""
    config = small_config(activation=replace(RATES, token_choice=token_choice, expert_choice=expert_choice))
    export_graphs(config, tmp_path / "bundle", "fp16", "a test")
    times = 2 if token_choice == DYNAMIC else 1
    counts = {"ActVarTokenSelect": times, "ActVarTokenGather": times, "ActVarTokenScatter": times}
    counts |= {"ActVarRoutedFFN": 2} if expert_choice == DYNAMIC else {}
    fused = {"ActVarTokenSelect": times, "ActVarTokenGatherNorm": times, "ActVarTokenScatterGated": times}
    fused |= {"ActVarRoutedFFN": 2} if expert_choice == DYNAMIC else {}
    for name in graph_names(config):
        path, is_active = tmp_path / "bundle" / f"{name}.onnx", name in ("scale_02", "scale_04")
        assert lower(path, plugins=OPERATORS).plugins == (counts if is_active else {})
        assert lower(path, plugins=ALL_OPERATORS).plugins == (fused if is_active else {})


# ---- another checkpoint


def test_a_bound_checkpoint_brings_its_own_order(made, tmp_path: Path):
    """The graphs do not know it: the weights are written in it, byte by byte as an export writes them."""
    bundle = made(FIXED, STATIC)
    other = vivid_model(bundle.model.config, seed=5)
    save_model(other, tmp_path / "other.safetensors")
    bind(bundle.folder, tmp_path / "other.safetensors", target=tmp_path / "bound")
    orders = [
        tuple(model.var.blocks[0].ffn.router.bias.argsort(descending=True).tolist()) for model in (bundle.model, other)
    ]
    assert orders[0] != orders[1]
    expected = generate(other, [1, 2], SAMPLING, 3, [0, 1])
    drawn = list(open_graphs(tmp_path / "bound", 2, 1).draw([Order(1, 0), Order(2, 1)], SAMPLING, 3))
    for number, picture in enumerate(drawn):
        for found, wanted in zip(picture.token_ids, expected.token_ids, strict=True):
            np.testing.assert_array_equal(found, wanted[number].numpy())
