"""Transformer blocks as ONNX nodes: the counterpart of `Block.infer`.

`BlockWriter` writes those of one scale. What all scales have in common is `UpdateWriter`'s, and knows no scale.

Precision of an fp16 graph: matrices and attention in fp16; the residual stream, LayerNorm, the lengths of queries and
keys, softmax, selector and router in fp32.

Letters in shapes: R rows, L tokens of this scale, K kept, P cached, T = P + K, C width, h heads, d = 64, N experts,
de = 4C / N; M = R * K, the tokens of all rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from actvar.config import HEAD_WIDTH, ModelConfig
from actvar.export.graphs import int8
from actvar.export.graphs.builder import GraphBuilder
from actvar.models.block import NORM_EPS

NORMALIZE_EPS = 1e-12
"""The least length that a query or key is divided by, as in torch's `normalize`."""


@dataclass(frozen=True)
class KeysValues:
    """Of one block, each [R, h, tokens, d]."""

    keys: str
    values: str


UNNAMED = KeysValues("", "")
"""No names of their own."""


@dataclass(frozen=True)
class WrittenBlock:
    """The values of a block: its output RLC, its keys and values, and what it chose by.

    `kept_RK` are the tokens' places, `router_scores_RKN` what experts are chosen by; empty where nothing is left out.
    """

    x_RLC: str
    new_kv: KeysValues
    kept_RK: str = ""
    router_scores_RKN: str = ""


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


def chosen_experts(b: GraphBuilder, scores_MN: str, active_1: str) -> str:
    """1 for a token's `active_1` best experts and 0 for the others, [M, N]; equal scores: the lower place first."""
    _, best_MA = b.ops("TopK", scores_MN, active_1, count=2, axis=1, name="best")
    none_MN = b.op("ConstantOfShape", b.op("Shape", scores_MN), name="none")
    one_MA = b.op("Expand", b.scalar(1.0), b.op("Shape", best_MA), name="one")
    return b.op("ScatterElements", none_MN, best_MA, one_MA, axis=1, name="chosen")


