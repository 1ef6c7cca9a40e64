"""What encoders and decoders are made of, as ONNX nodes: convolutions, norms, residual blocks, attention.

Precision of an fp16 or bf16 graph: convolutions, the decoder's norms and attention in fp16 (see
`weights_file.DECODER_TYPES`), the encoder's norms and softmax in fp32. A norm's sums are fp32 whatever it reads:
TensorRT computes a normalization so unless it is told not to, and ONNX Runtime has no other. A norm in fp32 between
convolutions in fp16 makes an engine change layout and type around each; in the encoder, which runs once for a picture
and chooses codes by small differences, it stays so.

Letters in shapes: B pictures, C channels, H side of a map, W = H * H, G groups of n values.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from actvar.config import VQVAEConfig
from actvar.export.graphs.builder import GraphBuilder

NORM_EPS = 1e-6


@dataclass(frozen=True)
class ConvolutionWriter:
    """Writes convolutions into a graph."""

    b: GraphBuilder

    def _conv(self, x: str, layer: str) -> str:
        """A convolution that keeps the side; its kernel's size is that of the weights."""
        b, name = self.b, layer.removeprefix("vqvae.")
        pads = [b.shape(f"{layer}.weight")[-1] // 2] * 4
        return b.op("Conv", x, b.weight(f"{layer}.weight"), b.weight(f"{layer}.bias"), pads=pads, name=name)


@dataclass(frozen=True)
class VQVAEWriter(ConvolutionWriter):
    """Writes the parts of a VQVAE's encoder and decoder into a graph.

    Attributes:
        config: of the VQVAE.
        side: of the smallest map, which is that of f_hat.
        norms_in_fp32: or in what convolutions are in.
    """

    config: VQVAEConfig
    side: int
    norms_in_fp32: ClassVar[bool] = True

    def _norm(self, x: str, layer: str) -> str:
        """GroupNorm: with opset 20, groups are the channels of an InstanceNormalization."""
        b, groups = self.b, self.config.norm_groups
        if self.norms_in_fp32:
            x = b.to_fp32(x)
        dtype = "float32" if self.norms_in_fp32 else b.compute
        (width,) = b.shape(f"{layer}.weight")
        with b.scope(layer.removeprefix("vqvae.")):
            ones_G = b.constant("group_ones", np.ones(groups, dtype))
            zeros_G = b.constant("group_zeros", np.zeros(groups, dtype))
            x_BGn = b.reshape(x, 0, groups, -1)
            normed_BGn = b.op("InstanceNormalization", x_BGn, ones_G, zeros_G, epsilon=NORM_EPS)
            normed_BCHH = b.op("Reshape", normed_BGn, b.op("Shape", x))
            scaled_BCHH = b.op("Mul", normed_BCHH, b.weight(f"{layer}.weight", (width, 1, 1)), name="scale")
            return b.op("Add", scaled_BCHH, b.weight(f"{layer}.bias", (width, 1, 1)), name="shift")

    def _silu(self, x: str) -> str:
        """Of a norm's result, to what convolutions are in."""
        product = self.b.op("Mul", x, self.b.op("Sigmoid", x), name="silu")
        return self.b.to_compute(product) if self.norms_in_fp32 else product

    def _resnet_block(self, x: str, weights: str) -> str:
        h = self._conv(self._silu(self._norm(x, f"{weights}.norm1")), f"{weights}.conv1")
        h = self._conv(self._silu(self._norm(h, f"{weights}.norm2")), f"{weights}.conv2")
        shortcut = f"{weights}.nin_shortcut"
        return self.b.op("Add", self._conv(x, shortcut) if self.b.has(f"{shortcut}.weight") else x, h)

    def _attention(self, x_BCHH: str, weights: str) -> str:
        b, (width, *_) = self.b, self.b.shape(f"{weights}.proj_out.weight")
        normed = self._norm(x_BCHH, f"{weights}.norm")
        if self.norms_in_fp32:
            normed = b.to_compute(normed)
        qkv_BCW = b.reshape(self._conv(normed, f"{weights}.qkv"), -1, 3 * width, self.side**2)
        q_BCW, k_BCW, v_BCW = b.split(qkv_BCW, 3, axis=1)
        scores_BWW = b.op("MatMul", b.op("Transpose", q_BCW, perm=[0, 2, 1]), k_BCW, name="scores")
        scaled_BWW = b.op("Mul", b.to_fp32(scores_BWW), b.scalar(1 / math.sqrt(width)))
        probability_BWW = b.to_compute(b.op("Softmax", scaled_BWW, axis=-1))
        out_BCW = b.op("MatMul", v_BCW, b.op("Transpose", probability_BWW, perm=[0, 2, 1]), name="attend")
        out_BCHH = b.reshape(out_BCW, -1, width, self.side, self.side)
        return b.op("Add", x_BCHH, self._conv(out_BCHH, f"{weights}.proj_out"))
