"""Checkpoints: written and read back, official layouts, and every way in which a file may be wrong or hostile."""

import json
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import official_layout as official
import pytest
import torch
from official_layout import LARGE, STANDARD
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import small_config, vivid_model
from torch import Tensor

from actvar.checkpoint import own as own_format
from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_model
from actvar.checkpoint.official import derive_config
from actvar.checkpoint.own import save_model
from actvar.checkpoint.weights import Weights
from actvar.config import PRESETS, Activation, ModelConfig
from actvar.errors import CheckpointError, UsageError
from actvar.models.actvar import ActVAR
from actvar.scales import ScaleSchedule

SPARSE = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))
TINY_VQVAE = dict(ch=32, mult=(1, 2), blocks=1, V=24, E=4)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tiny_var(depth: int = 1, patch_nums: tuple[int, ...] = STANDARD, shared: bool = False) -> dict[str, Tensor]:
    """The state of a small official VAR, with its buffers."""
    shapes = official.var_shapes(depth, patch_nums, shared, classes=3, V=24, E=4)
    return official.filled(shapes) | official.var_buffers(depth, patch_nums)


def tiny_vqvae() -> dict[str, Tensor]:
    return official.filled(official.vqvae_shapes(**TINY_VQVAE), seed=1) | official.hits(V=24)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Official files of a VAR of depth 1 and of its VQVAE."""
    torch.save(tiny_var(), tmp_path / "var_d1.pth")
    torch.save(tiny_vqvae(), tmp_path / "vae.pth")
    return tmp_path / "var_d1.pth", tmp_path / "vae.pth"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A checkpoint of ours."""
    path = tmp_path / "model.safetensors"
    save_model(vivid_model(SPARSE), path)
    return path


# ---- our own


def test_what_was_saved_in_fp32_is_loaded_bit_for_bit(tmp_path):
    model = vivid_model(SPARSE)
    save_model(model, tmp_path / "model.safetensors", torch.float32)
    loaded = load_model(tmp_path / "model.safetensors")
    assert same(loaded.state_dict(), model.state_dict())
    assert loaded.config == loaded.var.config == SPARSE
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_fp16_rounds_matrices_and_keeps_what_would_lose_by_it(own):
    """Vectors, codes, router and selector stay in fp32; loading gives fp32 throughout."""
    model, loaded = vivid_model(SPARSE).state_dict(), load_model(own).state_dict()
    stored = load_file(own)
    kept = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert {"var.blocks.0.selector.weight", "var.blocks.1.ffn.router.weight", "vqvae.quantize.embedding.weight"} <= kept
    assert {"var.blocks.0.attn.scale_mul_1H11", "var.pos_start", "vqvae.decoder.norm_out.weight"} <= kept
    assert not {"var.head.weight", "var.pos_1LC", "vqvae.encoder.conv_in.weight", "var.class_emb.weight"} & kept
    for name, tensor in model.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor if name in kept else tensor.half().float()), name


