"""Checkpoints that do not hold what they should: each is refused by the tensor or the field that is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_checkpoints import SPARSE, official_files, own_file, refused, tiny_var, tiny_vqvae
from torch import Tensor


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return official_files(tmp_path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return own_file(tmp_path)


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
        (
            {"quantize.quant_resi.qresi_ls.4.bias": torch.ones(4)},
            r"qresi_ls\.4\.weight: expected the shape .*, found no ",
        ),
        ({"quantize.quant_resi.other": torch.ones(4)}, r"quant_resi\.other: expected no such tensor"),
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
    refused(r"word_embed\.weight: expected the width 64 of 1 block, found 128", *files)


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
        ("depth", 100, "depth: expected 100, as its metadata say"),  # must not be built before it is compared
        ("depth", 10**9, "the metadata's configuration: depth must be .* at most 128, got 1000000000"),
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
