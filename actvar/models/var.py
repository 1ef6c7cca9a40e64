"""The transformer: VAR, and ActVAR where the configuration names active scales.

Knows the sequence of scales and what each reads; sampling and pictures are `actvar.generation`'s.

Letters in shapes: B pictures or rows of a training batch, R rows, D depth, C width, E code width, V codes, L tokens of
one scale, P cached, K kept, T tokens of a teacher-forced sequence, h heads, d = 64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from actvar.config import ModelConfig
from actvar.models.block import FREE, AdaLinear, Block, BlockTrace, modulated_norm
from actvar.models.selection import Selection
from actvar.parameters import MODULATIONS, is_scorer


def fresh_scorers(var: "VAR", seed: int = 0) -> dict[str, Tensor]:
    """Routers and selectors as a training starts with them, by name: VAR's initial variance 1/(3C), no bias."""
    generator, fresh = torch.Generator().manual_seed(seed), {}
    for name, parameter in var.named_parameters():
        if is_scorer(name):
            values = torch.zeros(parameter.shape)
            std = math.sqrt(1 / var.config.width / 3)
            fresh[name] = values if parameter.dim() == 1 else values.normal_(std=std, generator=generator)
    return fresh


@dataclass(frozen=True)
class Condition:
    """All that depends on the class alone, computed once per picture."""

    modulation_DR6C: Tensor
    head_modulation_R2C: Tensor
    start_R1C: Tensor

    def of_rows(self, rows: int) -> "Condition":
        """That of the first rows alone; nothing is copied."""
        return Condition(self.modulation_DR6C[:, :rows], self.head_modulation_R2C[:rows], self.start_R1C[:rows])


@dataclass(frozen=True)
class ScaleTrace:
    """One scale, looked into: what `VAR.infer` gives, every block's output, and what scored best in each block."""

    logits_RLV: Tensor
    new_kv_D2RhKd: Tensor
    hidden_DRLC: Tensor
    best: tuple[Selection, ...]


class _HeadNorm(nn.Module):
    """The AdaLN before the head, under the official name."""

    def __init__(self, width: int):
        super().__init__()
        self.ada_lin = AdaLinear(width, 2)