def test_others_can_read_the_file_and_its_configuration(own):
    with safe_open(own, "pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("actvar-checkpoint", "1")
    assert ModelConfig.from_dict(json.loads(metadata["config"])) == SPARSE


def test_the_same_weights_give_the_same_bytes(own, tmp_path):
    """So that a hash names a model. safetensors' own writer shuffles the metadata in every process."""
    save_model(vivid_model(SPARSE), tmp_path / "again.safetensors")
    assert Checkpoint(own).digest() == Checkpoint(tmp_path / "again.safetensors").digest()
    assert own.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    (tmp_path / "link").symlink_to(own)
    assert Checkpoint(tmp_path / "link").digest() == Checkpoint(own).digest()
    raw = own.read_bytes()
    assert raw[8:].startswith(b'{"__metadata__":{"format":')
    assert (8 + struct.unpack("<Q", raw[:8])[0]) % 8 == 0  # the values begin aligned


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(own, monkeypatch):
    """Ctrl-C half-way through."""
    before = own.read_bytes()

    def interrupted(file, tensors, metadata):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(own_format, "_write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(vivid_model(SPARSE), own)
    assert own.read_bytes() == before
    assert os.listdir(own.parent) == [own.name]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere/model\.safetensors cannot be written: No such file"):
        save_model(vivid_model(SPARSE), tmp_path / "nowhere" / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70_000.0])
def test_weights_that_are_not_finite_in_fp16_are_not_saved(tmp_path, value):
    model = vivid_model(SPARSE)
    model.var.head.weight[3, 4] = value
    with pytest.raises(CheckpointError, match=r"was not written: var\.head\.weight holds NaN, infinity or a value too"):
        save_model(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


# ---- official layouts


@pytest.mark.parametrize("name", ["d16", "d20", "d24", "d30", "d36"])
def test_official_names_and_shapes_are_those_of_the_presets(name):
    """Every key of every released size; nothing is allocated."""
    config = PRESETS[name]
    patch_nums, shared = (LARGE, True) if name == "d36" else (STANDARD, False)
    shapes = official.var_shapes(config.depth, patch_nums, shared), official.vqvae_shapes()
    with torch.device("meta"):
        model = ActVAR(config)
        weights = [Weights(Path("x.pth"), "", {key: torch.empty(s) for key, s in part.items()}) for part in shapes]
    assert derive_config(*weights, ScaleSchedule(patch_nums)) == config
    for network, expected in zip((model.var, model.vqvae), shapes, strict=True):
        assert {key: tuple(parameter.shape) for key, parameter in network.named_parameters()} == expected


@pytest.mark.parametrize(
    ("depth", "patch_nums", "shared"),
    [(1, STANDARD, False), (2, STANDARD, False), (1, LARGE, True), (1, (1, 2, 4), False)],
)
def test_official_files_load_value_by_value(tmp_path, depth, patch_nums, shared):
    """Also with patch_nums of one's own: lvl_1L tells them."""
    var, vqvae = tiny_var(depth, patch_nums, shared), tiny_vqvae()
    torch.save(var, tmp_path / "var.pth")
    torch.save(vqvae, tmp_path / "vae.pth")
    model = load_model(tmp_path / "var.pth", tmp_path / "vae.pth")
    config = model.config
    assert (config.depth, config.schedule.patch_nums, config.shared_adaln) == (depth, patch_nums, shared)
    assert (config.num_classes, config.class_names, config.activation) == (3, (), None)
    assert (config.vqvae.vocab_size, config.vqvae.z_channels, config.vqvae.ch) == (24, 4, 32)
    assert (config.vqvae.ch_mult, config.vqvae.num_res_blocks, config.vqvae.norm_groups) == ((1, 2), 1, 32)
    for network, state in ((model.var, var), (model.vqvae, vqvae)):
        own = network.state_dict()
        assert same(own, {name: state[name] for name in own})
        left_out = {name.rpartition(".")[2] for name in state.keys() - own.keys()}
        assert left_out <= {"lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV"}


def test_the_same_tensors_in_any_wrapping_are_the_same_model(files, tmp_path):
    """Self-trained (nested), the trainer alone, safetensors, torch's old format, without buffers, in half precision."""
    expected = load_model(*files).state_dict()
    var, vqvae = tiny_var(), tiny_vqvae()
    bare = {name: tensor for name, tensor in var.items() if name in official.var_shapes(1)}

    def wrapped(name: str, content: Any, **options: Any) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    trainer = {"config": {"patch_nums": STANDARD, "prog_it": 0}, "var_wo_ddp": var, "vae_local": vqvae}
    nested = wrapped("self.pth", {"epoch": 9, "trainer": trainer | {"var_opt": {"state": {}}}, "args": {"depth": 1}})
    save_file(var, tmp_path / "var.safetensors")
    save_file(vqvae, tmp_path / "vae.safetensors")
    for pair in (
        (nested, None),
        (wrapped("trainer.pth", trainer), None),
        (tmp_path / "var.safetensors", tmp_path / "vae.safetensors"),
        (wrapped("old.pth", var, _use_new_zipfile_serialization=False), files[1]),
        (wrapped("bare.pth", bare), files[1]),
        (files[0], nested),  # another's VQVAE
    ):
        assert same(load_model(*pair).state_dict(), expected), pair
    half = load_model(
        wrapped("half.pth", {n: t.half() if t.is_floating_point() else t for n, t in var.items()}), files[1]
    )
    assert torch.equal(half.var.head.weight, var["head.weight"].half().float())


def test_a_loaded_model_does_not_change_with_its_file(files):
    """The file is mapped while it is read, and only then."""
    model = load_model(*files)
    for path in files:
        with path.open("r+b") as file:
            file.write(b"\0" * path.stat().st_size)
    assert torch.equal(model.var.head.weight, tiny_var()["head.weight"])


# ---- activation


def test_activation_makes_an_actvar_of_a_dense_checkpoint(files):
    """All the rest is the checkpoint's; router and selector are small, without bias, and the same every time."""
    activation = Activation(8, (9, 10), (0.5, 0.5), (0.25, 0.25))
    dense, sparse, again = load_model(*files), load_model(*files, activation), load_model(*files, activation)
    assert sparse.config.activation == activation and sparse.config.dense() == dense.config
    fresh = sparse.state_dict().keys() - dense.state_dict().keys()
    assert fresh == {
        f"var.blocks.0.{layer}.{kind}" for layer in ("ffn.router", "selector") for kind in ("weight", "bias")
    }
    assert same(sparse.state_dict(), again.state_dict())
    assert same({name: sparse.state_dict()[name] for name in dense.state_dict()}, dense.state_dict())
    block = sparse.var.blocks[0]
    assert not block.selector.bias.any() and not block.ffn.router.bias.any()
    assert 0.03 < block.ffn.router.weight.std() < 0.1  # sqrt(1 / 3C) = 0.07
    assert 0.03 < block.selector.weight.std() < 0.1
    assert not any(p.requires_grad for p in sparse.parameters())


def test_activation_of_an_actvar_keeps_its_router_and_replaces_the_rates(own):
    activation = Activation(16, (2,), (0.5,), (0.125,))
    model = load_model(own, activation=activation)
    assert model.config.activation == activation
    assert same(model.state_dict(), load_model(own).state_dict())


def test_an_activation_that_does_not_fit_is_refused(own, files):
    with pytest.raises(CheckpointError, match="router for 16 experts, and 8 were asked for"):
        load_model(own, activation=Activation(8, (3,), (0.5,), (0.5,)))
    with pytest.raises(UsageError, match=r"experts must divide the FFN's hidden width 256 .* got 24"):
        load_model(*files, Activation(24))
    with pytest.raises(UsageError, match="keeps no token of scale 1"):
        load_model(*files, Activation(16, (1,), (0.1,), (0.5,)))
    with pytest.raises(CheckpointError, match=r"with a dynamic token_choice, and a fixed one was asked for\."):
        load_model(own, activation=replace(SPARSE.activation, token_choice="fixed"))


def test_a_baseline_comes_back_as_it_was_and_with_other_rates(tmp_path):
    """Its choices are in the metadata, and no reader asks for selectors and routers that it does not have."""
    config = small_config(activation=replace(SPARSE.activation, token_choice="fixed", expert_choice="static"))
    model, path = vivid_model(config), tmp_path / "baseline.safetensors"
    save_model(model, path, torch.float32)
    found = load_model(path)
    assert found.config == config
    assert same(found.state_dict(), model.state_dict())
    other = replace(config.activation, scales=(4,), token_rates=(0.5,), expert_rates=(0.5,))
    assert load_model(path, activation=other).config.activation == other


# ---- files that do not hold what they should


def refused(message: str, path: Path, vqvae: Path | None = None) -> str:
    """The message with which a file is refused; it names the file, and is one of the user's."""
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(path, vqvae)
    text = str(error.value)
    assert str(path) in text or str(vqvae) in text
    assert text.endswith(".") and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.ffn.fc1.bias": None}, r"blocks\.0\.ffn\.fc1\.bias: expected the shape \[256\], found no such"),
        ({"blocks.0.attn.scale_mul_1H11": None, "head.bias": None}, r"found no such tensor \(2 are missing\)"),
        ({"blocks.0.ffn.fc3.bias": torch.ones(2)}, r"fc3\.bias: expected no such tensor, found one of the shape \[2\]"),
        ({"head.weight": torch.ones(24, 63)}, r"head\.weight: expected .* \[24, 64\], found float32 .* \[24, 63\]"),
        ({"head.bias": torch.ones(24, dtype=torch.int32)}, r"head\.bias: expected floating point .* found int32"),
        ({"head.bias": torch.full((24,), torch.nan)}, r"head\.bias: expected finite values, found NaN .* in 24 of 24"),
        ({"pos_start": torch.full((1, 1, 64), 1e300, dtype=torch.float64)}, "pos_start: expected finite values"),
        ({"head.bias": torch.ones(24).to_sparse()}, r"head\.bias: expected a dense tensor .* found float32 sparse_coo"),
        ({"head.bias": torch.ones(0)}, r"head\.bias: expected a dense tensor .* found float32 of the shape \[0\]"),
        ({"epoch": 3}, "epoch: expected a tensor, found int"),
        ({"word_embed.weight": None}, r"word_embed\.weight: expected a tensor of 2 dimensions, found none"),
        ({"pos_1LC": torch.ones(680, 64)}, r"pos_1LC: expected 3 dimensions, found the shape \[680, 64\]"),
        ({"pos_1LC": torch.ones(1, 679, 64)}, "pos_1LC: expected 680 tokens of the scales .* found 679"),
        ({"pos_1LC": torch.ones(1, 679, 64), "lvl_1L": None}, "pos_1LC: expected 680 or 2240 tokens"),
        ({"lvl_1L": torch.arange(680)[None] // 100}, "lvl_1L: expected the scale of each token, .* found others"),
        ({"lvl_1L": torch.full((1, 680), torch.nan)}, "lvl_1L: expected the scale of each token, .* found others"),
        ({"lvl_1L": tiny_var()["lvl_1L"].flip(1)}, "lvl_1L: expected the values that follow from patch_nums"),
        ({"lvl_1L": tiny_var()["lvl_1L"][:, 1:]}, "lvl_1L: expected the scale of each token, .* found others"),
        ({"lvl_1L": tiny_var()["lvl_1L"][:, :424]}, "pos_1LC: expected 424 tokens of the scales .* found 680"),
        ({"attn_bias_for_masking": torch.zeros(1, 1, 680, 680)}, "attn_bias_for_masking: expected the values that"),
        ({"attn_bias_for_masking": torch.zeros(680, 680)}, r"attn_bias_for_masking: expected the shape \[1, 1, 680,"),
        ({"blocks.0.attn.zero_k_bias": torch.ones(64)}, "zero_k_bias: expected the values that follow"),
        ({"class_emb.weight": torch.ones(1, 64)}, r"class_emb\.weight: expected one row for each class"),
    ],
)
def test_a_state_that_is_not_a_var_s_is_refused_by_tensor(files, changes, message):
    state = {name: tensor for name, tensor in (tiny_var() | changes).items() if tensor is not None}
    torch.save(state, files[0])
    refused(message, *files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.conv_out.bias": None}, r"decoder\.conv_out\.bias: expected the shape \[3\], found no such tensor"),
        ({"quantize.quant_resi.qresi_ls.4.bias": torch.ones(4)}, r"qresi_ls\.4\.bias: expected no such tensor"),
        ({"encoder.conv_in.weight": None}, r"encoder\.conv_in\.weight: expected a tensor of 4 dimensions"),
        (
            {"encoder.down.1.block.0.conv2.weight": torch.ones(65, 65, 3, 3)},
            "a multiple of encoder.conv_in's 32",
        ),
        ({"encoder.conv_in.weight": torch.ones(16, 3, 3, 3)}, "ch must be a multiple of the 32 norm_groups"),
        ({"quantize.ema_vocab_hit_SV": torch.ones(10, 23)}, "ema_vocab_hit_SV: expected 24 codes in a row"),
        (
            {"quantize.embedding.weight": torch.ones(25, 4)},
            "predicts 24 codes of width 4, but .* has 25 of",
        ),
        ({"post_quant_conv.bias": torch.full((4,), -torch.inf)}, r"post_quant_conv\.bias: expected finite values"),
    ],
)
def test_a_state_that_is_not_the_vqvae_s_is_refused_by_tensor(files, changes, message):
    state = {name: tensor for name, tensor in (tiny_vqvae() | changes).items() if tensor is not None}
    torch.save(state, files[1])
    refused(message, *files)


def test_a_checkpoint_of_the_wrong_depth_is_refused(files):
    """A block was lost, or a file was put together from two."""
    state = tiny_var(depth=2)
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("blocks.1.")}, files[0])
    refused(r"word_embed\.weight: expected the width 64 of 1 blocks, found 128", *files)


