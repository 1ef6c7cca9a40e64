"""What the weights file holds, against the same arithmetic in PyTorch: in every precision, to the last bit."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import small_config, vivid_model
from torch import Tensor

from actvar.config import FIXED, STATIC, Activation, ModelConfig
from actvar.export.graphs.weights_file import BLOCK_TYPES, DECODER_TYPES, WeightsFile

SPARSE = Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))
MODELS = {
    "VAR": small_config(),
    "ActVAR": small_config(activation=SPARSE),
    "shared AdaLN": small_config(activation=SPARSE, shared_adaln=True),
    "static experts": small_config(activation=replace(SPARSE, expert_choice=STATIC)),
    "fixed tokens, static experts": small_config(
        activation=replace(SPARSE, experts=4, token_choice=FIXED, expert_choice=STATIC)
    ),
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp16-weights")
BLOCKS = re.compile(r"var\.(blocks\.\d+\.(attn\.(mat_qkv|proj)|ffn\.fc[12]|ada_lin)|shared_ada_lin)\.")


def written(config: ModelConfig, precision: str, path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, as PyTorch reads its bytes."""
    spec = WeightsFile.of(config, precision).write(path, vivid_model(config).read)
    content = path.read_bytes()
    assert len(content) == spec.bytes
    return {
        name: torch.frombuffer(
            bytearray(content[stored.offset : stored.offset + stored.length]), dtype=getattr(torch, stored.dtype)
        ).view(stored.shape)
        for name, stored in spec.tensors.items()
    }


def expected(name: str, config: ModelConfig, state: dict[str, Tensor]) -> Tensor:
    """A tensor in fp32, from its description at the head of `weights_file.py`."""
    activation = config.activation
    if activation and activation.expert_choice == STATIC and re.search(r"ffn\.fc(1|2\.weight_t)", name):
        return in_order(name, config, state)
    if name in state:
        return state[name]
    if match := re.fullmatch(r"var\.positions\.(\d+)", name):
        si = int(match[1])
        first, count = config.schedule.starts[si], config.schedule.tokens[si]
        sums = state["var.lvl_embed.weight"][si] + state["var.pos_1LC"][:, first : first + count]
        return sums if si else sums + state["var.pos_start"]
    if name.endswith("mat_qkv.bias"):
        q, v = (state[name.replace("mat_qkv.bias", f"{part}_bias")] for part in "qv")
        return torch.cat((q, torch.zeros_like(q), v))
    if name.endswith("query_scale"):
        return state[name.replace("query_scale", "scale_mul_1H11")][0].clamp_max(np.log(100)).double().exp().float()
    if name.endswith("weight_t"):
        return state[name.removesuffix("_t")].T
    if match := re.fullmatch(r"vqvae\.quantize\.phi\.(\d)\.(weight|bias)", name):
        half = state[f"vqvae.quantize.quant_resi.qresi_ls.{match[1]}.{match[2]}"] / 2
        if match[2] == "weight":
            half[:, :, 1, 1] += torch.eye(len(half)) / 2
        return half
    kernel = state[name.replace("subpixel_conv", "conv")]
    if name.endswith("bias"):
        return torch.cat([kernel] * 4)
    taps = {0: ((0, 1), (2,)), 1: ((0,), (1, 2))}  # of a pixel of either parity, which of three meet the same one
    pixels = []
    for dy in (0, 1):
        for dx in (0, 1):
            rows = torch.stack([sum(kernel[:, :, y] for y in ys) for ys in taps[dy]], 2)
            pixels.append(torch.stack([sum(rows[..., x] for x in xs) for xs in taps[dx]], 3))
    return torch.cat(pixels)


def piece_of(layer: str, config: ModelConfig, state: dict[str, Tensor]) -> Tensor:
    """[I, O]."""
    if ".fc1." in layer:
        return in_order(f"{layer}.weight", config, state).T
    return in_order(f"{layer}.weight_t", config, state)


