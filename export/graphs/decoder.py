"""The VQVAE's decoder as ONNX nodes: the counterpart of `VQVAE.decode`.

Precision of an fp16 or bf16 graph: convolutions and attention in fp16 (see `weights_file.DECODER_TYPES`), norms and
softmax in fp32.

Letters in shapes: B pictures, C channels, H side of a map, E code width, W = H * H, G groups of n values.
"""

import math
from dataclasses import dataclass

import numpy as np

from actvar.config import VQVAEConfig
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.weights_file import SUBPIXEL_CONV

NORM_EPS = 1e-6

EDGES = ("post_quant_conv", "decoder.conv_out", "small_decoder.conv_in", "small_decoder.conv_out")
"""Names of the nodes that read f_hat and write the pixels, in either decoder."""


@dataclass(frozen=True)
class ConvolutionWriter:
    """Writes what all decoders are made of into a graph."""

    b: GraphBuilder

    def _conv(self, x: str, layer: str) -> str:
        """A convolution that keeps the side; its kernel's size is that of the weights."""
        b, name = self.b, layer.removeprefix("vqvae.")
        pads = [b.shape(f"{layer}.weight")[-1] // 2] * 4
        return b.op("Conv", x, b.weight(f"{layer}.weight"), b.weight(f"{layer}.bias"), pads=pads, name=name)

    def _upsample(self, x_BCHH: str, weights: str) -> str:
        """Doubles the side and convolves, in one convolution of the small map: see `weights_file.subpixel_weight`.

        Its window i covers rows i - 1 and i, and gives rows 2i - 1 and 2i of the result: with a pad of 1 on each side,
        one row more above and below than there are. Columns likewise.
        """
        b, layer = self.b, f"{weights}.{SUBPIXEL_CONV}"
        with b.scope(weights.removeprefix("vqvae.")):
            pixels = b.op(
                "Conv", x_BCHH, b.weight(f"{layer}.weight"), b.weight(f"{layer}.bias"), pads=[1] * 4, name=SUBPIXEL_CONV
            )
            framed = b.op("DepthToSpace", pixels, blocksize=2, mode="DCR", name="interleave")
            return b.op("Slice", framed, b.ints(1, 1), b.ints(-1, -1), b.ints(2, 3), name="crop")

    def _image(self, pixels_B3HH: str) -> str:
        """`image` [B, 3, size, size] in [0, 1], of what a decoder's last convolution gives."""
        b = self.b
        clipped = b.op("Clip", b.to_fp32(pixels_B3HH), b.scalar(-1.0), b.scalar(1.0))
        return b.op("Mul", b.op("Add", clipped, b.scalar(1.0)), b.scalar(0.5), output="image")


@dataclass(frozen=True)
class DecoderWriter(ConvolutionWriter):
    """Writes the decoder of f_hat with side `side` into a graph."""

    config: VQVAEConfig
    side: int

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
                h = self._upsample(h, f"{weights}.up.{i}.upsample")
        return self._image(self._conv(self._silu(self._norm(h, f"{weights}.norm_out")), f"{weights}.conv_out"))

    def _norm(self, x: str, layer: str) -> str:
        """GroupNorm to fp32: with opset 20, groups are the channels of an InstanceNormalization."""
        b, groups = self.b, self.config.norm_groups
        (width,) = b.shape(f"{layer}.weight")
        with b.scope(layer.removeprefix("vqvae.")):
            ones_G = b.constant("group_ones", np.ones(groups, np.float32))
            zeros_G = b.constant("group_zeros", np.zeros(groups, np.float32))
            x_BCHH = b.to_fp32(x)
            x_BGn = b.reshape(x_BCHH, 0, groups, -1)
            normed_BGn = b.op("InstanceNormalization", x_BGn, ones_G, zeros_G, epsilon=NORM_EPS)
            normed_BCHH = b.op("Reshape", normed_BGn, b.op("Shape", x_BCHH))
            scaled_BCHH = b.op("Mul", normed_BCHH, b.weight(f"{layer}.weight", (width, 1, 1)), name="scale")
            return b.op("Add", scaled_BCHH, b.weight(f"{layer}.bias", (width, 1, 1)), name="shift")

    def _silu(self, x: str) -> str:
        return self.b.to_compute(self.b.op("Mul", x, self.b.op("Sigmoid", x), name="silu"))

    def _resnet_block(self, x: str, weights: str) -> str:
        h = self._conv(self._silu(self._norm(x, f"{weights}.norm1")), f"{weights}.conv1")
        h = self._conv(self._silu(self._norm(h, f"{weights}.norm2")), f"{weights}.conv2")
        shortcut = f"{weights}.nin_shortcut"
        return self.b.op("Add", self._conv(x, shortcut) if self.b.has(f"{shortcut}.weight") else x, h)

    def _attention(self, x_BCHH: str, weights: str) -> str:
        b, (width, *_) = self.b, self.b.shape(f"{weights}.proj_out.weight")
        normed = b.to_compute(self._norm(x_BCHH, f"{weights}.norm"))
        qkv_BCW = b.reshape(self._conv(normed, f"{weights}.qkv"), -1, 3 * width, self.side**2)
        q_BCW, k_BCW, v_BCW = b.split(qkv_BCW, 3, axis=1)
        scores_BWW = b.op("MatMul", b.op("Transpose", q_BCW, perm=[0, 2, 1]), k_BCW, name="scores")
        scaled_BWW = b.op("Mul", b.to_fp32(scores_BWW), b.scalar(1 / math.sqrt(width)))
        probability_BWW = b.to_compute(b.op("Softmax", scaled_BWW, axis=-1))
        out_BCW = b.op("MatMul", v_BCW, b.op("Transpose", probability_BWW, perm=[0, 2, 1]), name="attend")
        out_BCHH = b.reshape(out_BCW, -1, width, self.side, self.side)
        return b.op("Add", x_BCHH, self._conv(out_BCHH, f"{weights}.proj_out"))