def test_the_wrong_file_in_the_wrong_place_is_explained(files, own, tmp_path):
    var, vqvae = files
    refused(
        "holds a VAR without its VQVAE. Give the VQVAE that it was trained with; the official one is vae_ch160", var
    )
    refused("holds a VQVAE and no VAR", vqvae)
    refused("holds no VQVAE", var, var)
    refused("holds a VQVAE of its own, and .* was given too", own, vqvae)
    torch.save({"trainer": {"var_wo_ddp": tiny_var(), "vae_local": tiny_vqvae()}}, tmp_path / "self.pth")
    refused("holds a VQVAE of its own, and .* was given too", tmp_path / "self.pth", vqvae)
    torch.save({"trainer": {"vae_local": tiny_vqvae()}}, tmp_path / "half.pth")
    refused("holds a VQVAE and no VAR", tmp_path / "half.pth")
    torch.save({"model": {"layer": torch.ones(3)}, "optimizer": {}}, tmp_path / "other.pth")
    refused(r"holds no VAR \(its first entries: model, optimizer\)", tmp_path / "other.pth")
    save_file({"var.blocks.0.head": torch.ones(3)}, tmp_path / "bare.safetensors")
    refused("holds no VAR", tmp_path / "bare.safetensors")


def rewritten(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> Path:
    """A checkpoint of ours with other tensors or metadata."""
    with safe_open(path, "pt") as file:
        old = file.metadata()
    save_file(load_file(path) | (tensors or {}), path, old | metadata)
    return path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 3, "depth: expected 3, as its metadata say, found tensors of 2"),
        ("depth", 10**9, "depth: expected 1000000000"),  # must not be built before it is compared
        ("num_classes", 6, "num_classes: expected 6"),
        ("shared_adaln", True, "shared_adaln: expected True"),
        ("patch_nums", [1, 2, 3, 6], r"pos_1LC: expected 50 tokens of the scales \(1, 2, 3, 6\), found 39"),
        ("patch_nums", [1, 10**400], "the metadata's configuration"),
        ("depth", "2", "the metadata's configuration: depth must be of the type int"),
        ("colour", 1, "'colour', which is not understood"),
        ("activation", None, r"blocks\.0\.(selector|ffn\.router)\..*: expected no such tensor"),
    ],
)
def test_metadata_that_do_not_fit_the_tensors_are_refused(own, field, value, message):
    refused(message, rewritten(own, config=json.dumps({**SPARSE.to_dict(), field: value})))


