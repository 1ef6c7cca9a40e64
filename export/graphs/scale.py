"""One step of a picture as ONNX nodes: from what a scale is given to its tokens, and to what the next one is given.

Written once, for the graph of one scale and for that of all: `sizes.py` knows the difference.

Letters in shapes: G groups of rows, B pictures, R = G * B rows, D depth, L tokens, C width, V codes, E code width, H
side of f_hat, p side of a token map, K kept tokens, N experts, A active ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actvar.config import FIXED, ModelConfig
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.layers import best_places, linear, modulated_norm
from actvar.export.graphs.sampler import (
    add_codes,
    codes_of,
    guided,
    mix,
    mixed_or_given,
    next_tokens_in,
    or_given,
    sample,
)
from actvar.export.graphs.sizes import Flag, Size, Sizes
from actvar.export.graphs.transformer import BlockWriter, Cache, WrittenBlock

LOGITS, HIDDEN, KEPT, EXPERTS = "logits", "hidden", "kept", "experts"
"""What a scale gives besides the contract's outputs in a graph that is built for debugging: the guided logits; every
block's output; of every block, where it leaves something out, the places of the kept tokens and the chosen experts of
each, both ascending."""


@dataclass(frozen=True)
class ScaleWriter:
    """Writes a scale into a graph: its input, its blocks, what it draws, what it hands on.

    Attributes:
        masks: see `FFNWriter`.
        debug: give `LOGITS`, `HIDDEN`, `KEPT` and `EXPERTS`, too.
    """

    b: GraphBuilder
    config: ModelConfig
    sizes: Sizes
    masks: bool = False
    debug: bool = False

    def embedded(self) -> str:
        """The blocks' input RLC, where all rows of a picture read the same tokens; or what the first scale reads."""
        b, sizes, width, is_first = self.b, self.sizes, self.config.width, self.sizes.is_first
        if is_first is True:
            return b.reshape("start", -1, 1, width)
        with b.scope("embed"):
            tokens_ME = b.reshape("tokens_in", -1, self.config.vqvae.z_channels)
            words_MC = linear(b, tokens_ME, "var.word_embed", "word")
            words_BLC = b.op("Reshape", words_MC, sizes.shape("words", -1, sizes.tokens, width), name="reshape")
            x_BLC = b.op("Add", words_BLC, sizes.positions(), name="position")
            x_RLC = self._for_each_group(x_BLC)
            if is_first is False:
                return x_RLC
            return b.op("Where", is_first, b.reshape("start", -1, 1, width), x_RLC, name="input")

    def blocks(self, x_RLC: str, caches: Sequence[Cache]) -> list[WrittenBlock]:
        """All blocks, one after the other, and the debug outputs of them.

        Fixed tokens are gathered once, before the first block, and scattered once, after the last one: what stands
        between two blocks are the kept tokens alone.
        """
        b, writer = self.b, BlockWriter(self.b, self.config, self.sizes, self.masks)
        activation, depth, width = self.config.activation, self.config.depth, self.config.width
        is_fixed = activation is not None and activation.token_choice == FIXED and self.sizes.selects is not False
        modulation_DR6C = b.reshape(self._own_groups("modulation", axis=1), depth, -1, 6, width)
        kept_RKC, indices_RK = writer.select(0, x_RLC) if is_fixed else ("", "")
        written: list[WrittenBlock] = []
        for i, cache in enumerate(caches):
            modulation_R6C = b.op("Gather", modulation_DR6C, b.int_scalar(i), axis=0, name=f"blocks.{i}/modulation")
            if is_fixed:
                block = writer.update(i, kept_RKC, modulation_R6C, cache)
                kept_RKC = block.x_RLC
                if self.debug or i + 1 == len(caches):
                    whole_RLC = writer.put_back(i, x_RLC, indices_RK, kept_RKC)
                    block = replace(block, x_RLC=whole_RLC, kept_RK=indices_RK)
            else:
                block = writer.block(i, x_RLC, modulation_R6C, cache)
                x_RLC = block.x_RLC
            written.append(block)
        if self.debug:
            self._look_inside(written)
        return written

    def draw(self, x_RLC: str) -> str:
        """From the last block's output to `token_ids` and to `next_f_hat`, whose name is returned."""
        b, sizes, codes = self.b, self.sizes, self.config.vqvae.vocab_size
        with b.scope("head"):
            width = self.config.width
            modulation_R2C = b.reshape(self._own_groups("head_modulation", axis=0), -1, 2, width)
            scale_R1C, shift_R1C = b.split(modulation_R2C, 2, axis=1, name="modulation")
            normed_RLC = modulated_norm(b, width, x_RLC, scale_R1C, shift_R1C)
            (drawn_from_BLC,) = b.choose(
                sizes.guided,
                lambda: [guided(b, sizes.ramp(), normed_RLC, "cfg")],
                lambda: [normed_RLC],
                ["float32"],
                "drawn_from",
            )
            logits_MV = linear(b, b.reshape(drawn_from_BLC, -1, width), "var.head", "head")
            shape_BLV = sizes.shape("logits", -1, sizes.tokens, codes)
            logits_BLV = b.op("Reshape", logits_MV, shape_BLV, output=LOGITS if self.debug else "")
        if self.config.smooth:
            limits = "top_k", "top_p"
            drawn_BL, mixed_BLE = mix(b, logits_BLV, codes, "noise", *limits, sizes.smoothing())
        else:
            drawn_BL, mixed_BLE = sample(b, logits_BLV, codes, "uniform", "top_k", "top_p"), ""
        token_ids_BL = or_given(b, drawn_BL, "given")
        phi, up = sizes.phi(), sizes.up()
        shape_BEpp = sizes.shape("map", -1, self.config.vqvae.z_channels, sizes.side, sizes.side)
        codes_BLE = codes_of(b, token_ids_BL)
        if mixed_BLE:
            codes_BLE = mixed_or_given(b, mixed_BLE, "given", codes_BLE)
        return add_codes(b, codes_BLE, "f_hat", shape_BEpp, up, phi)

    def hand_on(self, f_hat_BEHH: str) -> None:
        """`next_tokens_in`."""
        down = self.sizes.down()
        shape_BEL = self.sizes.shape("next", -1, self.config.vqvae.z_channels, self.sizes.next_tokens)
        next_tokens_in(self.b, f_hat_BEHH, down, shape_BEL)

    def _own_groups(self, value: str, axis: int) -> str:
        """Of a tensor with the groups of all scales along an axis, those of this scale."""
        b, groups = self.b, self.sizes.groups
        if groups == self.config.row_groups(0):
            return value
        return b.op("Slice", value, b.ints(0), self.sizes.shape("own", groups), b.ints(axis), name="own_groups")

    def _for_each_group(self, x_BLC: str) -> str:
        """RLC.

        Rows are [G, B] put together, as those of the cache are. B + B rows are as many, but TensorRT does not see that:
        it then makes more kernels for each product, and plans are a quarter larger.
        """
        b, groups, sizes, width = self.b, self.sizes.groups, self.sizes, self.config.width
        if groups == 1:
            return x_BLC
        if groups == 2:
            x_1BLC = b.op("Unsqueeze", x_BLC, b.ints(0), name="one_group")
            x_GBLC = b.op("Concat", x_1BLC, x_1BLC, axis=0, name="for_each_group")
        else:
            x_GBLC = b.op("Expand", x_BLC, sizes.shape("for_each", groups, 1, 1, 1), name="for_each_group")
        return b.op("Reshape", x_GBLC, sizes.shape("embedded", -1, sizes.tokens, width), name="rows")

    def _look_inside(self, blocks: Sequence[WrittenBlock]) -> None:
        """The debug outputs of the blocks, of each one part, stacked.

        The choice of experts itself is inside an operator: here it is made again, by the same rule.
        """
        b, sizes, depth = self.b, self.sizes, self.config.depth
        parts: dict[str, list[str]] = {HIDDEN: [], KEPT: [], EXPERTS: []}
        for block in blocks:
            parts[HIDDEN].append(block.x_RLC)
            if block.kept_RK:
                parts[KEPT].append(block.kept_RK)
            if block.router_scores_RKN:
                active_1, names = self.sizes.shape("active", self.sizes.active), ("best_experts", "experts_in_order")
                parts[EXPERTS].append(best_places(b, block.router_scores_RKN, active_1, axis=-1, names=names))
        there: dict[str, tuple[Flag, tuple[Size, ...], str]] = {
            HIDDEN: (True, (sizes.tokens, self.config.width), "float32"),
            KEPT: (sizes.selects, (sizes.kept,), "int64"),
            EXPERTS: (sizes.routes, (sizes.kept, sizes.active), "int64"),
        }
        for name, values in parts.items():
            if values:
                is_there, ends, dtype = there[name]
                apart = [b.op("Unsqueeze", value, b.ints(0), name=f"{name}_of_block") for value in values]
                stacked = b.op("Concat", *apart, axis=0, name=f"{name}_of_blocks")
                in_groups = sizes.shape(f"{name}_in_groups", depth, sizes.groups, -1, *ends)
                nothing = np.zeros((depth, 0, 0, *[0] * len(ends)), dtype)
                self._shown(name, is_there, (stacked, in_groups), nothing)

    def _shown(self, name: str, is_there: Flag, reshaped: tuple[str, str], nothing: np.ndarray) -> None:
        """An output: a value in the shape that it takes, where it is there."""
        b = self.b
        (shown,) = b.choose(
            is_there,
            lambda: [b.op("Reshape", *reshaped, name="in_groups")],
            lambda: [b.constant(f"no_{name}", nothing)],
            [nothing.dtype.name],
            f"{name}_there",
        )
        b.op("Identity", shown, output=name)
