"""The small decoder as ONNX nodes: the counterpart of `SmallDecoder`. Convolutions, ReLU and sums, and nothing else.

In an fp16 or bf16 graph all of it is in fp16, up to the picture.

Letters in shapes: B pictures, E code width, C channels, H side of a map.
"""

from dataclasses import dataclass

from actvar.config import SmallDecoderConfig
from actvar.export.graphs.convolutions import ConvolutionWriter
from actvar.export.graphs.decoder import image, upsample


@dataclass(frozen=True)
class SmallDecoderWriter(ConvolutionWriter):
    """Writes the small decoder, which doubles the side of f_hat so many times, into a graph."""

    config: SmallDecoderConfig
    doublings: int

    def decode(self, f_hat_BEHH: str) -> str:
        """`image` [B, 3, size, size] in [0, 1]."""
        weights = "small_decoder"
        h_BCHH = self._relu(self._conv(self.b.to_compute(f_hat_BEHH), f"{weights}.conv_in"))
        for i in range(self.doublings):
            for j in range(self.config.depth):
                h_BCHH = self._block(h_BCHH, f"{weights}.up.{i}.blocks.{j}")
            h_BCHH = upsample(self.b, h_BCHH, f"{weights}.up.{i}.upsample")
        return image(self.b, self._conv(self._block(h_BCHH, f"{weights}.last"), f"{weights}.conv_out"))

    def _block(self, x_BCHH: str, weights: str) -> str:
        h_BCHH = self._relu(self._conv(x_BCHH, f"{weights}.conv1"))
        h_BCHH = self._relu(self._conv(h_BCHH, f"{weights}.conv2"))
        return self._relu(self.b.op("Add", self._conv(h_BCHH, f"{weights}.conv3"), x_BCHH))

    def _relu(self, x: str) -> str:
        return self.b.op("Relu", x)
