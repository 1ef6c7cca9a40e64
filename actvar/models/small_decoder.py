"""A small decoder beside the VQVAE's: f_hat to a picture by a few plain convolutions, in the manner of TAESD.

No norm and no attention, so it costs a tenth of the VQVAE's decoder or less, and runs fast in every engine. It is
learned from what that decoder makes (`actvar.distill.decoder`).

Letters in shapes: B pictures, E code width, C channels, H side of a map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from actvar.config import SmallDecoderConfig, VQVAEConfig
from actvar.models.vqvae import Upsample


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


class ConvBlock(nn.Module):
    """Three convolutions beside a shortcut, each followed by ReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (_conv3(width, width) for _ in range(3))

    def forward(self, x_BCHH: Tensor) -> Tensor:
        """BCHH to the same."""
        h_BCHH = F.relu(self.conv2(F.relu(self.conv1(x_BCHH))))
        return F.relu(self.conv3(h_BCHH) + x_BCHH)


class Doubling(nn.Module):
    """The blocks of one side, then twice the side."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(depth))
        self.upsample = Upsample(width)

    def forward(self, x_BCHH: Tensor) -> Tensor:
        """BCHH -> [B, C, 2H, 2H]."""
        for block in self.blocks:
            x_BCHH = block(x_BCHH)
        return self.upsample(x_BCHH)


class SmallDecoder(nn.Module):
    """`depth` blocks at every side below the picture's, and one at the picture's own.

    Args:
        config: width and depth.
        vqvae: whose f_hat it reads, and whose picture it makes.
    """

    def __init__(self, config: SmallDecoderConfig, vqvae: VQVAEConfig):
        super().__init__()
        self.conv_in = _conv3(vqvae.z_channels, config.width)
        doublings = len(vqvae.ch_mult) - 1
        self.up = nn.ModuleList(Doubling(config.width, config.depth) for _ in range(doublings))
        self.last = ConvBlock(config.width)
        self.conv_out = _conv3(config.width, 3)

    def forward(self, f_hat_BEHH: Tensor) -> Tensor:
        """f_hat -> [B, 3, size, size], not clamped."""
        h_BCHH = F.relu(self.conv_in(f_hat_BEHH))
        for doubling in self.up:
            h_BCHH = doubling(h_BCHH)
        return self.conv_out(self.last(h_BCHH))