def test_a_router_of_another_size_is_refused(own):
    data = SPARSE.to_dict()
    data["activation"]["experts"] = 8
    refused(r"router\.weight: expected floating point of the shape \[8, 128\]", rewritten(own, config=json.dumps(data)))


def test_other_versions_and_broken_metadata_are_refused(own):
    refused("has the format's version '2', this program reads '1'. Update", rewritten(own, version="2"))
    refused("the metadata's configuration: Expecting", rewritten(own, version="1", config="{"))
    refused("the metadata's configuration: Expecting", rewritten(own, config=""))
    refused("the metadata's configuration: ", rewritten(own, config="[" * 100_000))


def test_tensors_that_belong_to_nothing_are_refused(own):
    refused("optimizer.step: expected names in var or vqvae", rewritten(own, {"optimizer.step": torch.ones(1)}))


# ---- files that are broken, or hostile


def test_what_is_no_file_is_refused(tmp_path):
    refused("does not exist. Name a checkpoint", tmp_path / "nothing.pth")
    refused("is a folder. Name a checkpoint", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refused("is no plain file", tmp_path / "pipe")
    refused("cannot be read: File name too long", tmp_path / ("x" * 300))
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(CheckpointError):
            Checkpoint(path).digest()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"a letter to a friend", b"\x89PNG\r\n\x1a\n" + bytes(50)])
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_what_is_no_checkpoint_at_all_is_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    refused("cannot be read as a checkpoint|is refused: what|is not a whole safetensors file", tmp_path / name)


