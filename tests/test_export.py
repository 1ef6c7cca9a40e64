"""The exporter: every graph does in ONNX Runtime what the eager model does, and the bundle is what it says it is."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from exported_graphs import GatherElements
from onnx.reference import ReferenceEvaluator
from small_models import small_config, vivid_model

from actvar.bundle.contract import graph_names
from actvar.bundle.manifest import Manifest, read_manifest, verify
from actvar.config import DYNAMIC, FIXED, MINI, PRESETS, STATIC, Activation, Sampling
from actvar.errors import BundleError, CheckpointError, UsageError
from actvar.export.graphs.sampler import resize_matrix
from actvar.export.onnx_export import export_bundle
from actvar.export.parity.recording import Recording, record
from actvar.models.actvar import ActVAR
from actvar.runtime.backends import ort
from actvar.runtime.pictures import Order
from actvar.runtime.pipeline import GraphSource
from actvar.scales import LARGE_PATCH_NUMS, STANDARD_PATCH_NUMS

SAMPLING = Sampling(cfg=2.0, top_k=30, top_p=0.9)
CLASSES = (3, 0, 4)

CONFIGS = {
    "standard": replace(MINI, depth=1, class_names=(), num_classes=5, activation=Activation()),
    "dense": small_config(),
    "four experts": small_config(activation=Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.25))),
    "eight experts, first scale": small_config(activation=Activation(8, (1, 3), (1.0, 0.4), (0.5, 0.5)), depth=1),
    "32 experts": small_config(activation=Activation(32, (4,), (0.75,), (0.5,))),
    "tokens alone": small_config(activation=Activation(4, (3,), (0.5,), (1.0,))),
    "experts alone": small_config(activation=Activation(4, (3,), (1.0,), (0.5,))),
    "experts alone, everywhere": small_config(activation=Activation(4, (1, 2, 3, 4), (1.0,) * 4, (0.5,) * 4)),
    "all active": small_config(activation=Activation(4, (3, 4), (1.0, 1.0), (1.0, 1.0))),
    "shared AdaLN": small_config(activation=Activation(4, (4,), (0.5,), (0.5,)), shared_adaln=True),
    "two scales": small_config(patch_nums=(1, 3)),
    "static experts": small_config(activation=Activation(8, (2, 4), (0.5, 0.6), (0.75, 0.25), DYNAMIC, STATIC)),
    "static experts, everywhere": small_config(
        activation=Activation(4, (1, 2, 3, 4), (1.0,) * 4, (0.5, 0.75, 0.5, 0.25), DYNAMIC, STATIC)
    ),
    "fixed tokens": small_config(activation=Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.25), FIXED)),
    "fixed tokens, static experts": small_config(
        activation=Activation(4, (1, 3), (1.0, 0.4), (0.5, 0.75), FIXED, STATIC), depth=3
    ),
}


@dataclass(frozen=True)
class Exported:
    """A bundle, and the model it was made from."""

    model: ActVAR
    folder: Path
    manifest: Manifest

    def graph(self, name: str) -> onnx.ModelProto:
        return onnx.load(self.folder / f"{name}.onnx", load_external_data=False)

    def run(self, name: str, recording: Recording) -> dict[str, np.ndarray]:
        """One graph in ONNX Runtime, on recorded inputs."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        path = self.folder / self.manifest.graphs[name].entry.file
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        spec = self.manifest.graphs[name]
        inputs = {t.name: recording.inputs[t.name].astype(t.dtype) for t in spec.inputs}
        names = [output.name for output in spec.outputs]
        return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Callable[..., Exported]:
    """Bundles by configuration, each made once."""
    made: dict[tuple[str, str], Exported] = {}

    def get(name: str, precision: str = "fp32") -> Exported:
        if (name, precision) not in made:
            model, folder = vivid_model(CONFIGS[name]), tmp_path_factory.mktemp("bundles") / "bundle"
            manifest = export_bundle(model, folder, precision, "random weights, seed 0", debug=True)
            made[name, precision] = Exported(model, folder, manifest)
        return made[name, precision]

    return get


