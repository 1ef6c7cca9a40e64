"""Checkpoints: written and read back, official layouts, and a VAR that becomes an ActVAR."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import official_layout as official
import pytest
import torch
from official_layout import LARGE, STANDARD
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_checkpoints import SPARSE, official_files, own_file, same, tiny_var, tiny_vqvae
from small_models import small_config, vivid_model

from actvar.checkpoint import own as own_format
from actvar.checkpoint.files import Checkpoint, shipped_checkpoint
from actvar.checkpoint.model import load_checkpoint, load_model, load_vqvae
from actvar.checkpoint.official import derive_config
from actvar.checkpoint.own import save_model
from actvar.checkpoint.values import Values
from actvar.checkpoint.weights import Weights
from actvar.config import PRESETS, Activation, ModelConfig
from actvar.errors import CheckpointError, UsageError
from actvar.models.actvar import ActVAR
from actvar.naming import named_model
from actvar.scales import ScaleSchedule


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return official_files(tmp_path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return own_file(tmp_path)


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
    weights = [
        Weights(Path("x.pth"), "", {key: Values("float32", shape, (key, 0), list) for key, shape in part.items()})
        for part in shapes
    ]
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


@pytest.mark.parametrize(
    ("form", "count"), [("qresi.", 1), ("", 10), ("", 6), ("qresi_ls.", 2), ("qresi_ls.", 5)], ids=str
)
def test_a_vqvae_with_other_convolutions_behind_its_upsamplings_is_told_by_its_names(tmp_path, form: str, count: int):
    """Official VAR's share_quant_resi 1, 0 and others; and a quant_conv_ks of 1."""
    phi, state = "quantize.quant_resi.", tiny_vqvae()
    theirs = {name: value for name, value in state.items() if not name.startswith(phi)}
    one = {part: state[f"{phi}qresi_ls.0.{part}"] for part in ("weight", "bias")}
    for i in range(count):
        name = f"{phi}{form}" if form == "qresi." else f"{phi}{form}{i}."
        theirs |= {f"{name}{part}": value + i for part, value in one.items()}
    theirs |= {f"{conv}.weight": state[f"{conv}.weight"][..., :1, :1] for conv in ("quant_conv", "post_quant_conv")}
    torch.save(theirs, tmp_path / "vae.pth")
    found = load_vqvae(tmp_path / "vae.pth", znorm=True).vqvae
    for i in range(count):
        assert torch.equal(found.quantize.quant_resi.qresi_ls[i].bias, one["bias"] + i)
    assert len(found.quantize.quant_resi.qresi_ls) == count and found.quantize.znorm
    torch.save(tiny_var(1, STANDARD, False), tmp_path / "var.pth")
    config = load_checkpoint(Checkpoint(tmp_path / "var.pth", tmp_path / "vae.pth", znorm=True)).config
    assert (config.vqvae.phi_count, config.vqvae.code_kernel, config.vqvae.znorm) == (count, 1, True)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_vqvae_without_these_convolutions_is_refused(tmp_path):
    """A quant_resi of 0: what official VAR then adds is another sum."""
    torch.save({k: v for k, v in tiny_vqvae().items() if "quant_resi" not in k}, tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match="qresi_ls: expected the quantizer's convolutions, found none"):
        load_vqvae(tmp_path / "vae.pth")


def test_znorm_is_not_said_of_a_checkpoint_that_says_it_itself(tmp_path):
    with pytest.raises(UsageError, match=r"--znorm is of official VQVAEs, and .*actvar_mini"):
        load_vqvae(shipped_checkpoint("actvar-mini").path, znorm=True)
    with pytest.raises(UsageError, match=r"--znorm belongs to an official VQVAE, and actvar-mini has its own"):
        named_model("actvar-mini", znorm=True)


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


def test_reading_a_model_loads_no_compiler():
    """Initial values on the meta device import PyTorch's compiler and sympy, which takes five seconds."""
    code = (
        "import sys; from actvar.checkpoint.files import shipped_checkpoint as shipped;"
        "from actvar.checkpoint.model import load_model, load_vqvae;"
        "path = shipped('actvar-mini').path; before = set(sys.modules); load_model(path); load_vqvae(path);"
        "print({'torch._dynamo', 'sympy'} & (set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert run.stdout == "set()\n", run.stderr
