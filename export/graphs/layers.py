"""Parts that the graphs are made of, as ONNX nodes: a linear layer, AdaLN's norm, the K best of some scores.

Letters in shapes: M tokens of all rows, C width, R rows, K chosen.
"""

import numpy as np

from actvar.config import NORM_EPS
from actvar.export.graphs import int8
from actvar.export.graphs.builder import GraphBuilder


def linear(b: GraphBuilder, x_MC: str, layer: str, name: str) -> str:
    """x W^T + b, with a layer's [out, in] weight, or in int8 where it is stored so."""
    if b.has(f"{layer}.{int8.VALUES}"):
        return int8.quantized_linear(b, x_MC, layer, name)
    return b.op("Gemm", x_MC, b.weight(f"{layer}.weight"), b.weight(f"{layer}.bias"), transB=1, name=name)


def modulated_norm(b: GraphBuilder, width: int, x: str, scale: str, shift: str) -> str:
    """LayerNorm(x) * (1 + scale) + shift in fp32 (AdaLN)."""
    ones_C = b.constant("layer_norm_ones", np.ones(width, np.float32))  # ONNX wants a factor; this norm has none
    normed = b.op("LayerNormalization", x, ones_C, axis=-1, epsilon=NORM_EPS, name="norm")
    factor = b.op("Add", scale, b.scalar(1.0), name="one_plus_scale")
    return b.op("Add", b.op("Mul", normed, factor, name="scaled"), shift, name="shifted")


def best_first(b: GraphBuilder, scores: str, count_1: str, axis: int, name: str) -> tuple[str, str]:
    """The `count_1` highest scores along an axis in falling order, and their places: what "the K best" means.

    Equal scores: the lower place first, as ONNX asks of TopK; -0 equals +0. NaN counts as largest, which ONNX does not
    say and ONNX Runtime does. `operators.sparse` has the same for the bodies of our operators.
    """
    values, places = b.ops("TopK", scores, count_1, count=2, axis=axis, name=name)
    return values, places


def best_places(b: GraphBuilder, scores: str, count_1: str, axis: int, names: tuple[str, str]) -> str:
    """Their places alone, ascending; `names` are of the two nodes."""
    best, ascending = names
    _, places = best_first(b, scores, count_1, axis, best)
    return b.ops("TopK", places, count_1, count=2, axis=axis, largest=0, name=ascending)[0]