# ---- the graphs do what the eager model does


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_graph_gives_what_the_eager_model_gave_on_the_same_inputs(exported, name, batch):
    """The same choices; f_hat and inputs to 1e-5 of their size, what is behind blocks to 1e-4, at any batch size."""
    bundle = exported(name)
    recordings = dict(record(bundle.model, CLASSES[:batch], SAMPLING, seed=5))
    for graph, spec in bundle.manifest.graphs.items():
        expected = recordings[graph].outputs
        results = bundle.run(graph, recordings[graph])
        assert set(results) == set(expected)
        for output in spec.outputs:
            result, wanted = results[output.name], expected[output.name]
            assert result.dtype == output.dtype, output
            assert result.shape == output.sized(batch), output
            exact, deep = ("token_ids", "kept", "experts"), ("new_kv", "logits", "hidden")
            tolerance = 0 if output.name in exact else 1e-4 if output.name in deep else 1e-5
            limit = tolerance * max(1, abs(wanted).max())
            np.testing.assert_allclose(result, wanted, rtol=0, atol=limit, err_msg=f"{graph}: {output.name}")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_graph_of_all_scales_draws_what_a_graph_for_each_draws(exported, name):
    """One writer writes both; what it is told of sizes are numbers, or tables that are read at a scale's number."""
    bundle = exported(name)
    orders = [Order(class_id, 7 + class_id) for class_id in CLASSES]
    drawn = {}
    for graph in ("each", *bundle.manifest.scales):
        pipeline = GraphSource(ort.load(bundle.folder, bundle.manifest, 1, scales=graph), 2)
        drawn[graph] = np.concatenate([ids for p in pipeline.draw(orders, SAMPLING) for ids in p.token_ids])
    for graph, token_ids in drawn.items():
        np.testing.assert_array_equal(token_ids, drawn["each"], err_msg=graph)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(cfg=0, top_k=1, top_p=1.0), Sampling(cfg=4, top_k=900, top_p=1.0), Sampling(cfg=1, top_k=7, top_p=0.1)],
    ids=["greedy, no guidance", "all codes", "narrow top-p"],
)
def test_the_limits_of_sampling_are_inputs_of_the_graphs(exported, sampling):
    """One graph serves every setting; top_k may exceed the codes that there are."""
    bundle = exported("four experts")
    recordings = dict(record(bundle.model, CLASSES, sampling, seed=1))
    for graph in graph_names(bundle.model.config)[1:-1]:
        result = bundle.run(graph, recordings[graph])["token_ids"]
        np.testing.assert_array_equal(result, recordings[graph].outputs["token_ids"])


@pytest.mark.parametrize("name", ["standard", "four experts", "shared AdaLN", "fixed tokens, static experts"])
def test_fp16_graphs_keep_the_residual_stream_and_the_choices_in_fp32(exported, name):
    """Keys and values pass in fp16, all else in fp32; logits stay close and almost all tokens the same.

    Most scales are within 1e-3; the limits leave room for a near-tie of a selector or router that rounding decides the
    other way, which changes a whole token. Random weights also spread the probability over all codes, where tokens move
    sooner than in a trained model: the 99 % that a trained one is held to is `actvar-trt parity`'s.
    """
    bundle = exported(name, "fp16")
    recordings = dict(record(bundle.model, CLASSES, SAMPLING, seed=5))
    same = []
    for graph, spec in bundle.manifest.graphs.items():
        halves = {t.name for t in (*spec.inputs, *spec.outputs) if t.dtype == "float16"}
        assert halves <= {"past_kv", "new_kv"}
        results, expected = bundle.run(graph, recordings[graph]), recordings[graph].outputs
        if "logits" in results:
            error = np.linalg.norm(results["logits"] - expected["logits"]) / np.linalg.norm(expected["logits"])
            assert error < 3e-2, graph
            same.extend((results["token_ids"] == expected["token_ids"]).ravel())
        if "image" in results:
            np.testing.assert_allclose(results["image"], expected["image"], rtol=0, atol=2e-2)
    assert np.mean(same) > 0.95


@pytest.mark.parametrize("name", ["four experts", "fixed tokens, static experts"])
def test_bf16_graphs_compute_what_the_eager_model_does(exported, name):
    """By ONNX's own interpreter, as ONNX Runtime's CPU has no bfloat16: eight bits, so logits to 1e-2 in the mean.

    As in fp16 only keys and values leave a graph in few bits, and only matrices are multiplied in them.
    """
    bundle = exported(name, "bf16")
    recordings = dict(record(bundle.model, CLASSES, SAMPLING, seed=5))
    same = []
    for graph, spec in bundle.manifest.graphs.items():
        assert {t.name for t in (*spec.inputs, *spec.outputs) if t.dtype == "bfloat16"} <= {"past_kv", "new_kv"}
        interpreter = ReferenceEvaluator(str(bundle.folder / spec.entry.file), new_ops=[GatherElements])
        types = {**{t.name: t.dtype for t in spec.inputs}, "past_kv": ml_dtypes.bfloat16}
        inputs = {t.name: recordings[graph].inputs[t.name].astype(types[t.name]) for t in spec.inputs}
        names, expected = [t.name for t in spec.outputs], recordings[graph].outputs
        for name, result in zip(names, interpreter.run(names, inputs), strict=True):
            if name in ("token_ids", "kept", "experts"):
                same.extend((result == expected[name]).ravel())
            elif name in ("modulation", "new_kv", "hidden", "logits", "image"):
                error = np.linalg.norm(result.astype(np.float32) - expected[name]) / np.linalg.norm(expected[name])
                assert error < 1e-2, (graph, name)
    assert np.mean(same) > 0.95


