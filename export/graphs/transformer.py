"""Transformer blocks as ONNX nodes: the counterpart of `Block.infer`.

Precision of an fp16 graph: matrices and attention in fp16; the residual stream, LayerNorm, the lengths of queries and
keys, softmax, selector and router in fp32.

Letters in shapes: G groups of B rows, R = G * B rows, L tokens of this scale, K kept, P cached, T = P + K, C width, h
heads, d = 64, N experts; M = R * K, the tokens of all rows.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from actvar.config import HEAD_WIDTH, ModelConfig
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.experts import FFNWriter
from actvar.export.graphs.layers import best_places, linear, modulated_norm
from actvar.export.graphs.sizes import Sizes

NORMALIZE_EPS = 1e-12
"""The least length that a query or key is divided by, as in torch's `normalize`."""

KeysValues: TypeAlias = tuple[str, str]
"""Of one block, each [R, h, tokens, d]; as inputs and outputs of a graph, [G, B, h, tokens, d]."""


@dataclass(frozen=True)
class Cache:
    """What a block's attention reads besides its own tokens, and what both together are called.

    Attributes:
        past: None at the first scale.
        named: outputs of the graph, whose past is its inputs; none where there are none.
    """

    past: KeysValues | None = None
    named: KeysValues | None = None


@dataclass(frozen=True)
class WrittenBlock:
    """The values of a block: its output RLC, its keys and values, and what it chose by.

    `kept_RK` are the tokens' places, `router_scores_RKN` what experts are chosen by; no name where nothing is left out.
    """

    x_RLC: str
    new_kv: KeysValues
    kept_RK: str = ""
    router_scores_RKN: str = ""


