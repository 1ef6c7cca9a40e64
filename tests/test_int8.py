"""Int8: linear layers against whole numbers added up by hand, bundles against those in fp32, and what is refused.

Letters in shapes: M tokens, I values into a layer, O out of it, N experts.
"""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from cpu_alone import is_refused_elsewhere
from onnx import numpy_helper
from operator_references import best_first
from small_models import small_config, vivid_model

from actvar.bundle.contract import SCALES
from actvar.bundle.manifest import WEIGHTS_FILE, StoredTensor, read_manifest, verify
from actvar.config import Activation
from actvar.errors import BundleError, UsageError
from actvar.export.binder import bind_random
from actvar.export.graphs import int8
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.experts import chosen_experts, dense_ffn
from actvar.export.onnx_export import export_bundle, export_graphs
from actvar.export.parity.check import check_parity
from actvar.runtime.backends import ort
from actvar.runtime.pictures import Order
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_graphs

RNG = np.random.default_rng(5)
DENSE = small_config()
ACTIVE = small_config(activation=Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.5)))


def run(folder, tensors, write, inputs):
    """What a graph over these weights gives for `y`."""
    stored, blob = {}, b""
    for name, values in tensors.items():
        stored[name] = StoredTensor(str(values.dtype), values.shape, len(blob))
        blob += values.tobytes()
    (folder / WEIGHTS_FILE).write_bytes(blob)
    b = GraphBuilder("test", stored, "float32")
    for name, values in inputs.items():
        b.input(name, "float32", tuple(f"{name}_{i}" for i in range(values.ndim)))
    b.op("Identity", write(b), output="y")
    b.output("y", "float32", ("M", "O"))
    onnx.save(b.build(), folder / "graph.onnx")
    session = onnxruntime.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {name: values.astype(np.float32) for name, values in inputs.items()})[0]


def stored_layer(name, weight_IO, bias_O):
    values = int8.whole_numbers(weight_IO)
    scales = int8.column_scales(weight_IO)
    return {f"{name}.{int8.VALUES}": values, f"{name}.{int8.SCALES}": scales, f"{name}.bias": bias_O}


def reference(x_MI, weight_IO, bias_O):
    """One sum of whole numbers after the other, written from the formula."""
    y_MO = np.empty((len(x_MI), weight_IO.shape[1]))
    for m, x_I in enumerate(x_MI.astype(np.float32)):
        step = np.float32(np.abs(x_I).max() * np.float32(1 / 127))
        q_I = np.rint(x_I / step).astype(np.int64)
        for o, w_I in enumerate(weight_IO.T):
            scale = np.abs(w_I).max() / np.float32(64)
            y_MO[m, o] = float(step) * float(scale) * int(q_I @ np.rint(w_I / scale).astype(np.int64)) + bias_O[o]
    return y_MO


def random_layer(wide, out):
    return RNG.normal(size=(wide, out)).astype(np.float32), RNG.normal(size=out).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 64, 8), (2, 32, 96), (7, 160, 33), (130, 256, 64)])
def test_a_linear_layer_is_the_sum_of_whole_numbers(tmp_path, shape):
    """By hand, number by number; no row may come near another's scale, so one of them is a thousand times larger."""
    rows, wide, out = shape
    (weight_IO, bias_O), x_MI = random_layer(wide, out), RNG.normal(size=(rows, wide))
    x_MI[0] *= 1000
    tensors = stored_layer("layer", weight_IO, bias_O)
    y_MO = run(tmp_path, tensors, lambda b: int8.quantized_linear(b, "x", "layer", "layer"), {"x": x_MI})
    expected_MO = reference(x_MI, weight_IO, bias_O)
    error_M = np.abs(y_MO - expected_MO).max(1) / np.abs(expected_MO).max(1)
    assert error_M.max() < 1e-5
    exact_MO = x_MI @ weight_IO + bias_O
    assert np.linalg.norm(y_MO - exact_MO) < 0.03 * np.linalg.norm(exact_MO), "it is close to fp32, too"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_values_do_not_overflow_16_bits(tmp_path, sign):
    """Without VNNI two products are added up in 16 bits; weights of 8 bits would give 32,767 in place of 64,770."""
    wide, bias_O = 128, np.zeros(16, np.float32)
    weight_IO = np.full((wide, 16), sign, np.float32)
    x_MI = np.ones((3, wide))
    tensors = stored_layer("layer", weight_IO, bias_O)
    y_MO = run(tmp_path, tensors, lambda b: int8.quantized_linear(b, "x", "layer", "layer"), {"x": x_MI})
    np.testing.assert_allclose(y_MO, sign * wide, rtol=1e-6)