def test_a_pickle_of_something_else_is_refused(tmp_path):
    torch.save([torch.ones(3)], tmp_path / "list.pth")
    refused("holds list where a checkpoint has tensors by name", tmp_path / "list.pth")
    torch.save({3: torch.ones(3)}, tmp_path / "numbers.pth")
    refused("tensors by name", tmp_path / "numbers.pth")


def test_a_truncated_file_is_refused_wherever_it_was_cut(files, own, tmp_path):
    """A download that broke off: in the header, in the pickle, in the values, in the zip's directory."""
    for path, vqvae in ((own, None), (files[0], files[1])):
        raw, cut = path.read_bytes(), tmp_path / f"cut-{path.name}"
        for size in {*range(1, len(raw), len(raw) // 23), len(raw) - 1}:
            cut.write_bytes(raw[:size])
            with pytest.raises(CheckpointError, match="cut-"):
                load_model(cut, vqvae)


def with_header(path: Path, header: bytes, length: int | None = None) -> Path:
    """A safetensors file with another header, and, if wanted, a wrong length of it."""
    raw = path.read_bytes()
    old = struct.unpack("<Q", raw[:8])[0]
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + raw[8 + old :])
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 9999999999]}}',
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"format": 3}}',
    ],
)
def test_a_safetensors_header_is_held_to_its_file(own, header):
    refused("is not a whole safetensors file", with_header(own, header))


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9])
def test_a_header_longer_than_its_file_is_refused_before_it_is_read(own, length):
    refused("is not a whole safetensors file", with_header(own, b"{}", length))