@dataclass(frozen=True)
class BlockWriter:
    """Writes blocks into a graph. `masks` is `FFNWriter`'s."""

    b: GraphBuilder
    config: ModelConfig
    sizes: Sizes
    masks: bool = False

    def block(self, i: int, x_RLC: str, modulation_R6C: str, cache: Cache) -> WrittenBlock:
        """Block i, with tokens of its own choice."""
        if self.sizes.selects is False:
            return self.update(i, x_RLC, modulation_R6C, cache)
        kept_RKC, indices_RK = self.select(i, x_RLC)
        updated = self.update(i, kept_RKC, modulation_R6C, cache)
        return replace(updated, x_RLC=self.put_back(i, x_RLC, indices_RK, updated.x_RLC), kept_RK=indices_RK)

    def select(self, i: int, x_RLC: str) -> tuple[str, str]:
        """What block i's selector keeps, RKC, and its places, RK; at a scale that keeps all, all and no places."""
        b = self.b
        with b.scope(f"blocks.{i}"):
            kept_RKC, indices_RK = b.choose(
                self.sizes.selects,
                lambda: self._selected(i, x_RLC),
                lambda: (x_RLC, b.constant("nowhere", np.zeros((0, 0), np.int64))),
                ["float32", "int64"],
                "input",
            )
            return kept_RKC, indices_RK

    def put_back(self, i: int, x_RLC: str, indices_RK: str, updated_RKC: str) -> str:
        """All tokens after block i, RLC: those that `select` kept are updated."""
        b = self.b
        with b.scope(f"blocks.{i}"):
            (y_RLC,) = b.choose(
                self.sizes.selects,
                lambda: [b.op("ActVarTokenScatter", x_RLC, indices_RK, updated_RKC, name="scatter")],
                lambda: [updated_RKC],
                ["float32"],
                "output",
            )
            return y_RLC

    def update(self, i: int, x_RKC: str, modulation_R6C: str, cache: Cache) -> WrittenBlock:
        """All of block i but its selector, on the kept tokens alone."""
        with self.b.scope(f"blocks.{i}"):
            return self._update(i, x_RKC, modulation_R6C, cache)

    def _selected(self, i: int, x_RLC: str) -> tuple[str, str]:
        """The kept tokens, RKC, and their places, RK."""
        b, sizes = self.b, self.sizes
        with b.scope("selector"):
            scores_M1 = linear(b, b.reshape(x_RLC, -1, self.config.width), f"var.blocks.{i}.selector", "scores")
            scores_RL = b.op("Reshape", scores_M1, sizes.shape("selector", -1, sizes.tokens), name="reshape")
            keep = sizes.kept
            if isinstance(keep, int):
                indices_RK = b.op("ActVarTokenSelect", scores_RL, keep=keep, name="select")
            else:
                indices_RK = best_places(b, scores_RL, keep, axis=1, names=("best", "select"))
            return b.op("ActVarTokenGather", x_RLC, indices_RK, name="gather"), indices_RK

    def _update(self, i: int, x_RKC: str, modulation_R6C: str, cache: Cache) -> WrittenBlock:
        b, sizes, width = self.b, self.sizes, self.config.width
        heads = sizes.shape("heads", -1, sizes.kept, self.config.heads, HEAD_WIDTH)
        shape_RKC = sizes.shape("kept", -1, sizes.kept, width)

        def gated_sum(x_RKC: str, change: str, gamma_R1C: str) -> str:
            change_RKC = b.op("Reshape", b.to_fp32(change), shape_RKC, name="change")
            return b.op("Add", x_RKC, b.op("Mul", change_RKC, gamma_R1C, name="gated"), name="residual")

        gamma1, gamma2, scale1, scale2, shift1, shift2 = b.split(modulation_R6C, 6, axis=1, name="modulation")
        with b.scope("attn"):
            normed_RKC = modulated_norm(b, width, x_RKC, scale1, shift1)
            attended_MC, new_kv = self._attention(f"var.blocks.{i}.attn", normed_RKC, heads, cache)
            x_RKC = gated_sum(x_RKC, attended_MC, gamma1)
        with b.scope("ffn"):
            normed_RKC = modulated_norm(b, width, x_RKC, scale2, shift2)
            ffn = FFNWriter(b, self.config, sizes, self.masks, f"var.blocks.{i}.ffn")
            changed_MC, scores_RKN = ffn.write(normed_RKC)
            return WrittenBlock(gated_sum(x_RKC, changed_MC, gamma2), new_kv, router_scores_RKN=scores_RKN)

    def _attention(self, weights: str, x_RKC: str, heads: str, cache: Cache) -> tuple[str, KeysValues]:
        """The output, MC, and the new keys and values; `heads` is the shape [-1, K, h, d]."""
        b, width = self.b, self.config.width
        qkv = linear(b, b.to_compute(b.reshape(x_RKC, -1, width)), f"{weights}.mat_qkv", "qkv")
        q_RhKd, k_RhKd, v_RhKd = (
            b.op("Transpose", b.op("Reshape", part_MC, heads, name="heads"), perm=[0, 2, 1, 3])
            for part_MC in b.split(qkv, 3, axis=1)
        )
        unit_q_RhKd = self._unit_length(b.to_fp32(q_RhKd))
        q_RhKd = b.to_compute(b.op("Mul", unit_q_RhKd, b.weight(f"{weights}.query_scale"), name="query_scale"))
        k_RhKd = b.to_compute(self._unit_length(b.to_fp32(k_RhKd)))

        k_RhTd, v_RhTd = k_RhKd, v_RhKd
        if cache.past and cache.named:
            k_RhTd = self._grown(cache.past[0], k_RhKd, cache.named[0])
            v_RhTd = self._grown(cache.past[1], v_RhKd, cache.named[1])
        elif cache.past:
            k_RhTd = b.op("Concat", cache.past[0], k_RhKd, axis=2, name="keys")
            v_RhTd = b.op("Concat", cache.past[1], v_RhKd, axis=2, name="values")
        scores_RhKT = b.op("MatMul", q_RhKd, b.op("Transpose", k_RhTd, perm=[0, 1, 3, 2]), name="scores")
        probability_RhKT = b.to_compute(b.op("Softmax", b.to_fp32(scores_RhKT), axis=-1))
        out_RhKd = b.op("MatMul", probability_RhKT, v_RhTd, name="attend")
        out_MC = b.reshape(b.op("Transpose", out_RhKd, perm=[0, 2, 1, 3]), -1, width)
        return linear(b, out_MC, f"{weights}.proj", "proj"), (k_RhKd, v_RhKd)

    def _grown(self, past_GBhPd: str, new_RhKd: str, named: str) -> str:
        """Old and new keys, or values, as rows RhTd; given by the graph under a name, in groups."""
        b, heads = self.b, self.config.heads
        shape = self.sizes.shape("groups_of_heads", self.sizes.groups, -1, heads, self.sizes.kept, HEAD_WIDTH)
        new_GBhKd = b.op("Reshape", new_RhKd, shape, name="in_groups")
        kv_GBhTd = b.op("Concat", past_GBhPd, new_GBhKd, axis=3, name="grown", output=named)
        shape = self.sizes.shape("rows_of_heads", -1, heads, self.sizes.cached, HEAD_WIDTH)
        return b.op("Reshape", kv_GBhTd, shape, name="rows")

    def _unit_length(self, x_RhKd: str) -> str:
        b = self.b
        length = b.op("ReduceL2", x_RhKd, b.ints(-1), keepdims=1, name="length")
        return b.op("Div", x_RhKd, b.op("Max", length, b.scalar(NORMALIZE_EPS)), name="unit_length")
