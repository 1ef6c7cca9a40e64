"""The VQVAE's decoder as ONNX nodes: the counterpart of `VQVAE.decode`, and what all decoders share.

Letters in shapes: B pictures, C channels, H side of a map, E code width.
"""

from dataclasses import dataclass
from typing import ClassVar

from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.convolutions import VQVAEWriter
from actvar.export.graphs.weights_file import SUBPIXEL_CONV

EDGES = ("post_quant_conv", "decoder.conv_out", "small_decoder.conv_in", "small_decoder.conv_out")
"""Names of the nodes that read f_hat and write the pixels, in either decoder."""


def upsample(b: GraphBuilder, x_BCHH: str, weights: str) -> str:
    """Doubles the side and convolves, in one convolution of the small map: see `weights_file.subpixel_weight`.

    Its window i covers rows i - 1 and i, and gives rows 2i - 1 and 2i of the result: with a pad of 1 on each side,
    one row more above and below than there are. Columns likewise.
    """
    layer = f"{weights}.{SUBPIXEL_CONV}"
    with b.scope(weights.removeprefix("vqvae.")):
        pixels = b.op(
            "Conv", x_BCHH, b.weight(f"{layer}.weight"), b.weight(f"{layer}.bias"), pads=[1] * 4, name=SUBPIXEL_CONV
        )
        framed = b.op("DepthToSpace", pixels, blocksize=2, mode="DCR", name="interleave")
        return b.op("Slice", framed, b.ints(1, 1), b.ints(-1, -1), b.ints(2, 3), name="crop")


def image(b: GraphBuilder, pixels_B3HH: str) -> str:
    """`image` [B, 3, size, size] in [0, 1], of what a decoder's last convolution gives."""
    clipped = b.op("Clip", b.to_fp32(pixels_B3HH), b.scalar(-1.0), b.scalar(1.0))
    return b.op("Mul", b.op("Add", clipped, b.scalar(1.0)), b.scalar(0.5), output="image")


@dataclass(frozen=True)
class DecoderWriter(VQVAEWriter):
    """Writes the decoder of f_hat into a graph."""

    norms_in_fp32: ClassVar[bool] = False

    def decode(self, f_hat_BEHH: str) -> str:
        """`image` [B, 3, size, size] in [0, 1]."""
        b, weights, lowest = self.b, "vqvae.decoder", len(self.config.ch_mult) - 1
        h = self._conv(b.to_compute(f_hat_BEHH), "vqvae.post_quant_conv")
        h = self._conv(h, f"{weights}.conv_in")
        h = self._resnet_block(h, f"{weights}.mid.block_1")
        h = self._attention(h, f"{weights}.mid.attn_1")
        h = self._resnet_block(h, f"{weights}.mid.block_2")
        for i in reversed(range(len(self.config.ch_mult))):
            for j in range(self.config.num_res_blocks + 1):
                h = self._resnet_block(h, f"{weights}.up.{i}.block.{j}")
                if i == lowest:
                    h = self._attention(h, f"{weights}.up.{i}.attn.{j}")
            if i:
                h = upsample(b, h, f"{weights}.up.{i}.upsample")
        return image(b, self._conv(self._silu(self._norm(h, f"{weights}.norm_out")), f"{weights}.conv_out"))
