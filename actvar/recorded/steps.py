"""The steps of a batch of pictures on fixed places: condition, each scale, decoder.

Each reads and writes the tensors of `Places` and nothing else, gives nothing back, and does the same whatever they
hold: so a CUDA graph can record it once and replay it. The arithmetic is that of `actvar.generation`, but that guidance
is applied before the head, which is linear; precision is a bundle's: residual stream, norms, lengths of queries and
keys, scorers, head and sampling in fp32. In half precision the head is multiplied in TF32, which changes a tenth of the
tokens that the blocks' half precision does (`benchmarks/fp32_products.py`).

Letters in shapes: B pictures, G groups of rows, R = G * B rows, L tokens of a scale, K kept, P cached, T tokens that
the cache has room for, S tokens of all scales, C width, E code width, H side of f_hat or height of a picture, D depth,
h heads, d = 64, V codes.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar.bundle.contract import DRAWN
from actvar.config import DYNAMIC, FIXED, HEAD_WIDTH, STATIC, ModelConfig
from actvar.drawers import pixels
from actvar.models.block import modulated_norm
from actvar.parameters import MODULATIONS
from actvar.recorded.operators import SparseOperators, ffn
from actvar.recorded.recorders import products_in_tf32
from actvar.recorded.weights import COMPUTED_IN, BlockWeights, Precision, Weights
from actvar.sampling import drawn


def cached_tokens(config: ModelConfig) -> int:
    """T: what all scales leave in a block's cache, that of the last too, which its own attention reads."""
    return sum(config.kept_tokens(si) for si in range(len(config.schedule)))