def test_flipped_bits_are_refused_or_harmless_but_never_crash(files, own, tmp_path):
    """Whatever a damaged header or pickle says, the user sees a message and no traceback."""
    generator = torch.Generator().manual_seed(0)
    for path, vqvae in ((own, None), (files[0], files[1])):
        raw, damaged = path.read_bytes(), tmp_path / f"damaged-{path.name}"
        places = torch.randint(2000, (20,), generator=generator).tolist()  # safetensors' header, torch's pickle
        places += [len(raw) - 1 - place for place in torch.randint(2000, (10,), generator=generator).tolist()]
        outcomes = set()
        for place in places:
            damaged.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
            try:
                load_model(damaged, vqvae)
                outcomes.add("loaded")
            except CheckpointError:
                outcomes.add("refused")
        assert outcomes == {"loaded", "refused"}


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_evil(path: Path, form: str, evil: Evil) -> None:
    content = {"head.weight": torch.ones(3), "x": evil}
    if form == "zip":
        torch.save(content, path)
    elif form == "zip, nested":
        torch.save({"trainer": {"var_wo_ddp": tiny_var() | {"x": evil}, "vae_local": tiny_vqvae()}}, path)
    elif form == "old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"x": evil}, protocol=int(form)))


@pytest.mark.parametrize("form", ["zip", "zip, nested", "old", "0", "2", "4"])
@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, form, name):
    """As torch.save writes it, in either format, or a plain pickle of protocol 0, 2 or 4; whatever its name says."""
    marker, path = tmp_path / "ran", tmp_path / name
    write_evil(path, form, Evil(marker))
    text = refused("is not a whole safetensors file" if path.suffix == ".safetensors" else "is refused", path)
    assert not marker.exists()
    if path.suffix == ".pth" and form not in ("0", "4"):  # of other protocols torch reads nothing at all
        assert "beside tensors it asks for posix.system, which could run code, and was not run" in text
    if form in ("0", "2", "4"):  # the danger is real: pickle's own loader runs it
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_evil_given_as_the_vqvae_is_refused_too(files, tmp_path):
    write_evil(files[1], "zip", Evil(tmp_path / "ran"))
    refused(r"vae\.pth is refused: .* posix\.system", *files)
    assert not (tmp_path / "ran").exists()


def test_a_state_that_holds_itself_does_not_hang(tmp_path):
    state: dict[str, Any] = {"trainer": {}}
    state["trainer"]["var_wo_ddp"] = state["trainer"]["trainer"] = state["trainer"]
    torch.save(state, tmp_path / "loop.pth")
    refused("expected a tensor, found dict", tmp_path / "loop.pth")


def test_a_tensor_larger_than_its_file_takes_no_memory(files):
    """A view with stride 0 may claim any shape; also where the shape alone would tell the model."""
    for name, shape in (("head.bias", (2**40,)), ("lvl_1L", (1, 2**40)), ("pos_1LC", (1, 2**40, 64))):
        torch.save(tiny_var() | {name: torch.ones(1).expand(shape)}, files[0])
        refused(rf"{name}: expected a dense tensor with all its values, found float32 of the shape", *files)


def test_two_models_may_share_the_vqvae_of_one_file(tmp_path: Path) -> None:
    """As the package's own two models do: the transformer alone in one file, its VQVAE in the other's."""
    shared, alone = tmp_path / "shared.safetensors", tmp_path / "alone.safetensors"
    model = vivid_model(small_config())
    save_model(model, shared, torch.float32)
    save_model(model, alone, torch.float32, with_vqvae=False)
    assert alone.stat().st_size < shared.stat().st_size
    loaded = load_model(alone, shared)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(CheckpointError, match="holds no VQVAE"):
        load_model(alone)
    with pytest.raises(CheckpointError, match="expected a checkpoint of ours with a VQVAE"):
        load_model(alone, alone)