def dense_ffn(b: GraphBuilder, weights: str, x_MC: str, gate_MN: str = "") -> str:
    """All hidden neurons of an FFN, MC; with a gate, those of the experts that a token does not use are set to 0.

    Multiplied whole and masked so, a token's experts sum up to what `ActVarRoutedFFN` gives. Where products are fast
    that takes less time than to collect each expert's tokens and to add up what comes of them (docs/cpu.md).
    """
    fc1, fc2 = f"{weights}.fc1", f"{weights}.fc2"
    hidden_MF = b.op("Gelu", linear(b, x_MC, fc1, "fc1"), approximate="tanh")
    if gate_MN:
        hidden = b.shape(f"{fc1}.bias")[0]
        experts = b.shape(f"{weights}.router.bias")[0]
        hidden_MNe = b.reshape(hidden_MF, -1, experts, hidden // experts)
        hidden_MF = b.reshape(b.op("Mul", hidden_MNe, b.reshape(gate_MN, -1, experts, 1), name="gated"), -1, hidden)
    if b.has(f"{fc2}.{int8.VALUES}"):
        return int8.quantized_linear(b, hidden_MF, fc2, "fc2")
    return b.op("Gemm", hidden_MF, b.weight(f"{fc2}.weight_t"), b.weight(f"{fc2}.bias"), name="fc2")


@dataclass(frozen=True)
class KeptShapes:
    """Shapes of kept tokens, as values that `Reshape` reads.

    Attributes:
        heads: [-1, K, h, d].
        width: [-1, K, C].
    """

    heads: str
    width: str


FFN: TypeAlias = Callable[[str, str], tuple[str, str]]
"""Given where its weights are and fp32 RKC, writes the output MC and, where each token chooses experts, what it chose
by; empty otherwise."""


@dataclass(frozen=True)
class UpdateWriter:
    """Writes all of a block but its selector, on the kept tokens alone."""

    b: GraphBuilder
    config: ModelConfig
    shapes: KeptShapes
    ffn: FFN

    def update(
        self, i: int, x_RKC: str, modulation_R6C: str, past: KeysValues | None, kv: KeysValues = UNNAMED
    ) -> WrittenBlock:
        """Block i; `kv` names outputs of the graph that past and new keys and values together are to be."""
        b, width = self.b, self.config.width
        gamma1, gamma2, scale1, scale2, shift1, shift2 = b.split(modulation_R6C, 6, axis=1, name="modulation")
        with b.scope("attn"):
            normed_RKC = modulated_norm(b, width, x_RKC, scale1, shift1)
            attended_MC, new_kv = self._attention(f"var.blocks.{i}.attn", normed_RKC, past, kv)
            x_RKC = self._gated_sum(x_RKC, attended_MC, gamma1)
        with b.scope("ffn"):
            normed_RKC = modulated_norm(b, width, x_RKC, scale2, shift2)
            changed, scores_RKN = self.ffn(f"var.blocks.{i}.ffn", normed_RKC)
            return WrittenBlock(self._gated_sum(x_RKC, changed, gamma2), new_kv, router_scores_RKN=scores_RKN)

    def _attention(self, weights: str, x_RKC: str, past: KeysValues | None, kv: KeysValues) -> tuple[str, KeysValues]:
        """The output, MC, and the new keys and values."""
        b, width = self.b, self.config.width
        qkv = linear(b, b.to_compute(b.reshape(x_RKC, -1, width)), f"{weights}.mat_qkv", "qkv")
        q_RhKd, k_RhKd, v_RhKd = (
            b.op("Transpose", b.op("Reshape", part_MC, self.shapes.heads, name="heads"), perm=[0, 2, 1, 3])
            for part_MC in b.split(qkv, 3, axis=1)
        )
        unit_q_RhKd = self._unit_length(b.to_fp32(q_RhKd))
        q_RhKd = b.to_compute(b.op("Mul", unit_q_RhKd, b.weight(f"{weights}.query_scale"), name="query_scale"))
        k_RhKd = b.to_compute(self._unit_length(b.to_fp32(k_RhKd)))

        k_RhTd, v_RhTd = k_RhKd, v_RhKd
        if past:
            k_RhTd = b.op("Concat", past.keys, k_RhKd, axis=2, name="keys", output=kv.keys)
            v_RhTd = b.op("Concat", past.values, v_RhKd, axis=2, name="values", output=kv.values)
        scores_RhKT = b.op("MatMul", q_RhKd, b.op("Transpose", k_RhTd, perm=[0, 1, 3, 2]), name="scores")
        probability_RhKT = b.to_compute(b.op("Softmax", b.to_fp32(scores_RhKT), axis=-1))
        out_RhKd = b.op("MatMul", probability_RhKT, v_RhTd, name="attend")
        out_MC = b.reshape(b.op("Transpose", out_RhKd, perm=[0, 2, 1, 3]), -1, width)
        return linear(b, out_MC, f"{weights}.proj", "proj"), KeysValues(k_RhKd, v_RhKd)

    def _unit_length(self, x_RhKd: str) -> str:
        b = self.b
        length = b.op("ReduceL2", x_RhKd, b.ints(-1), keepdims=1, name="length")
        return b.op("Div", x_RhKd, b.op("Max", length, b.scalar(NORMALIZE_EPS)), name="unit_length")

    def _gated_sum(self, x_RKC: str, change: str, gamma_R1C: str) -> str:
        b = self.b
        change_RKC = b.op("Reshape", b.to_fp32(change), self.shapes.width, name="change")
        return b.op("Add", x_RKC, b.op("Mul", change_RKC, gamma_R1C, name="gated"), name="residual")


@dataclass(frozen=True)
class BlockWriter:
    """Writes the blocks of scale index si into a graph."""

    b: GraphBuilder
    config: ModelConfig
    si: int

    def block(self, i: int, x_RLC: str, modulation_R6C: str, past: KeysValues | None) -> WrittenBlock:
        """Block i."""
        b, tokens, keep = self.b, self.config.schedule.tokens[self.si], self._keep
        with b.scope(f"blocks.{i}"):
            if keep == tokens:
                return self._updates.update(i, x_RLC, modulation_R6C, past)
            with b.scope("selector"):
                scores_M1 = linear(b, b.reshape(x_RLC, -1, self.config.width), f"var.blocks.{i}.selector", "scores")
                indices_RK = b.op("ActVarTokenSelect", b.reshape(scores_M1, -1, tokens), keep=keep, name="select")
                kept_RKC = b.op("ActVarTokenGather", x_RLC, indices_RK, name="gather")
            updated = self._updates.update(i, kept_RKC, modulation_R6C, past)
            y_RLC = b.op("ActVarTokenScatter", x_RLC, indices_RK, updated.x_RLC, name="scatter")
            return replace(updated, x_RLC=y_RLC, kept_RK=indices_RK)

    @property
    def _keep(self) -> int:
        return self.config.kept_tokens(self.si)

    @property
    def _updates(self) -> UpdateWriter:
        heads, width = (self.config.heads, HEAD_WIDTH), (self.config.width,)
        shapes = KeptShapes(self.b.ints(-1, self._keep, *heads), self.b.ints(-1, self._keep, *width))
        return UpdateWriter(self.b, self.config, shapes, self._ffn)

    def _ffn(self, weights: str, x_RKC: str) -> tuple[str, str]:
        """See `FFN`."""
        b, width, fc2 = self.b, self.config.width, f"{weights}.fc2"
        active, activation = self.config.active_experts(self.si), self.config.activation
        x_MC = b.reshape(x_RKC, -1, width)
        if activation is None or active == activation.experts:
            return dense_ffn(b, weights, b.to_compute(x_MC)), ""
        experts, each = activation.experts, self.config.hidden // activation.experts
        scores_RKN = b.reshape(linear(b, x_MC, f"{weights}.router", "router"), -1, self._keep, experts)
        if b.has(f"{fc2}.{int8.VALUES}"):
            gate_MN = chosen_experts(b, b.reshape(scores_RKN, -1, experts), b.ints(active))
            return dense_ffn(b, weights, x_MC, gate_MN), scores_RKN
        w1_NeC = b.weight(f"{weights}.fc1.weight", (experts, each, width))
        b1_Ne = b.weight(f"{weights}.fc1.bias", (experts, each))
        w2_NeC = b.weight(f"{fc2}.weight_t", (experts, each, width))
        inputs = b.to_compute(x_RKC), scores_RKN, w1_NeC, b1_Ne, w2_NeC, b.weight(f"{fc2}.bias")
        return b.op("ActVarRoutedFFN", *inputs, experts=experts, active=active, name="routed"), scores_RKN
