"""What official VAR's checkpoints hold, name by name, from official VAR's code and not from `actvar.models`."""

import torch
from torch import Tensor

STANDARD = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
LARGE = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, inputs: int, outputs: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def var_shapes(
    depth: int,
    patch_nums: tuple[int, ...] = STANDARD,
    shared: bool = False,
    classes: int = 1000,
    V: int = 4096,
    E: int = 32,
) -> Shapes:
    """The parameters of `var_d{depth}.pth`."""
    C, tokens = 64 * depth, sum(p * p for p in patch_nums)
    shapes: Shapes = {"pos_start": (1, 1, C), "pos_1LC": (1, tokens, C)}
    shapes |= _linear("word_embed", E, C)
    shapes |= {"class_emb.weight": (classes + 1, C), "lvl_embed.weight": (len(patch_nums), C)}
    if shared:
        shapes |= _linear("shared_ada_lin.1", C, 6 * C)
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= {f"{block}.attn.scale_mul_1H11": (1, depth, 1, 1), f"{block}.attn.mat_qkv.weight": (3 * C, C)}
        shapes |= {f"{block}.attn.q_bias": (C,), f"{block}.attn.v_bias": (C,)}
        shapes |= _linear(f"{block}.attn.proj", C, C)
        shapes |= _linear(f"{block}.ffn.fc1", C, 4 * C) | _linear(f"{block}.ffn.fc2", 4 * C, C)
        shapes |= {f"{block}.ada_gss": (1, 1, 6, C)} if shared else _linear(f"{block}.ada_lin.1", C, 6 * C)
    return shapes | _linear("head_nm.ada_lin.1", C, 2 * C) | _linear("head", C, V)


def var_buffers(depth: int, patch_nums: tuple[int, ...] = STANDARD) -> dict[str, Tensor]:
    """What the same file holds besides, and what follows from the configuration."""
    level = torch.tensor([si for si, p in enumerate(patch_nums) for _ in range(p * p)])
    bias = torch.zeros(1, 1, len(level), len(level))
    bias[0, 0][level[:, None] < level[None, :]] = -torch.inf
    zeros = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(64 * depth) for i in range(depth)}
    return {"lvl_1L": level[None], "attn_bias_for_masking": bias, **zeros}


def _resnet(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", inputs) | _conv(f"{name}.conv1", inputs, outputs)
    shapes |= _norm(f"{name}.norm2", outputs) | _conv(f"{name}.conv2", outputs, outputs)
    return shapes if inputs == outputs else shapes | _conv(f"{name}.nin_shortcut", inputs, outputs, 1)


def _attention(name: str, channels: int) -> Shapes:
    qkv = _conv(f"{name}.qkv", channels, 3 * channels, 1)
    return _norm(f"{name}.norm", channels) | qkv | _conv(f"{name}.proj_out", channels, channels, 1)


def _middle(name: str, channels: int) -> Shapes:
    outer = _resnet(f"{name}.block_1", channels, channels) | _resnet(f"{name}.block_2", channels, channels)
    return outer | _attention(f"{name}.attn_1", channels)


def vqvae_shapes(
    ch: int = 160, mult: tuple[int, ...] = (1, 1, 2, 2, 4), blocks: int = 2, V: int = 4096, E: int = 32
) -> Shapes:
    """The parameters of `vae_ch160v4096z32.pth`."""
    last, lowest = ch * mult[-1], len(mult) - 1
    shapes = _conv("encoder.conv_in", 3, ch) | _conv("decoder.conv_in", E, last)
    channels = ch
    for i in range(len(mult)):
        for j in range(blocks):
            shapes |= _resnet(f"encoder.down.{i}.block.{j}", channels, ch * mult[i])
            channels = ch * mult[i]
            shapes |= _attention(f"encoder.down.{i}.attn.{j}", channels) if i == lowest else {}
        shapes |= _conv(f"encoder.down.{i}.downsample.conv", channels, channels) if i != lowest else {}
    for i in reversed(range(len(mult))):
        for j in range(blocks + 1):
            shapes |= _resnet(f"decoder.up.{i}.block.{j}", channels, ch * mult[i])
            channels = ch * mult[i]
            shapes |= _attention(f"decoder.up.{i}.attn.{j}", channels) if i == lowest else {}
        shapes |= _conv(f"decoder.up.{i}.upsample.conv", channels, channels) if i else {}
    shapes |= _middle("encoder.mid", last) | _norm("encoder.norm_out", last) | _conv("encoder.conv_out", last, E)
    shapes |= _middle("decoder.mid", last) | _norm("decoder.norm_out", ch) | _conv("decoder.conv_out", ch, 3)
    shapes |= _conv("quant_conv", E, E) | _conv("post_quant_conv", E, E)
    for i in range(4):
        shapes |= _conv(f"quantize.quant_resi.qresi_ls.{i}", E, E)
    return shapes | {"quantize.embedding.weight": (V, E)}


def hits(V: int = 4096, scales: int = 10) -> dict[str, Tensor]:
    """The buffer in the same file: how often the training used each code."""
    return {"quantize.ema_vocab_hit_SV": torch.ones(scales, V)}


def filled(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random values in these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