class VAR(nn.Module):
    """Next-scale prediction (VAR, Sec. 3), dense or with ActVAR's active tokens and experts.

    Parameter names are those of the official checkpoints; `blocks.i.selector` and `blocks.i.ffn.router` are ActVAR's.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, schedule = config.width, config.schedule
        self.config = config
        self.word_embed = nn.Linear(config.vqvae.z_channels, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)  # the last class is "no class"
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, schedule.total, width))
        self.lvl_embed = nn.Embedding(len(schedule), width)
        self.shared_ada_lin = AdaLinear(width, MODULATIONS) if config.shared_adaln else None
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(config, i == 0) for i in range(config.depth)))
        self.head_nm = _HeadNorm(width)
        self.head = nn.Linear(width, config.vqvae.vocab_size)

    def positions(self, si: int) -> Tensor:
        """Position and level embeddings of scale si, 1LC."""
        start, tokens = self.config.schedule.starts[si], self.config.schedule.tokens[si]
        return self.lvl_embed.weight[si] + self.pos_1LC[:, start : start + tokens]

    def condition(self, class_ids_R: Tensor) -> Condition:
        """What the classes decide: R int64 -> modulations of all blocks and of the head, and the first token."""
        condition_RC = self.class_emb(class_ids_R)
        shared_R6C = self.shared_ada_lin(condition_RC) if self.shared_ada_lin is not None else None
        return Condition(
            torch.stack([block.modulation(condition_RC, shared_R6C) for block in self.blocks]),
            self.head_nm.ada_lin(condition_RC),
            condition_RC.unsqueeze(1) + self.pos_start + self.positions(0),
        )

    def logits(self, x_RLC: Tensor, head_modulation_R2C: Tensor) -> Tensor:
        """The head, in fp32: RLC -> RLV."""
        scale, shift = head_modulation_R2C.unsqueeze(2).unbind(1)
        with torch.autocast(x_RLC.device.type, enabled=False):
            return self.head(modulated_norm(x_RLC.float(), scale.float(), shift.float()))

    def infer(
        self, tokens_in_RLE: Tensor | None, condition: Condition, past_kv_D2RhPd: Tensor, si: int
    ) -> tuple[Tensor, Tensor]:
        """Scale si against the KV cache.

        Args:
            tokens_in_RLE: what the quantizer's `tokens_in` gives, for every row of every picture; None at scale 0.
            condition: of the same rows.
            past_kv_D2RhPd: what the scales before left.
            si: the scale, from 0.

        Returns: logits RLV, and the keys and values to append to the cache, [D, 2, R, h, K, d].
        """
        x_RLC = self._embedded(tokens_in_RLE, condition, si)
        new_kv, best = [], FREE
        for block, modulation_R6C, past_kv in zip(self.blocks, condition.modulation_DR6C, past_kv_D2RhPd, strict=True):
            x_RLC, block_kv, best = block.infer(x_RLC, modulation_R6C, past_kv, si, best.kept_RK)
            new_kv.append(block_kv)
        return self.logits(x_RLC, condition.head_modulation_R2C), torch.stack(new_kv)

    def trace(
        self,
        tokens_in_RLE: Tensor | None,
        condition: Condition,
        past_kv_D2RhPd: Tensor,
        si: int,
        forced: Sequence[Selection] = (),
    ) -> ScaleTrace:
        """`infer` with a look inside. `forced` is what each block is to choose, whatever scores best in it."""
        x_RLC = self._embedded(tokens_in_RLE, condition, si)
        hidden, new_kv, best = [], [], [FREE]
        for i, block in enumerate(self.blocks):
            to_choose = forced[i] if forced else FREE
            x_RLC, block_kv, of_block = block.infer(
                x_RLC, condition.modulation_DR6C[i], past_kv_D2RhPd[i], si, best[-1].kept_RK, to_choose
            )
            hidden.append(x_RLC)
            new_kv.append(block_kv)
            best.append(of_block)
        logits_RLV = self.logits(x_RLC, condition.head_modulation_R2C)
        return ScaleTrace(logits_RLV, torch.stack(new_kv), torch.stack(hidden), tuple(best[1:]))

    def _embedded(self, tokens_in_RLE: Tensor | None, condition: Condition, si: int) -> Tensor:
        """The first block's input, RLC."""
        return condition.start_R1C if tokens_in_RLE is None else self.word_embed(tokens_in_RLE) + self.positions(si)

    def forward(
        self,
        class_ids_B: Tensor,
        tokens_in_BTE: Tensor,
        straight_through: bool = False,
        gates_BD2: Tensor | None = None,
    ) -> tuple[Tensor, list[BlockTrace]]:
        """All scales, or the first few, in one pass with known inputs (teacher forcing).

        Args:
            class_ids_B: the class of each row, num_classes for "no class".
            tokens_in_BTE: inputs of scale 2 on (`MultiScaleQuantizer.teacher_forcing`), ending at a scale's end.
            straight_through: see `Block.forward`.
            gates_BD2: what each block's attention and FFN are multiplied with before they are added; None is 1.

        Returns: logits [B, 1+T, V], and each block's trace.
        """
        condition = self.condition(class_ids_B)
        modulation_DB6C = condition.modulation_DR6C
        if gates_BD2 is not None:
            gammas_DB2C, others_DB4C = modulation_DB6C.split((2, MODULATIONS - 2), dim=2)
            modulation_DB6C = torch.cat((gammas_DB2C * gates_BD2.transpose(0, 1).unsqueeze(-1), others_DB4C), dim=2)
        count = 1 + tokens_in_BTE.shape[1]
        scales = torch.as_tensor(self.token_scales()[:count], device=class_ids_B.device)
        positions_TC = self.lvl_embed(scales[1:]) + self.pos_1LC[0, 1:count]
        x_BTC = torch.cat((condition.start_R1C, (self.word_embed(tokens_in_BTE) + positions_TC).float()), dim=1)
        visible_TT = scales[:, None] >= scales[None, :]
        traces: list[BlockTrace] = []
        for block, modulation_B6C in zip(self.blocks, modulation_DB6C, strict=True):
            first_scores_BT = traces[0].selector_scores_RT if traces else None
            x_BTC, trace = block(x_BTC, modulation_B6C, visible_TT, straight_through, first_scores_BT)
            traces.append(trace)
        return self.logits(x_BTC, condition.head_modulation_R2C), traces

    def token_scales(self) -> list[int]:
        """The scale index of every token of the sequence."""
        return [si for si, tokens in enumerate(self.config.schedule.tokens) for _ in range(tokens)]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """VAR's initial values: truncated normals of variance 1/(3C), with almost closed gates and a faint head."""
        width = self.config.width
        std = math.sqrt(1 / width / 3)
        for parameter in self.parameters():
            if parameter.dim() > 1 and parameter.shape != self.blocks[0].attn.scale_mul_1H11.shape:
                nn.init.trunc_normal_(parameter, std=std, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        self.head.weight.mul_(0.02)
        self.head_nm.ada_lin.linear.weight.mul_(0.5)
        for block in self.blocks:
            block.attn.proj.weight.div_(math.sqrt(2 * self.config.depth))
            block.ffn.fc2.weight.div_(math.sqrt(2 * self.config.depth))
            block.modulation_weight[:2].mul_(1e-5)  # gamma1, gamma2
            block.modulation_weight[2:].mul_(0.5)
