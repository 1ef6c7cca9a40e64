"""The VQVAE around the quantizer: convolutional encoder and decoder (Esser et al. 2021, as VAR uses them).

Parameter names are those of the official checkpoints.

Letters in shapes: B pictures, C channels, H side of a map, E code width, W = H*H.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar.config import VQVAEConfig
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.scales import ScaleSchedule


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


class ResnetBlock(nn.Module):
    """Two normalised convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs, groups), _conv3(inputs, outputs)
        self.norm2, self.conv2 = _norm(outputs, groups), _conv3(outputs, outputs)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, kernel_size=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, H] -> [B, outputs, H, H]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class SpatialAttention(nn.Module):
    """One-head attention over the places of a map."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, H] to the same."""
        q_BWC, k_BWC, v_BWC = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, dim=2)
        h_BWC = F.scaled_dot_product_attention(q_BWC, k_BWC, v_BWC)
        return x + self.proj_out(h_BWC.mT.unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves the side."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, H] -> [B, C, H/2, H/2]; padded at the right and bottom only."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the side."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, H] -> [B, C, 2H, 2H]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution; those of the lowest have attention after each."""

    def __init__(self, inputs: int, outputs: int, groups: int, blocks: int, attend: bool):
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(SpatialAttention(outputs, groups) for _ in range(blocks if attend else 0))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, H] -> [B, outputs, H, H]."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class Middle(nn.Module):
    """The blocks at the lowest resolution, between encoder or decoder levels and the code."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = SpatialAttention(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, H] to the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Picture to map: [B, 3, size, size] -> [B, E, H, H]."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        widths = [config.ch, *(config.ch * mult for mult in config.ch_mult)]
        lowest = len(config.ch_mult) - 1
        self.conv_in = _conv3(3, config.ch)
        levels = []
        for i in range(len(config.ch_mult)):
            level = Level(widths[i], widths[i + 1], config.norm_groups, config.num_res_blocks, attend=i == lowest)
            if i != lowest:
                level.downsample = Downsample(widths[i + 1])
            levels.append(level)
        self.down = cast(Sequence[Level], nn.ModuleList(levels))
        self.mid = Middle(widths[-1], config.norm_groups)
        self.norm_out, self.conv_out = _norm(widths[-1], config.norm_groups), _conv3(widths[-1], config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, size, size] in [-1, 1] -> [B, E, H, H]."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            if level.downsample is not None:
                h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Map to picture: [B, E, H, H] -> [B, 3, size, size]."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        widths = [*(config.ch * mult for mult in config.ch_mult), config.ch * config.ch_mult[-1]]
        lowest = len(config.ch_mult) - 1
        self.conv_in = _conv3(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1], config.norm_groups)
        levels = []  # index 0 is the largest resolution, and runs last
        for i in range(len(config.ch_mult)):
            level = Level(widths[i + 1], widths[i], config.norm_groups, config.num_res_blocks + 1, attend=i == lowest)
            if i != 0:
                level.upsample = Upsample(widths[i])
            levels.append(level)
        self.up = cast(Sequence[Level], nn.ModuleList(levels))
        self.norm_out, self.conv_out = _norm(widths[0], config.norm_groups), _conv3(widths[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        """[B, E, H, H] -> [B, 3, size, size], not clamped."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            if level.upsample is not None:
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class VQVAE(nn.Module):
    """Pictures to tokens and back (VAR, Sec. 3.2).

    Args:
        config: widths and codebook.
        schedule: the token maps.
    """

    def __init__(self, config: VQVAEConfig, schedule: ScaleSchedule):
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        codes, kernel = config.z_channels, config.code_kernel
        self.quantize = MultiScaleQuantizer(config.vocab_size, codes, schedule, config.phi_count, config.znorm)
        self.quant_conv = nn.Conv2d(codes, codes, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(codes, codes, kernel, padding=kernel // 2)

    @torch.no_grad()
    def encode(self, pictures_B3HW: Tensor, taken_BT: Tensor | None = None) -> Tensor:
        """Pictures in [-1, 1] to the token ids of all scales, [B, total] int64; see `MultiScaleQuantizer.encode`."""
        return self.quantize.encode(self.quant_conv(self.encoder(pictures_B3HW)), taken_BT)

    def decode(self, f_hat_BEHH: Tensor) -> Tensor:
        """f_hat to pictures in [-1, 1]."""
        return self.decoder(self.post_quant_conv(f_hat_BEHH)).clamp(-1, 1)

    def forward(self, pictures_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For training: the reconstruction (not clamped), the quantizer's loss, the token ids."""
        f_hat, loss, ids = self.quantize(self.quant_conv(self.encoder(pictures_B3HW)))
        return self.decoder(self.post_quant_conv(f_hat)), loss, ids
