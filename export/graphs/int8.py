"""Linear layers in int8, for ONNX Runtime on a CPU: each token's row and each column of a weight by a scale of its own.

    x = s_M q, |q| <= 127          the token's largest value becomes 127
    W = w V, |V| <= 64             the column's largest weight becomes 64
    x W + b = s_M (w (q V)) + b    q V in whole numbers, without any rounding

A row's scale depends on that row alone, so no token feels which others are computed with it. V has 7 bits and a sign,
not 8: without VNNI a processor adds two products in 16 bits, and 2 * 255 * 64 is the most that fits. With that the
whole numbers are the same on every processor. Activations are unsigned, 128 in place of 0: of int8 by int8, ONNX
Runtime is slower than fp32.

Two cores with AVX2, 512 rows, fp32's time by this one's: 1.8 for C to 4C with GELU at C = 1024, 1.5 for 4C to C, 1.7
for C to C; 3 for 2 rows, where reading the weights is the work.

Letters in shapes: M tokens, I values into a layer, O out of it.
"""

import numpy as np

from actvar.export.graphs.builder import GraphBuilder

LARGEST_WEIGHT = 64
_LARGEST_ACTIVATION, _ZERO = 127, 128
_LEAST = 1e-30  # what a row of zeros is divided by
_DOMAIN = "com.microsoft"  # of the product that scales its columns while it writes them

VALUES, SCALES = "weight_int8", "weight_scale"
"""What a layer's weight is stored as: whole numbers [I, O], their scales [O]."""


def column_scales(weight_IO: np.ndarray) -> np.ndarray:
    """[O] fp32: what whole numbers are multiplied with; 1 where all weights are 0."""
    largest_O = np.abs(weight_IO).max(0)
    return np.where(largest_O > 0, largest_O / np.float32(LARGEST_WEIGHT), np.float32(1))


def whole_numbers(weight_IO: np.ndarray) -> np.ndarray:
    """[I, O] in int8; halves to even."""
    return np.rint(weight_IO / column_scales(weight_IO)).astype(np.int8)


def quantized_linear(b: GraphBuilder, x_MI: str, layer: str, name: str, added: str = "") -> str:
    """x W + b of a layer that is stored in int8; in fp32, every token by its own scale.

    `added` takes the place of its bias.
    """
    weight_IO, scale_O, last = b.weight(f"{layer}.{VALUES}"), b.weight(f"{layer}.{SCALES}"), b.ints(-1)
    highest_M1 = b.op("ReduceMax", x_MI, last, keepdims=1, name="highest")
    lowest_M1 = b.op("Neg", b.op("ReduceMin", x_MI, last, keepdims=1, name="lowest"))
    largest_M1 = b.op("Max", highest_M1, lowest_M1, b.scalar(_LEAST), name="largest")
    scale_M1 = b.op("Mul", largest_M1, b.scalar(1 / _LARGEST_ACTIVATION), name="row_scale")
    scale_M = b.reshape(scale_M1, -1)
    zero_M = b.op("Expand", b.constant("uint8_zero_1", np.array([_ZERO], np.uint8)), b.op("Shape", scale_M))
    rows_MI = b.op("QuantizeLinear", x_MI, scale_M, zero_M, axis=0, name="rows")
    zero = b.constant("uint8_zero", np.array(_ZERO, np.uint8))
    inputs = rows_MI, weight_IO, b.scalar(1.0), scale_O, zero
    product_MO = b.op("MatMulIntegerToFloat", *inputs, domain=_DOMAIN, name=f"{name}_int8")
    scaled_MO = b.op("Mul", product_MO, scale_M1, name=f"{name}_scaled")
    return b.op("Add", scaled_MO, added or b.weight(f"{layer}.bias"), name=name)