def in_order(name: str, config: ModelConfig, state: dict[str, Tensor]) -> Tensor:
    """An FFN's rows, expert by expert from the best; of a piece (`fc1.0.weight`) those of its experts alone."""
    ffn, layer, piece, kind = re.fullmatch(r"(.*ffn)\.(fc[12])(?:\.(\d))?\.(weight_t|weight|bias)", name).groups()
    rows = state[f"{ffn}.fc2.weight"].T if kind == "weight_t" else state[f"{ffn}.{layer}.{kind}"]
    scores, parts = state[f"{ffn}.router.bias"].tolist(), rows.chunk(config.activation.experts)
    best = sorted(range(len(parts)), key=lambda expert: (-scores[expert], expert))
    if piece:
        ends = [0, *sorted({config.active_experts(si) for si in range(4)})]
        best = best[ends[int(piece)] : ends[int(piece) + 1]]
    return torch.cat([parts[expert] for expert in best])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_every_tensor_is_what_pytorch_computes(config: ModelConfig, precision: str, tmp_path: Path):
    """numpy writes the file; a cast or a sum that rounds in another way would move pictures, and nobody would see."""
    state = vivid_model(config).state_dict()
    for name, found in written(config, precision, tmp_path / "weights.bin").items():
        layer, _, kind = name.rpartition(".")
        if kind in ("weight_int8", "weight_scale"):
            whole = state[f"{layer}.weight"].T if f"{layer}.weight" in state else piece_of(layer, config, state)
            largest = whole.abs().amax(0)
            scale = torch.where(largest > 0, largest / 64, 1.0)
            wanted = scale if kind == "weight_scale" else (whole / scale).round().to(torch.int8)
        elif BLOCKS.match(name):
            held = "float16" if precision == "fp16-weights" and kind != "bias" else BLOCK_TYPES[precision]
            wanted = expected(name, config, state).to(getattr(torch, held))
        elif re.match(r"vqvae\.((post_)?quant_conv\.|decoder\.|encoder\.(?!.*norm))", name):
            wanted = expected(name, config, state).to(getattr(torch, DECODER_TYPES[precision]))
        else:
            wanted = expected(name, config, state)
        assert found.dtype == wanted.dtype, name
        assert torch.equal(found, wanted), name


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_halves_are_rounded_to_even(precision: str, tmp_path: Path):
    """Between two numbers of the narrow type, and among its smallest ones, as PyTorch rounds."""
    config = small_config()
    model, dtype = vivid_model(config), getattr(torch, BLOCK_TYPES[precision])
    weight = model.var.blocks[0].attn.proj.weight
    narrow = torch.arange(1, 1 + weight.numel() // 2, dtype=torch.int16).view(dtype).float()
    upper = torch.arange(2, 2 + weight.numel() // 2, dtype=torch.int16).view(dtype).float()
    weight.view(-1)[: weight.numel() // 2] = (narrow + upper) / 2
    path = tmp_path / "weights.bin"
    spec = WeightsFile.of(config, precision).write(path, model.read)
    stored = spec.tensors["var.blocks.0.attn.proj.weight"]
    found = np.fromfile(path, np.int16, stored.length // 2, offset=stored.offset)
    np.testing.assert_array_equal(found, weight.to(dtype).view(torch.int16).numpy().reshape(-1))


def test_the_scale_of_queries_is_within_a_last_bit_of_pytorchs(tmp_path: Path):
    """The one number that is computed otherwise: rounded once, where PyTorch's exponential may be off by one bit."""
    config = small_config()
    state = vivid_model(config).state_dict()
    found = written(config, "fp32", tmp_path / "weights.bin")
    for block in range(config.depth):
        scale = state[f"var.blocks.{block}.attn.scale_mul_1H11"][0].clamp_max(np.log(100)).exp()
        ours = found[f"var.blocks.{block}.attn.query_scale"]
        assert ((ours.view(torch.int32) - scale.view(torch.int32)).abs() <= 1).all()