def test_a_bf16_bundle_holds_matrices_in_bfloat16_and_convolutions_in_fp16(exported):
    """Conv has no bfloat16 in opset 20. The values are the model's, rounded to nearest."""
    bundle = exported("four experts", "bf16")
    types: dict[str, set[str]] = {}
    for name, stored in bundle.manifest.weights.tensors.items():
        types.setdefault(stored.dtype, set()).add(name)
    assert all(name.startswith("var.blocks.") for name in types["bfloat16"])
    assert all(not name.startswith("var.") for name in types["float16"])
    assert {"var.blocks.1.ffn.router.weight", "var.head.weight", "vqvae.encoder.norm_out.weight"} <= types["float32"]
    name = "var.blocks.1.ffn.fc1.weight"
    stored, weight = bundle.manifest.weights.tensors[name], bundle.model.state_dict()[name]
    data = (bundle.folder / "weights.bin").read_bytes()[stored.offset : stored.offset + stored.length]
    found = np.frombuffer(data, ml_dtypes.bfloat16).reshape(stored.shape)
    np.testing.assert_array_equal(found, weight.numpy().astype(ml_dtypes.bfloat16))


def test_the_inside_of_a_graph_is_an_output_only_when_asked_for(tmp_path, exported):
    """It is large, and nothing but a comparison reads it; what is not left out is no choice."""
    debug = exported("four experts")
    plain = export_bundle(debug.model, tmp_path / "plain", "fp32", "test")
    inside = {
        name: {output.name for output in spec.outputs} - {output.name for output in plain.graphs[name].outputs}
        for name, spec in debug.manifest.graphs.items()
    }
    assert inside["condition"] == inside["decoder"] == set()
    assert inside["scale_01"] == inside["scale_03"] == {"logits", "hidden"}
    assert inside["scale_02"] == inside["scale_04"] == {"logits", "hidden", "kept", "experts"}


def interpolated(before: int, after: int, mode: str) -> np.ndarray:
    """U of a resize along one side, from torch's own: a column for each pixel of a map of ones and zeros."""
    pixels = torch.eye(before)[None, :, :, None]
    return F.interpolate(pixels, size=(after, 1), mode=mode)[0, :, :, 0].T.numpy()


@pytest.mark.parametrize("patch_nums", [STANDARD_PATCH_NUMS, LARGE_PATCH_NUMS], ids=["standard", "512 px"])
def test_the_resizes_of_the_published_schedules_are_torchs_to_the_last_bit(patch_nums):
    """What official VAR draws with, though nothing of PyTorch makes the graphs."""
    side = patch_nums[-1]
    for p in patch_nums:
        np.testing.assert_array_equal(resize_matrix(side, p, "area"), interpolated(side, p, "area"))
        np.testing.assert_array_equal(resize_matrix(p, side, "bicubic"), interpolated(p, side, "bicubic"))


def test_the_resizes_of_any_sides_are_torchs_but_for_its_rounding():
    """Where the sides' quotient is no short binary number, torch finds a pixel's place in fp32, and is off by 4e-6."""
    for side in range(2, 25):
        for p in range(1, side):
            np.testing.assert_array_equal(resize_matrix(side, p, "area"), interpolated(side, p, "area"))
            np.testing.assert_allclose(
                resize_matrix(p, side, "bicubic"), interpolated(p, side, "bicubic"), rtol=0, atol=4e-6
            )


@pytest.mark.parametrize(("before", "after", "mode"), [(3, 16, "bicubic"), (13, 16, "bicubic"), (16, 13, "area")])
def test_a_resize_is_a_product_with_a_matrix_on_either_side(before, after, mode):
    """Both of torch's filters are linear and separable; an engine needs no resize of its own."""
    x = torch.randn(2, 3, before, before, generator=torch.Generator().manual_seed(0))
    matrix = torch.from_numpy(resize_matrix(before, after, mode))
    expected = F.interpolate(x, size=(after, after), mode=mode)
    torch.testing.assert_close(matrix @ x @ matrix.T, expected, rtol=0, atol=1e-6)


