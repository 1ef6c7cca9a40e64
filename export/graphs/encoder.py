"""The VQVAE's encoder and its multi-scale quantizer as ONNX nodes: the counterpart of `VQVAE.encode`.

The quantizer is in fp32, whatever the convolutions before it are in.

Letters in shapes: B pictures, C channels, E code width, H side of the encoder's map, p side of a token map, L = p * p,
M = B * L, V codes.
"""

from dataclasses import dataclass

from actvar.config import ModelConfig
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.convolutions import VQVAEWriter
from actvar.export.graphs.layers import best_first
from actvar.export.graphs.sampler import CODEBOOK, codes_of, enlarged, resized
from actvar.export.graphs.sizes import OneScale

_LEAST_LENGTH = 1e-12  # of a code that is taken for a direction, as `torch.nn.functional.normalize` has it


@dataclass(frozen=True)
class EncoderWriter(VQVAEWriter):
    """Writes the encoder into a graph."""

    def encode(self, picture_B3HH: str) -> str:
        """A picture in [0, 1] to the encoder's map [B, E, H, H], in fp32."""
        b, weights, lowest = self.b, "vqvae.encoder", len(self.config.ch_mult) - 1
        doubled = b.op("Mul", picture_B3HH, b.scalar(2.0))
        h = self._conv(b.to_compute(b.op("Sub", doubled, b.scalar(1.0))), f"{weights}.conv_in")
        for i in range(len(self.config.ch_mult)):
            for j in range(self.config.num_res_blocks):
                h = self._resnet_block(h, f"{weights}.down.{i}.block.{j}")
                if i == lowest:
                    h = self._attention(h, f"{weights}.down.{i}.attn.{j}")
            if i != lowest:
                h = self._downsample(h, f"{weights}.down.{i}.downsample.conv")
        h = self._resnet_block(h, f"{weights}.mid.block_1")
        h = self._attention(h, f"{weights}.mid.attn_1")
        h = self._resnet_block(h, f"{weights}.mid.block_2")
        h = self._conv(self._silu(self._norm(h, f"{weights}.norm_out")), f"{weights}.conv_out")
        return b.to_fp32(self._conv(h, "vqvae.quant_conv"))

    def _downsample(self, x_BCHH: str, layer: str) -> str:
        """Halves the side; padded at the right and bottom only."""
        b, name = self.b, layer.removeprefix("vqvae.")
        parameters, pads = (b.weight(f"{layer}.weight"), b.weight(f"{layer}.bias")), [0, 0, 1, 1]
        return b.op("Conv", x_BCHH, *parameters, strides=[2, 2], pads=pads, name=name)


def quantize(b: GraphBuilder, config: ModelConfig, map_BEHH: str) -> str:
    """`token_ids` [B, total]: at each scale the codes nearest to what the scales before it have left of the map."""
    codebook_VE, codes = b.weight(CODEBOOK), config.vqvae.z_channels
    if config.vqvae.znorm:
        lengths_V = b.op("ReduceL2", codebook_VE, b.ints(-1), keepdims=0, name="lengths")
        divisors_V = b.op("Max", lengths_V, b.scalar(_LEAST_LENGTH), name="divisors")
    else:
        squares_V = b.op("ReduceSum", b.op("Mul", codebook_VE, codebook_VE), b.ints(-1), keepdims=0, name="squares")
        half_V = b.op("Mul", squares_V, b.scalar(0.5), name="half_squares")
    rest_BEHH, ids = map_BEHH, []
    for si in range(len(config.schedule)):
        sizes, p = OneScale(b, config, si), config.schedule.patch_nums[si]
        with b.scope(f"scale_{si + 1:02d}"):
            map_BEL = b.reshape(resized(b, rest_BEHH, sizes.residual_down(), "area"), -1, codes, p * p)
            codes_ME = b.reshape(b.op("Transpose", map_BEL, perm=[0, 2, 1]), -1, codes)
            products_MV = b.op("Gemm", codes_ME, codebook_VE, transB=1, name="products")
            if config.vqvae.znorm:  # the cosine is xc / |x| |c|, and |x| is the same for all codes
                nearness_MV = b.op("Div", products_MV, divisors_V, name="nearness")
            else:  # |x - c|^2 = |x|^2 - 2 (xc - |c|^2 / 2), and so is |x|^2
                nearness_MV = b.op("Sub", products_MV, half_V, name="nearness")
            _, nearest_M1 = best_first(b, nearness_MV, b.ints(1), axis=-1, name="nearest")
            ids_BL = b.reshape(nearest_M1, -1, p * p)
            ids.append(ids_BL)
            if si + 1 < len(config.schedule):
                shape, up, phi = b.ints(-1, codes, p, p), sizes.up(), sizes.phi()
                added_BEHH = enlarged(b, codes_of(b, ids_BL), shape, up, phi)
                rest_BEHH = b.op("Sub", rest_BEHH, added_BEHH, name="rest")
    return b.op("Concat", *ids, axis=1, output="token_ids")
