"""Matrices held in fp16 and multiplied in fp32: the same as an fp32 bundle of rounded matrices, and what is refused."""

import numpy as np
import onnx
import pytest
import torch
from cpu_alone import is_refused_elsewhere
from small_models import small_config, vivid_model

from actvar.bundle.manifest import Manifest, read_manifest, verify
from actvar.checkpoint.files import shipped_checkpoint
from actvar.checkpoint.model import load_model
from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.export.binder import bind
from actvar.export.onnx_export import export_bundle
from actvar.export.parity.check import check_parity
from actvar.runtime.backends import ort
from actvar.runtime.pictures import Order
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_graphs

PRECISION = "fp16-weights"
DENSE = small_config()
ACTIVE = small_config(activation=Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.5)))
SHARED = small_config(shared_adaln=True)
MATRICES = (".attn.mat_qkv", ".attn.proj", ".ffn.fc1", ".ffn.fc2", "ada_lin.1")


@pytest.fixture(scope="module", params=[DENSE, ACTIVE, SHARED], ids=["dense", "active", "shared AdaLN"])
def model(request):
    return vivid_model(request.param)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp16-weights") / "bundle"
    export_bundle(model, folder, PRECISION, "vivid weights", debug=True)
    return folder


def in_a_block(name):
    return ".blocks." in name or "shared_ada_lin" in name


def rounded(model):
    """The same model with every matrix of the blocks as fp16 holds it."""
    copy = vivid_model(model.config)
    for name, tensor in copy.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if in_a_block(name) and layer.endswith(MATRICES) and kind == "weight":
            tensor.copy_(tensor.half().float())
    return copy


def drawn(folder, manifest: Manifest, scales, sampling):
    orders = [Order(class_id, 7 + class_id) for class_id in range(4)]
    return list(GraphSource(ort.load(folder, manifest, 1, scales=scales), 3).draw(orders, sampling))


def test_the_matrices_of_the_blocks_are_held_in_fp16_and_all_else_is_fp32(folder):
    manifest = read_manifest(folder)
    verify(folder, manifest)
    held = {
        name
        for name, tensor in manifest.weights.tensors.items()
        if in_a_block(name) and name.rpartition(".")[0].endswith(MATRICES) and not name.endswith(".bias")
    }
    assert len(held) >= 4 * manifest.model.depth
    assert {name for name, tensor in manifest.weights.tensors.items() if tensor.dtype == "float16"} == held
    assert {tensor.dtype for tensor in manifest.weights.tensors.values()} == {"float16", "float32"}
    for spec in manifest.graphs.values():
        assert {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)} <= {"float32", "int64", "int32"}


def test_each_matrix_is_widened_once_in_a_graph(folder):
    """However many nodes read it, in whichever branch."""
    for name in (*read_manifest(folder).graphs, *read_manifest(folder).scales):
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
        held = [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
        assert [node.input[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in held] == held


def test_pictures_are_those_of_an_fp32_bundle_of_the_rounded_matrices(model, folder, tmp_path):
    """To the token, by whichever graph: nothing but the matrices is rounded, and they are multiplied in fp32."""
    wanted, manifest = export_bundle(rounded(model), tmp_path / "fp32", "fp32", "rounded"), read_manifest(folder)
    assert wanted.scales.keys() == manifest.scales.keys()
    for scales in (*wanted.scales, "each"):
        expected = drawn(tmp_path / "fp32", wanted, scales, model.config.sampling)
        found = drawn(folder, manifest, scales, model.config.sampling)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(one.token_ids), np.concatenate(other.token_ids))
            np.testing.assert_allclose(one.pixels_HW3.astype(int), other.pixels_HW3.astype(int), atol=1)


def test_the_graphs_are_within_their_tolerance_of_the_model_and_not_of_fp32s(model, folder):
    """At equal inputs and choices: the rounding shows, and is small."""
    report = check_parity(model, open_graphs(folder, 2, 1), pictures=4)
    last = report.found[f"scale_{len(model.config.schedule):02d}", "logits"]
    assert 1e-5 < last.relative < 1e-3
    assert report.found["decoder", "image"].absolute < 1e-4, "which is fp32's own"


def test_it_is_bound_to_another_checkpoint_as_it_is_exported(model, folder, tmp_path):
    """The same bytes either way."""
    other = vivid_model(model.config, seed=9)
    save_model(other, tmp_path / "other.safetensors", torch.float32)
    bound = bind(folder, tmp_path / "other.safetensors", target=tmp_path / "bound")
    exported = export_bundle(other, tmp_path / "exported", PRECISION, "the same")
    assert bound.weights == exported.weights
    assert bound.weights.sha256 != read_manifest(folder).weights.sha256


def test_what_it_is_not_for_is_refused(folder):
    is_refused_elsewhere(folder, PRECISION)


def test_a_checkpoint_in_fp16_loses_nothing(tmp_path):
    """The shipped model's matrices are: its graphs read the same numbers as in fp32."""
    checkpoint = shipped_checkpoint("actvar-mini")
    shipped = load_model(checkpoint.path, checkpoint.vqvae)
    for precision in ("fp32", PRECISION):
        export_bundle(shipped, tmp_path / precision, precision, "shipped")
    wide, held = (np.memmap(tmp_path / precision / "weights.bin", np.uint8, "r") for precision in ("fp32", PRECISION))
    tensors = read_manifest(tmp_path / PRECISION).weights.tensors
    for name, of_wide in read_manifest(tmp_path / "fp32").weights.tensors.items():
        expected = wide[of_wide.offset :][: of_wide.length].view(np.float32)
        found = held[tensors[name].offset :][: tensors[name].length].view(tensors[name].dtype)
        np.testing.assert_array_equal(found.astype(np.float32), expected, err_msg=name)
