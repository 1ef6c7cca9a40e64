"""One transformer block of VAR, and what ActVAR leaves out of it.

Two ways through the same weights. `infer` runs one scale against the KV cache and really gathers the kept tokens: it
is what gets exported. `forward` runs a whole teacher-forced sequence, where leaving out is masking: it is what gets
trained. A test holds them equal.

Letters in shapes: R rows, L tokens of this scale, K kept, P cached, T tokens of the whole sequence, C width, N experts,
A active experts, h heads, d = 64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar.config import DYNAMIC, NORM_EPS, ModelConfig
from actvar.models.attention import SelfAttention
from actvar.models.experts import FFN
from actvar.models.selection import Selection, Selector, token_gather, token_scatter, token_select, top_mask
from actvar.parameters import MODULATIONS

FREE = Selection()
"""Nothing is forced on a block."""


@dataclass(frozen=True)
class BlockTrace:
    """What the distillers want to know of one block's pass over a sequence.

    None where nothing is left out, and `selector_scores_RT` also where the tokens are another block's choice.
    """

    input_RTC: Tensor
    output_RTC: Tensor
    ffn_input_RTC: Tensor
    selector_scores_RT: Tensor | None
    kept_RT: Tensor | None
    router_scores_RTN: Tensor | None
    active_RTN: Tensor | None


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, without learned affine parts of its own (AdaLN)."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class AdaLinear(nn.Sequential):
    """SiLU, then a linear layer: modulation vectors of a class, [R, C] -> [R, count, C]."""

    def __init__(self, width: int, count: int):
        super().__init__(nn.SiLU(), nn.Linear(width, count * width))
        self._count = count

    @property
    def linear(self) -> nn.Linear:
        """The layer that holds the parameters; official checkpoints call it `1`."""
        return cast(nn.Linear, self[1])

    def forward(self, condition_RC: Tensor) -> Tensor:
        """RC -> [R, count, C]."""
        return super().forward(condition_RC).unflatten(1, (self._count, -1))


class Block(nn.Module):
    """AdaLN, attention, AdaLN, FFN, each half with a gated residual; with a selector and a router in an ActVAR.

    Args:
        config: of the model.
        is_first: where the choice of tokens is fixed, the first block alone has a selector.
    """

    def __init__(self, config: ModelConfig, is_first: bool):
        super().__init__()
        width, activation = config.width, config.activation
        self.config = config
        self.attn = SelfAttention(config.heads)
        routed = activation is None or activation.expert_choice == DYNAMIC
        self.ffn = FFN(width, activation.experts if activation else None, routed)
        selects = activation is not None and (is_first or activation.token_choice == DYNAMIC)
        self.selector = Selector(width) if selects else None
        # Official VAR computes the modulation in each block, or once for all blocks, to which each adds its own part.
        self.ada_lin = None if config.shared_adaln else AdaLinear(width, MODULATIONS)
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, MODULATIONS, width)) if config.shared_adaln else None

    def modulation(self, condition_RC: Tensor, shared_R6C: Tensor | None) -> Tensor:
        """gamma1, gamma2, scale1, scale2, shift1, shift2 of the class, R6C."""
        if self.ada_lin is not None:
            return self.ada_lin(condition_RC)
        assert self.ada_gss is not None and shared_R6C is not None
        return self.ada_gss[:, 0] + shared_R6C

    @property
    def modulation_weight(self) -> Tensor:
        """What is learned of the modulation, by kind: a view of 6 parts."""
        if self.ada_lin is not None:
            return self.ada_lin.linear.weight.unflatten(0, (MODULATIONS, -1))
        assert self.ada_gss is not None
        return self.ada_gss[0, 0]

    def infer(
        self,
        x_RLC: Tensor,
        modulation_R6C: Tensor,
        past_kv_2RhPd: Tensor,
        si: int,
        before_RK: Tensor | None = None,
        forced: Selection = FREE,
    ) -> tuple[Tensor, Tensor, Selection]:
        """One scale.

        Args:
            x_RLC: the block's input.
            modulation_R6C: see `modulation`.
            past_kv_2RhPd: what the scales before left in this block.
            si: the scale, from 0.
            before_RK: what the block before selected, which a block without a selector keeps.
            forced: what is chosen in place of what scores best.

        Returns: the updated RLC; the keys and values of the kept tokens, [2, R, h, K, d]; and what scores best.
        """
        keep, best_RK = self.config.kept_tokens(si), before_RK
        if self.selector is not None and keep < x_RLC.shape[1]:
            best_RK = token_select(self.selector(x_RLC), keep)
        if best_RK is None:
            y_RLC, new_kv, best_RKA = self._update(x_RLC, modulation_R6C, past_kv_2RhPd, si, forced.experts_RKA)
            return y_RLC, new_kv, Selection(None, best_RKA)
        kept_RK = best_RK if forced.kept_RK is None else forced.kept_RK
        kept_RKC = token_gather(x_RLC, kept_RK)
        updated_RKC, new_kv, best_RKA = self._update(kept_RKC, modulation_R6C, past_kv_2RhPd, si, forced.experts_RKA)
        return token_scatter(x_RLC, kept_RK, updated_RKC), new_kv, Selection(best_RK, best_RKA)

    def _update(
        self, x_RKC: Tensor, modulation_R6C: Tensor, past_kv: Tensor, si: int, forced_RKA: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation_R6C.unsqueeze(2).unbind(1)
        attended, new_kv = self.attn(modulated_norm(x_RKC, scale1, shift1), past_kv)
        x_RKC = x_RKC + attended * gamma1
        ffn_input = modulated_norm(x_RKC, scale2, shift2)
        gate = best_RKA = None
        active, activation = self.config.active_experts(si), self.config.activation
        if self.ffn.router is not None and activation is not None and active < activation.experts:
            scores_RKN = self.ffn.router(ffn_input)
            best_RKA = token_select(scores_RKN.flatten(0, 1), active).unflatten(0, scores_RKN.shape[:2])
            chosen_RKA = best_RKA if forced_RKA is None else forced_RKA
            gate = torch.zeros_like(scores_RKN, dtype=torch.bool).scatter_(-1, chosen_RKA, True)
        return x_RKC + self.ffn(ffn_input, gate) * gamma2, new_kv, best_RKA

    def forward(
        self,
        x_RTC: Tensor,
        modulation_R6C: Tensor,
        visible_TT: Tensor,
        straight_through: bool = False,
        first_scores_RT: Tensor | None = None,
    ) -> tuple[Tensor, BlockTrace]:
        """A whole sequence, or its first scales.

        Args:
            x_RTC: the block's input.
            modulation_R6C: see `modulation`.
            visible_TT: bool, true where a token's scale may see another's.
            straight_through: let gradients reach selector and router as if the choices were K * softmax(scores).
            first_scores_RT: the selector's scores in the first block, for a block without a selector.

        Returns: the output, and what was chosen on the way.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation_R6C.unsqueeze(2).unbind(1)
        kept = router_scores = active = None
        mask = visible_TT
        selector_scores = self.selector(x_RTC) if self.selector is not None else None
        token_scores = first_scores_RT if selector_scores is None else selector_scores
        if token_scores is not None:
            kept, token_gate = self._choose(token_scores, self.config.kept_tokens, straight_through)
            mask = visible_TT & kept[:, None, None, :]  # inference has cached the kept tokens only
        attended, _ = self.attn(modulated_norm(x_RTC, scale1, shift1), mask_RhLT=mask)
        y_RTC = x_RTC + attended * gamma1
        ffn_input = modulated_norm(y_RTC, scale2, shift2)
        expert_gate = None
        if self.ffn.router is not None:
            router_scores = self.ffn.router(ffn_input)
            active, expert_gate = self._choose(router_scores, self.config.active_experts, straight_through)
        y_RTC = y_RTC + self.ffn(ffn_input, expert_gate) * gamma2
        if kept is not None:
            if straight_through:
                y_RTC = x_RTC + token_gate.unsqueeze(-1) * (y_RTC - x_RTC)
            else:
                y_RTC = torch.where(kept.unsqueeze(-1), y_RTC, x_RTC)
        return y_RTC, BlockTrace(x_RTC, y_RTC, ffn_input, selector_scores, kept, router_scores, active)

    def _choose(self, scores: Tensor, counts: Callable[[int], int], straight_through: bool) -> tuple[Tensor, Tensor]:
        """The best `counts(si)` along the last dimension, scale by scale: as a mask, and as a gate for gradients."""
        masks, gates = [], []
        for si, scores_of_scale in enumerate(self._by_scale(scores)):
            mask = top_mask(scores_of_scale, counts(si))
            masks.append(mask)
            gates.append(_gate(mask, scores_of_scale, counts(si), straight_through))
        return torch.cat(masks, dim=1), torch.cat(gates, dim=1)

    def _by_scale(self, sequence: Tensor) -> tuple[Tensor, ...]:
        """Views of a sequence (dimension 1), one for each scale that it reaches."""
        schedule, count = self.config.schedule, sequence.shape[1]
        spans = zip(schedule.starts, schedule.tokens, strict=True)
        return tuple(sequence[:, start : start + tokens] for start, tokens in spans if start < count)


def _gate(mask: Tensor, scores: Tensor, keep: int, straight_through: bool) -> Tensor:
    """The mask as numbers; its gradient, if wanted, is that of keep * softmax(scores), which sums to the same."""
    if not straight_through or keep == scores.shape[-1]:
        return mask.float()
    probability = keep * scores.softmax(-1)
    return mask + probability - probability.detach()
