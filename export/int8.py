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

Letters in shapes: M tokens, I values into a layer, O out of it, F hidden values, N experts, e hidden values of each, A
experts that a token uses.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actvar.export.graph_builder import GraphBuilder

LARGEST_WEIGHT = 64
_LARGEST_ACTIVATION, _ZERO = 127, 128
_LEAST = 1e-30  # what a row of zeros is divided by
_DOMAIN = "com.microsoft"  # of the product that scales its columns while it writes them

VALUES, SCALES = "weight_int8", "weight_scale"
"""What a layer's weight is stored as: whole numbers [I, O], their scales [O]."""


def column_scales(weight_IO: Tensor) -> Tensor:
    """[O]: what whole numbers are multiplied with; 1 where all weights are 0."""
    largest_O = weight_IO.abs().amax(0)
    return torch.where(largest_O > 0, largest_O / LARGEST_WEIGHT, 1.0)


def whole_numbers(weight_IO: Tensor) -> Tensor:
    """[I, O] in int8; halves to even."""
    return (weight_IO / column_scales(weight_IO)).round().to(torch.int8)


@dataclass(frozen=True)
class QuantizedRows:
    """Tokens: uint8 values [M, I] around 128, and what each row is multiplied with, [M, 1]."""

    values_MI: str
    scale_M1: str


def quantized_rows(b: GraphBuilder, x_MI: str) -> QuantizedRows:
    """Every token by its own scale."""
    last = b.ints(-1)
    highest_M1 = b.op("ReduceMax", x_MI, last, keepdims=1, name="highest")
    lowest_M1 = b.op("Neg", b.op("ReduceMin", x_MI, last, keepdims=1, name="lowest"))
    largest_M1 = b.op("Max", highest_M1, lowest_M1, b.scalar(_LEAST), name="largest")
    scale_M1 = b.op("Mul", largest_M1, b.scalar(1 / _LARGEST_ACTIVATION), name="row_scale")
    scale_M = b.reshape(scale_M1, -1)
    zero_M = b.op("Expand", b.constant("uint8_zero_1", np.array([_ZERO], np.uint8)), b.op("Shape", scale_M))
    return QuantizedRows(b.op("QuantizeLinear", x_MI, scale_M, zero_M, axis=0, name="rows"), scale_M1)


def quantized_product(b: GraphBuilder, rows: QuantizedRows, weight_IO: str, scale_O: str, name: str) -> str:
    """x W, [M, O] in fp32."""
    zero = b.constant("uint8_zero", np.array(_ZERO, np.uint8))
    inputs = rows.values_MI, weight_IO, b.scalar(1.0), scale_O, zero
    product_MO = b.op("MatMulIntegerToFloat", *inputs, domain=_DOMAIN, name=f"{name}_int8")
    return b.op("Mul", product_MO, rows.scale_M1, name=f"{name}_scaled")


def quantized_linear(b: GraphBuilder, x_MI: str, layer: str, name: str) -> str:
    """x W + b of a layer that is stored in int8."""
    weight_IO, scale_O = b.weight(f"{layer}.{VALUES}"), b.weight(f"{layer}.{SCALES}")
    product_MO = quantized_product(b, quantized_rows(b, x_MI), weight_IO, scale_O, name)
    return b.op("Add", product_MO, b.weight(f"{layer}.bias"), name=name)


def chosen(b: GraphBuilder, scores_MN: str, active_1: str) -> str:
    """1 for a token's `active_1` best experts and 0 for the others, [M, N]; equal scores: the lower place first."""
    _, best_MA = b.ops("TopK", scores_MN, active_1, count=2, axis=1, name="best")
    none_MN = b.op("ConstantOfShape", b.op("Shape", scores_MN), name="none")
    one_MA = b.op("Expand", b.scalar(1.0), b.op("Shape", best_MA), name="one")
    return b.op("ScatterElements", none_MN, best_MA, one_MA, axis=1, name="chosen")


def routed_ffn(b: GraphBuilder, x_MC: str, gate_MN: str, ffn: str, experts: int) -> str:
    """The sum of each token's experts and fc2's bias, [M, C]: what `ActVarRoutedFFN` is in fp32.

    All hidden values are computed, and those of the experts that a token does not use are set to 0. With products of
    whole numbers as fast as they are, it takes longer to collect each expert's tokens, and to add up what comes of
    them, than to multiply for nothing.

    Args:
        b: the graph.
        x_MC: the tokens.
        gate_MN: see `chosen`.
        ffn: the layers' name.
        experts: N.
    """
    hidden_MF = b.op("Gelu", quantized_linear(b, x_MC, f"{ffn}.fc1", "fc1"), approximate="tanh")
    size = b.shape(f"{ffn}.fc1.{VALUES}")[1]
    hidden_MNe = b.reshape(hidden_MF, -1, experts, size // experts)
    gated_MNe = b.op("Mul", hidden_MNe, b.reshape(gate_MN, -1, experts, 1), name="gated")
    return quantized_linear(b, b.reshape(gated_MNe, -1, size), f"{ffn}.fc2", "fc2")