def test_a_token_does_not_feel_the_others(tmp_path):
    """Bit by bit the same alone and beside larger ones: what holds for pictures depends on it."""
    (weight_IO, bias_O), x_MI = random_layer(96, 40), RNG.normal(size=(9, 96)) * 10.0 ** RNG.integers(-3, 4, (9, 1))
    tensors = stored_layer("layer", weight_IO, bias_O)

    def y(x):
        return run(tmp_path, tensors, lambda b: int8.quantized_linear(b, "x", "layer", "layer"), {"x": x})

    alone = np.concatenate([y(x_MI[m : m + 1]) for m in range(9)])
    np.testing.assert_array_equal(y(x_MI), alone)


def test_a_row_and_a_column_of_zeros_give_the_bias(tmp_path):
    """A scale of 0 must not divide."""
    weight_IO, bias_O = random_layer(32, 8)
    weight_IO[:, 3] = 0
    x_MI = RNG.normal(size=(2, 32))
    x_MI[1] = 0
    tensors = stored_layer("layer", weight_IO, bias_O)
    y_MO = run(tmp_path, tensors, lambda b: int8.quantized_linear(b, "x", "layer", "layer"), {"x": x_MI})
    np.testing.assert_array_equal(y_MO[1], bias_O)
    np.testing.assert_array_equal(y_MO[:, 3], bias_O[3])


@pytest.mark.parametrize("active", [1, 3])
def test_experts_add_what_each_token_chose(tmp_path, active):
    """Token by token and expert by expert; expert 2 is chosen by none, so that its numbers must not be seen at all."""
    rows, width, hidden, experts = 6, 32, 64, 4
    (w1_IO, b1_O), (w2_IO, b2_O) = random_layer(width, hidden), random_layer(hidden, width)
    x_MC, scores_MN = RNG.normal(size=(rows, width)), RNG.normal(size=(rows, experts))
    scores_MN[:, 2] = -10
    tensors = stored_layer("ffn.fc1", w1_IO, b1_O) | stored_layer("ffn.fc2", w2_IO, b2_O)
    tensors["ffn.router.bias"] = np.zeros(experts, np.float32)

    def write(b):
        return dense_ffn(b, "ffn", "x", chosen_experts(b, "scores", b.ints(active)))

    y_MC = run(tmp_path, tensors, write, {"x": x_MC, "scores": scores_MN})
    each = hidden // experts
    scales_O = np.abs(w2_IO).max(0) / 64
    w2_in_steps_IO = np.rint(w2_IO / scales_O) * scales_O
    expected_MC = np.empty((rows, width))
    for m in range(rows):
        hidden_F = np.zeros(hidden)
        for expert in best_first(scores_MN[m])[:active]:
            own = slice(expert * each, (expert + 1) * each)
            hidden_E = reference(x_MC[m : m + 1], w1_IO[:, own], b1_O[own])[0]
            hidden_F[own] = 0.5 * hidden_E * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden_E + 0.044715 * hidden_E**3)))
        step = np.abs(hidden_F).max() / 127
        expected_MC[m] = np.rint(hidden_F / step) * step @ w2_in_steps_IO + b2_O
    np.testing.assert_allclose(y_MC, expected_MC, rtol=0, atol=2e-3 * np.abs(expected_MC).max())


def test_weights_are_rounded_by_column_to_seven_bits_and_a_sign():
    """The largest of a column is +-64, and no weight is off by more than half a step."""
    weight_IO = RNG.normal(size=(50, 12)).astype(np.float32)
    values_IO, scales_O = int8.whole_numbers(weight_IO), int8.column_scales(weight_IO)
    assert values_IO.dtype == np.int8 and scales_O.dtype == np.float32
    assert np.abs(values_IO).max(0).tolist() == [64] * 12
    assert (np.abs(values_IO * scales_O - weight_IO) <= scales_O * 0.5001).all()


