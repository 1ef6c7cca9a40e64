"""The tensors of a model by name, with their shapes: what a checkpoint holds, known without PyTorch.

The same as of `actvar.models`, in the order of its `state_dict()`; a test holds the two together.

Letters in shapes: C width, F = 4C, h heads, E code width, V codes, T tokens of all scales, S scales, N experts.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

from actvar.config import DYNAMIC, ModelConfig, SmallDecoderConfig, VQVAEConfig

MODULATIONS = 6
"""Vectors by which AdaLN changes a block: gamma1, gamma2, scale1, scale2, shift1, shift2."""

Shape: TypeAlias = tuple[int, ...]
_Named: TypeAlias = Iterator[tuple[str, Shape]]


def is_scorer(name: str) -> bool:
    """Whether a parameter of this name is a router's or a selector's."""
    return ".router." in name or ".selector." in name


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of every tensor of a model."""
    small = _small_decoder(config.small_decoder, config.vqvae) if config.small_decoder else ()
    return {
        **{f"var.{name}": shape for name, shape in _var(config)},
        **{f"vqvae.{name}": shape for name, shape in _vqvae(config.vqvae)},
        **{f"small_decoder.{name}": shape for name, shape in small},
    }


# ---- the transformer


def _var(config: ModelConfig) -> _Named:
    width, schedule, vqvae = config.width, config.schedule, config.vqvae
    yield "pos_start", (1, 1, width)
    yield "pos_1LC", (1, schedule.total, width)
    yield from _linear("word_embed", vqvae.z_channels, width)
    yield "class_emb.weight", (config.num_classes + 1, width)
    yield "lvl_embed.weight", (len(schedule), width)
    if config.shared_adaln:
        yield from _linear("shared_ada_lin.1", width, MODULATIONS * width)
    for i in range(config.depth):
        yield from _block(config, i)
    yield from _linear("head_nm.ada_lin.1", width, 2 * width)
    yield from _linear("head", width, vqvae.vocab_size)


def _block(config: ModelConfig, i: int) -> _Named:
    width, activation, block = config.width, config.activation, f"blocks.{i}"
    if config.shared_adaln:
        yield f"{block}.ada_gss", (1, 1, MODULATIONS, width)
    yield f"{block}.attn.scale_mul_1H11", (1, config.heads, 1, 1)
    yield f"{block}.attn.q_bias", (width,)
    yield f"{block}.attn.v_bias", (width,)
    yield f"{block}.attn.mat_qkv.weight", (3 * width, width)
    yield from _linear(f"{block}.attn.proj", width, width)
    yield from _linear(f"{block}.ffn.fc1", width, 4 * width)
    yield from _linear(f"{block}.ffn.fc2", 4 * width, width)
    if activation and activation.expert_choice == DYNAMIC:
        yield from _linear(f"{block}.ffn.router", width, activation.experts)
    elif activation:
        yield f"{block}.ffn.router.bias", (activation.experts,)
    if activation and (i == 0 or activation.token_choice == DYNAMIC):
        yield from _linear(f"{block}.selector", width, 1)
    if not config.shared_adaln:
        yield from _linear(f"{block}.ada_lin.1", width, MODULATIONS * width)


# ---- the VQVAE


def _vqvae(config: VQVAEConfig) -> _Named:
    code = config.z_channels
    yield from _encoder(config)
    yield from _decoder(config)
    yield "quantize.embedding.weight", (config.vocab_size, code)
    for i in range(config.phi_count):
        yield from _conv(f"quantize.quant_resi.qresi_ls.{i}", code, code)
    yield from _conv("quant_conv", code, code, config.code_kernel)
    yield from _conv("post_quant_conv", code, code, config.code_kernel)


def _encoder(config: VQVAEConfig) -> _Named:
    widths = [config.ch, *(config.ch * multiple for multiple in config.ch_mult)]
    lowest = len(config.ch_mult) - 1
    yield from _conv("encoder.conv_in", 3, config.ch)
    for i, (before, after) in enumerate(pairwise(widths)):
        yield from _level(f"encoder.down.{i}", before, after, config.num_res_blocks, i == lowest)
        if i != lowest:
            yield from _conv(f"encoder.down.{i}.downsample.conv", after, after)
    yield from _middle("encoder.mid", widths[-1])
    yield from _norm("encoder.norm_out", widths[-1])
    yield from _conv("encoder.conv_out", widths[-1], config.z_channels)


def _decoder(config: VQVAEConfig) -> _Named:
    widths = [*(config.ch * multiple for multiple in config.ch_mult), config.ch * config.ch_mult[-1]]
    lowest = len(config.ch_mult) - 1
    yield from _conv("decoder.conv_in", config.z_channels, widths[-1])
    yield from _middle("decoder.mid", widths[-1])
    for i, (after, before) in enumerate(pairwise(widths)):
        yield from _level(f"decoder.up.{i}", before, after, config.num_res_blocks + 1, i == lowest)
        if i:
            yield from _conv(f"decoder.up.{i}.upsample.conv", after, after)
    yield from _norm("decoder.norm_out", widths[0])
    yield from _conv("decoder.conv_out", widths[0], 3)


def _level(level: str, before: int, after: int, blocks: int, attends: bool) -> _Named:
    for i, (inputs, outputs) in enumerate(pairwise([before] + [after] * blocks)):
        yield from _resnet_block(f"{level}.block.{i}", inputs, outputs)
    for i in range(blocks if attends else 0):
        yield from _attention(f"{level}.attn.{i}", after)


def _middle(middle: str, channels: int) -> _Named:
    yield from _resnet_block(f"{middle}.block_1", channels, channels)
    yield from _attention(f"{middle}.attn_1", channels)
    yield from _resnet_block(f"{middle}.block_2", channels, channels)


def _resnet_block(block: str, inputs: int, outputs: int) -> _Named:
    yield from _norm(f"{block}.norm1", inputs)
    yield from _conv(f"{block}.conv1", inputs, outputs)
    yield from _norm(f"{block}.norm2", outputs)
    yield from _conv(f"{block}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{block}.nin_shortcut", inputs, outputs, 1)


def _attention(attention: str, channels: int) -> _Named:
    yield from _norm(f"{attention}.norm", channels)
    yield from _conv(f"{attention}.qkv", channels, 3 * channels, 1)
    yield from _conv(f"{attention}.proj_out", channels, channels, 1)


# ---- the small decoder


def _small_decoder(config: SmallDecoderConfig, vqvae: VQVAEConfig) -> _Named:
    width = config.width
    yield from _conv("conv_in", vqvae.z_channels, width)
    for i in range(len(vqvae.ch_mult) - 1):
        for j in range(config.depth):
            yield from _conv_block(f"up.{i}.blocks.{j}", width)
        yield from _conv(f"up.{i}.upsample.conv", width, width)
    yield from _conv_block("last", width)
    yield from _conv("conv_out", width, 3)


def _conv_block(block: str, width: int) -> _Named:
    for i in (1, 2, 3):
        yield from _conv(f"{block}.conv{i}", width, width)


# ---- layers


def _linear(layer: str, inputs: int, outputs: int) -> _Named:
    yield f"{layer}.weight", (outputs, inputs)
    yield f"{layer}.bias", (outputs,)


def _norm(layer: str, channels: int) -> _Named:
    yield f"{layer}.weight", (channels,)
    yield f"{layer}.bias", (channels,)


def _conv(layer: str, inputs: int, outputs: int, side: int = 3) -> _Named:
    yield f"{layer}.weight", (outputs, inputs, side, side)
    yield f"{layer}.bias", (outputs,)