# ---- the files


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_graph_passes_the_full_checker(exported, name, precision):
    """On the files, as others read them; custom operators are covered by their bodies."""
    bundle = exported(name, precision)
    for graph in bundle.manifest.graphs:
        onnx.checker.check_model(bundle.folder / f"{graph}.onnx", full_check=True)


@pytest.mark.parametrize("name", ["standard", "shared AdaLN"])
def test_the_manifest_says_what_is_there(exported, name):
    """Read back and verified as the runtime does it; inputs and outputs are those of the graph's file."""
    bundle = exported(name)
    assert read_manifest(bundle.folder) == bundle.manifest
    verify(bundle.folder, bundle.manifest)
    for graph, spec in bundle.manifest.graphs.items():
        proto = bundle.graph(graph).graph
        for side, declared in ((proto.input, spec.inputs), (proto.output, spec.outputs)):
            found = [(v.name, tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)) for v in side]
            assert found == [(tensor.name, tensor.shape) for tensor in declared]
        read = {name for node in proto.node for name in node.input}
        assert {tensor.name for tensor in spec.inputs} <= read
    assert sorted(path.name for path in bundle.folder.iterdir()) == sorted(
        ["manifest.json", *(entry.file for entry in bundle.manifest.files)]
    )


@pytest.mark.parametrize(("name", "precision"), [("standard", "fp32"), ("standard", "fp16"), ("dense", "fp32")])
def test_every_learned_tensor_lies_in_the_weights_file_once(exported, name, precision):
    """Aligned to pages, none over another, nothing else in the file; a graph's own constants are few and small."""
    bundle = exported(name, precision)
    places: dict[str, tuple[int, int]] = {}
    for graph in bundle.manifest.graphs:
        for tensor in bundle.graph(graph).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if not entries:
                assert len(tensor.SerializeToString()) < 2 * 4 * bundle.model.config.width + 2048, tensor.name
                continue
            assert entries["location"] == "weights.bin"
            place = int(entries["offset"]), int(entries["length"])
            size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            assert place[1] == math.prod(tensor.dims) * size
            assert places.setdefault(tensor.name, place) == place
    end = 0
    for offset, length in sorted(places.values()):
        assert offset % 4096 == 0 and offset == end
        end = offset + -(-length // 4096) * 4096
    assert end == bundle.manifest.weights.bytes
    parameters = [*bundle.model.var.parameters(), *bundle.model.vqvae.parameters()]
    pages = 4096 * len(places)
    assert end < 1.02 * sum(p.numel() for p in parameters) * (4 if precision == "fp32" else 2.2) + pages


def test_no_graph_computes_on_a_weight_alone(exported):
    """An engine folds a transpose, slice or cast of a weight into a copy of its own, for every one of twelve graphs."""
    for precision in ("fp32", "fp16"):
        bundle = exported("four experts", precision)
        for graph in bundle.manifest.graphs:
            proto = bundle.graph(graph).graph
            weights = {t.name for t in proto.initializer if t.external_data}
            users = {node.op_type for node in proto.node if weights & set(node.input)}
            assert users <= {"Gemm", "Conv", "Gather", "Add", "Mul", "ActVarRoutedFFN"}, graph


def test_an_active_scale_has_its_custom_operators_in_every_block(exported):
    """A builder for TensorRT counts them to see that no plugin was left out; dense scales have none."""
    counts = {}
    for graph in exported("standard").manifest.graphs:
        proto = exported("standard").graph(graph)
        counts[graph] = sorted(node.op_type for node in proto.graph.node if node.domain == "actvar")
        assert {function.name for function in proto.functions} == set(counts[graph])
    kinds = ["ActVarRoutedFFN", "ActVarTokenGather", "ActVarTokenScatter", "ActVarTokenSelect"]
    assert {graph: found for graph, found in counts.items() if found} == {"scale_09": kinds, "scale_10": kinds}


def test_node_names_say_where_in_the_model_a_node_stands(exported):
    """A profile or an engine's log is read by these names; they are unique within a graph."""
    for graph in exported("four experts").manifest.graphs:
        names = [node.name for node in exported("four experts").graph(graph).graph.node]
        assert len(set(names)) == len(names)
    names = {node.name for node in exported("four experts").graph("scale_04").graph.node}
    assert {"blocks.1/attn/qkv", "blocks.1/ffn/routed", "blocks.0/selector/select", "head/guidance/guided"} <= names


def test_the_same_model_gives_the_same_files(tmp_path, exported):
    """A cache and a second machine rely on it."""
    first, second = (export_bundle(exported("dense").model, tmp_path / name, "fp32", "test") for name in "ab")
    assert first == second


# ---- failures leave nothing behind


class Stop(Exception):
    """What ends an export in these tests."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, OSError(28, "No space left on device")])
@pytest.mark.parametrize("moment", [0.3, 0.95], ids=["within the weights", "within the graphs"])
def test_an_export_that_is_stopped_leaves_nothing(tmp_path, exported, moment, error):
    """Not in the target, not beside it; and a bundle that was there stays as it was."""

    def stop(share: float) -> None:
        if share >= moment:
            raise error

    expected = BundleError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        export_bundle(exported("dense").model, tmp_path / "new", "fp32", "test", stop)
    assert list(tmp_path.iterdir()) == []

    before = export_bundle(exported("dense").model, tmp_path / "old", "fp32", "the first")
    with pytest.raises(expected):
        export_bundle(exported("dense").model, tmp_path / "old", "fp32", "the second", stop)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert read_manifest(tmp_path / "old") == before


def test_a_bundle_is_replaced_whole(tmp_path, exported):
    """Nothing of the old one stays, plans for other weights least of all."""
    target = tmp_path / "bundle"
    export_bundle(exported("dense").model, target, "fp32", "the first")
    (target / "plans").mkdir()
    second = export_bundle(exported("dense").model, target, "fp16", "the second")
    assert read_manifest(target) == second
    assert not (target / "plans").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("content", ["file", "folder", "other manifest", "broken manifest", "link"])
def test_what_is_no_bundle_is_not_overwritten(tmp_path, exported, content):
    """A slip in a path must not cost anyone a folder; web pages have a manifest.json, too."""
    target = tmp_path / "target"
    if content == "file":
        target.write_text("a letter")
    elif content == "link":
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.mkdir()
        manifest = {"folder": None, "other manifest": json.dumps({"name": "my site"}), "broken manifest": "{"}[content]
        (target / "letter").write_text("a letter")
        if manifest:
            (target / "manifest.json").write_text(manifest)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=r"target is there and is not a bundle\. Name a new folder"):
        export_bundle(exported("dense").model, target, "fp32", "test")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_the_target(tmp_path, exported, monkeypatch):
    """As `mktemp -d` leaves one; also where one stands in it."""
    manifest = export_bundle(exported("dense").model, tmp_path, "fp32", "test")
    assert read_manifest(tmp_path) == manifest
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_bundle(exported("dense").model, Path("."), "fp32", "test")
    assert read_manifest(tmp_path / "here") == manifest


def test_a_folder_that_cannot_be_written_is_named(tmp_path, exported):
    """Here because a file stands where its parent should be; root may write anywhere else."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"file/bundle cannot be written: .*\. Name another folder"):
        export_bundle(exported("dense").model, tmp_path / "file" / "bundle", "fp32", "test")


def test_a_weight_too_large_for_fp16_is_named(tmp_path):
    """Infinity in one matrix would make every picture black, and nothing would say why."""
    model = vivid_model(small_config())
    model.var.blocks[1].ffn.fc1.weight[0, 0] = -1e5
    with pytest.raises(CheckpointError, match=r"var\.blocks\.1\.ffn\.fc1\.weight holds values that fp16 cannot"):
        export_bundle(model, tmp_path / "bundle", "fp16", "test")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused(tmp_path, exported):
    """Before anything is written."""
    with pytest.raises(UsageError, match="fp32, fp16, bf16, int8, fp16-weights, got 'int4'"):
        export_bundle(exported("dense").model, tmp_path / "bundle", "int4", "test")
    assert list(tmp_path.iterdir()) == []


def test_progress_rises_to_one(tmp_path, exported):
    """A bar that stops short looks like a failure."""
    shares: list[float] = []
    export_bundle(exported("dense").model, tmp_path / "bundle", "fp32", "test", shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1
    assert shares[-1] == pytest.approx(1)


def test_the_512_pixel_model_exports(tmp_path):
    """d36's own patch_nums with shared AdaLN, at a depth that a test can afford."""
    config = replace(PRESETS["d36"], depth=1, vqvae=small_config().vqvae, activation=Activation())
    manifest = export_bundle(vivid_model(config), tmp_path / "bundle", "fp32", "test")
    shapes = {tensor.name: tensor.shape for tensor in manifest.graphs["scale_10"].inputs}
    assert shapes["past_kv"] == (1, 2, 2, "B", 1, 1 + 4 + 9 + 16 + 36 + 81 + 169 + 324 + 432, 64)