# ---- bundles


@pytest.fixture(scope="module", params=[DENSE, ACTIVE], ids=["dense", "active"])
def model(request):
    return vivid_model(request.param)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    export_bundle(model, folder, "int8", "vivid weights", debug=True)
    return folder


def test_matrices_and_convolutions_are_int8_and_what_decides_tokens_is_fp32(folder):
    manifest = read_manifest(folder)
    verify(folder, manifest)
    dtypes = {name: tensor.dtype for name, tensor in manifest.weights.tensors.items()}
    in_int8 = {name for name, dtype in dtypes.items() if name.startswith("var.") and dtype == "int8"}
    for layer in ("attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2", "ada_lin.1"):
        assert f"var.blocks.1.{layer}.weight_int8" in in_int8
        assert not {f"var.blocks.1.{layer}.weight", f"var.blocks.1.{layer}.weight_t"} & dtypes.keys()
    assert all(name.endswith("_int8") for name in in_int8)
    for name in ("var.head.weight", "var.word_embed.weight", "vqvae.quantize.embedding.weight"):
        assert dtypes[name] == "float32"
    decoder = onnx.load(folder / "decoder.onnx", load_external_data=False)
    kinds = Counter(node.op_type for node in decoder.graph.node)
    assert kinds["Conv"] == 2, "the first and the last"
    assert kinds["QLinearConv"] > 8
    initializers = onnx.load(folder / "decoder.onnx").graph.initializer
    values = {t.name: numpy_helper.to_array(t) for t in initializers if t.name.endswith("weight_quantized")}
    assert len(values) == kinds["QLinearConv"]
    assert all(v.dtype == np.int8 and np.abs(v.astype(int)).max() <= 64 for v in values.values())


def test_a_picture_does_not_depend_on_its_batch(model, folder):
    """Scales are a token's own, or fixed: drawn alone or beside others, pixel by pixel the same."""
    orders = [Order(class_id, number) for number, class_id in enumerate((0, 3, 4, 1, 1))]
    batches = [list(open_graphs(folder, size, 1).draw(orders, model.config.sampling, 3)) for size in (1, 2, 5)]
    for pictures in zip(*batches, strict=True):
        for other in pictures[1:]:
            np.testing.assert_array_equal(other.pixels_HW3, pictures[0].pixels_HW3)


def test_one_graph_for_all_scales_draws_what_a_graph_for_each_draws(model, folder):
    """The whole numbers are the same, so the tokens are; the experts' weights are read in parts in one of them."""
    manifest, orders = read_manifest(folder), [Order(class_id, 7 + class_id) for class_id in range(4)]
    drawn = []
    for scales in (SCALES, "each"):
        pipeline = GraphSource(ort.load(folder, manifest, 1, scales=scales), 4)
        drawn.append([np.concatenate(p.token_ids) for p in pipeline.draw(orders, model.config.sampling)])
    np.testing.assert_array_equal(*drawn)


def test_the_graphs_are_close_to_the_model(model, folder):
    """At equal inputs and choices: the difference shows, and is small."""
    report = check_parity(model, open_graphs(folder, 2, 1), pictures=4)
    last = report.found[f"scale_{len(model.config.schedule):02d}", "logits"]
    assert 1e-4 < last.relative < 5e-2
    assert 0 < report.found["decoder", "image"].relative < 5e-2


def test_the_same_export_gives_the_same_files(folder, tmp_path):
    """Ranges are measured on the same pictures each time."""
    config = read_manifest(folder).model
    again = export_bundle(vivid_model(config), tmp_path / "again", "int8", "vivid weights", debug=True)
    assert again.files == read_manifest(folder).files


def test_what_int8_is_not_for_is_refused(folder, tmp_path):
    manifest = read_manifest(folder)
    is_refused_elsewhere(folder, "int8")
    with pytest.raises(BundleError, match="measured with its own weights"):
        bind_random(folder, tmp_path / "bound")
    with pytest.raises(UsageError, match="made for the weights"):
        export_graphs(manifest.model, tmp_path / "graphs", "int8", "none")
    assert not list(tmp_path.iterdir())