@dataclass(frozen=True, eq=False)
class Places:
    """What the steps of a batch read and write, made once.

    Those of all scales stand side by side along S, their tokens together. `classes_R`, `randoms`, `given_BS` and the
    three settings are the host's to fill; tokens, pixels and `is_finite` are for it to read. The others pass from step
    to step. `randoms` are uniforms BS, or noise BSV where codes are mixed.
    """

    classes_R: Tensor
    randoms: Tensor
    given_BS: Tensor
    cfg: Tensor
    top_k: Tensor
    top_p: Tensor
    modulation_DR6C: Tensor
    head_modulation_R2C: Tensor
    start_R1C: Tensor
    kv_D2RhTd: Tensor
    f_hat_BEHH: Tensor
    token_ids_BS: Tensor
    pixels_BHW3: Tensor
    is_finite: Tensor

    @classmethod
    def of(cls, config: ModelConfig, pictures: int, kv: Tensor) -> "Places":
        """Those of a batch.

        Args:
            config: of the model.
            pictures: B.
            kv: memory for the cache, as many values or more, in the type and on the device that it is kept in.
        """
        rows, depth, width, device = config.row_groups(0) * pictures, config.depth, config.width, kv.device
        shape = depth, 2, rows, config.heads, cached_tokens(config), HEAD_WIDTH
        schedule, size = config.schedule, config.picture_size
        codes = (config.vqvae.vocab_size,) if config.smooth else ()

        def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            classes_R=fresh(rows, dtype=torch.int64),
            randoms=fresh(pictures, schedule.total, *codes),
            given_BS=fresh(pictures, schedule.total, dtype=torch.int64) + DRAWN,
            cfg=fresh(),
            top_k=fresh(dtype=torch.int64) + 1,
            top_p=fresh() + 1,
            modulation_DR6C=fresh(depth, rows, MODULATIONS, width),
            head_modulation_R2C=fresh(rows, 2, width),
            start_R1C=fresh(rows, 1, width),
            kv_D2RhTd=kv[: torch.Size(shape).numel()].view(shape),
            f_hat_BEHH=fresh(pictures, config.vqvae.z_channels, schedule.side, schedule.side),
            token_ids_BS=fresh(pictures, schedule.total, dtype=torch.int64),
            pixels_BHW3=fresh(pictures, size, size, 3, dtype=torch.uint8),
            is_finite=fresh(dtype=torch.bool),
        )


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of one batch size."""

    config: ModelConfig
    weights: Weights
    precision: Precision
    operators: SparseOperators
    places: Places

    def condition(self) -> None:
        """All that the classes decide; f_hat begins at 0."""
        weights, places = self.weights, self.places
        embedded_RC = F.embedding(places.classes_R, weights.class_emb)
        silu_RC = F.silu(embedded_RC)
        narrow_RC = silu_RC.to(self._compute)
        shared = weights.shared_modulation
        shared_R6C = shared(narrow_RC).float().unflatten(1, (MODULATIONS, -1)) if shared else None
        for i, block in enumerate(weights.blocks):
            if block.modulation is not None:
                places.modulation_DR6C[i].copy_(block.modulation(narrow_RC).unflatten(1, (MODULATIONS, -1)))
            else:
                assert block.modulation_6C is not None and shared_R6C is not None
                torch.add(shared_R6C, block.modulation_6C, out=places.modulation_DR6C[i])
        places.head_modulation_R2C.copy_(weights.head_modulation(silu_RC).unflatten(1, (2, -1)))
        torch.add(embedded_RC.unsqueeze(1), weights.positions_1LC[0], out=places.start_R1C)
        places.f_hat_BEHH.zero_()

    def scale(self, si: int) -> None:
        """Scale si: its tokens, its keys and values, and f_hat with what it adds."""
        weights, places, groups = self.weights, self.places, self.config.row_groups(si)
        rows = groups * len(places.f_hat_BEHH)
        if si:
            tokens_in_BLE = weights.quantizer.tokens_in(places.f_hat_BEHH, si)
            x_RLC = (weights.word_embed(tokens_in_BLE) + weights.positions_1LC[si]).repeat(groups, 1, 1)
        else:
            x_RLC = places.start_R1C[:rows]
        x_RLC = self._blocks(x_RLC, rows, si)
        scale_R1C, shift_R1C = places.head_modulation_R2C[:rows].unsqueeze(2).unbind(1)
        drawn_from_BLC = modulated_norm(x_RLC, scale_R1C, shift_R1C)
        if groups == 2:
            conditional, unconditional = drawn_from_BLC.chunk(2)
            strength = places.cfg * self.config.schedule.cfg_ramp(si)
            drawn_from_BLC = conditional + (conditional - unconditional) * strength
        with nullcontext() if self.precision == "fp32" else products_in_tf32():
            logits_BLV = weights.head(drawn_from_BLC)
        of_scale = slice(start := self.config.schedule.starts[si], start + self.config.schedule.tokens[si])
        random, given_BL = places.randoms[:, of_scale], places.given_BS[:, of_scale]
        limits = places.top_k, places.top_p
        tokens = drawn(self.config, weights.quantizer, si, logits_BLV, random, *limits, given_BL)
        places.token_ids_BS[:, of_scale].copy_(tokens.ids_BL)
        places.f_hat_BEHH.add_(weights.quantizer.enlarge(tokens.codes_BLE, si))

    def decode(self) -> None:
        """Pixels of f_hat as it is."""
        pixels_BHW3, is_finite = pixels(self.weights.decode(self.places.f_hat_BEHH))
        self.places.pixels_BHW3.copy_(pixels_BHW3)
        self.places.is_finite.copy_(is_finite)

    def all(self) -> tuple[Callable[[], None], ...]:
        """Condition, the scales, decoder."""
        scales = (lambda si=si: self.scale(si) for si in range(len(self.config.schedule)))
        return (self.condition, *scales, self.decode)

    @property
    def _compute(self) -> torch.dtype:
        return COMPUTED_IN[self.precision]

    def _blocks(self, x_RLC: Tensor, rows: int, si: int) -> Tensor:
        """All of them, one after another."""
        config, operators = self.config, self.operators
        selects = config.kept_tokens(si) < config.schedule.tokens[si]
        is_fixed = selects and config.activation is not None and config.activation.token_choice == FIXED
        if is_fixed:  # gathered once and scattered once: between the blocks are the kept tokens alone
            all_RLC, places_RK = x_RLC, self._selected(self.weights.blocks[0], x_RLC, si)
            x_RLC = operators.gather(all_RLC, places_RK)
        for i, block in enumerate(self.weights.blocks):
            gamma1, gamma2, scale1, scale2, shift1, shift2 = (
                self.places.modulation_DR6C[i, :rows].unsqueeze(2).unbind(1)
            )
            if selects and not is_fixed:
                of_block_RK = self._selected(block, x_RLC, si)
                kept_RKC, normed = operators.gather_norm(x_RLC, of_block_RK, scale1, shift1, self._compute)
            else:
                kept_RKC, normed = x_RLC, modulated_norm(x_RLC, scale1, shift1).to(self._compute)
            kept_RKC = torch.addcmul(kept_RKC, self._attended(block, normed, i, si).float(), gamma1)
            change_RKC = self._ffn(block, modulated_norm(kept_RKC, scale2, shift2), si)
            if selects and not is_fixed:
                x_RLC = operators.scatter_gated(x_RLC, of_block_RK, kept_RKC, gamma2, change_RKC)
            else:
                x_RLC = torch.addcmul(kept_RKC, change_RKC.float(), gamma2)
        return operators.scatter(all_RLC, places_RK, x_RLC) if is_fixed else x_RLC

    def _selected(self, block: BlockWeights, x_RLC: Tensor, si: int) -> Tensor:
        assert block.selector is not None
        return self.operators.select(block.selector(x_RLC).squeeze(-1), self.config.kept_tokens(si))

    def _attended(self, block: BlockWeights, x_RKC: Tensor, i: int, si: int) -> Tensor:
        """What attention gives, RKC; keys and values go to their place in the cache, from where they are read."""
        rows, kept = x_RKC.shape[:2]
        qkv = block.qkv(x_RKC).unflatten(2, (3, self.config.heads, HEAD_WIDTH))
        q_RhKd, k_RhKd, v_RhKd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q_RhKd = (F.normalize(q_RhKd.float(), dim=-1) * block.query_scale_h11).to(self._compute)
        start = self.config.cached_tokens[si]
        of_block_2RhPd = self.places.kv_D2RhTd[i, :, :rows, :, : start + kept]
        of_block_2RhPd[0, :, :, start:].copy_(F.normalize(k_RhKd.float(), dim=-1))
        of_block_2RhPd[1, :, :, start:].copy_(v_RhKd)
        out_RhKd = F.scaled_dot_product_attention(q_RhKd, of_block_2RhPd[0], of_block_2RhPd[1], scale=1.0)
        return block.proj(out_RhKd.transpose(1, 2).flatten(2))

    def _ffn(self, block: BlockWeights, x_RKC: Tensor, si: int) -> Tensor:
        """What the experts of a scale give, RKC, of a norm in fp32."""
        active, activation = self.config.active_experts(si), self.config.activation
        if activation is None or active == activation.experts:
            return ffn(x_RKC.to(self._compute), block.experts)
        if activation.expert_choice == STATIC:
            return ffn(x_RKC.to(self._compute), block.experts.first(active))
        assert activation.expert_choice == DYNAMIC and block.router is not None
        return self.operators.routed(x_RKC.to(self._compute), block.router(x_RKC), block.experts, active)
