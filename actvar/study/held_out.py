"""What held-out pictures say of a student beside its teacher, all scales in one pass (teacher forcing).

Letters in shapes: B pictures, T tokens of all scales, L tokens of one scale, D blocks, N experts.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from actvar.config import ModelConfig
from actvar.data.tokens import TokenStore
from actvar.distill.label_choice import PAPER, Labels
from actvar.distill.labels import TeacherPass, expert_closeness, teacher_pass, token_changes
from actvar.distill.losses import block_loss, output_loss
from actvar.models.block import BlockTrace
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.models.selection import top_mask
from actvar.models.var import VAR

_BATCH = 20


@dataclass(frozen=True)
class Agreement:
    """Share of the teacher's top-k (the labels of Eqs. 5 and 10) that is chosen, and what choosing blindly gives."""

    share: float
    chance: float


@dataclass(frozen=True)
class HeldOut:
    """Means over the held-out pictures.

    Attributes:
        cross_entropy: of the true tokens, in nats.
        kl: L_f, KL(student || teacher) of the predictions (Eq. 21).
        kl_by_scale: the same, scale by scale.
        block_mse: L_b of the blocks' outputs, mean over the blocks (Eq. 20).
        tokens: agreement of the chosen tokens; None where all are kept.
        experts: of the experts of kept tokens; None where all are active.
        load: the least and the most tokens that an expert of a block was given, as multiples of its fair share.
    """

    cross_entropy: float
    kl: float
    kl_by_scale: tuple[float, ...]
    block_mse: float
    tokens: Agreement | None
    experts: Agreement | None
    load: tuple[float, float] | None


@dataclass
class _Overlap:
    """Counts of chosen labels."""

    both: float = 0.0
    by_chance: float = 0.0
    labels: int = 0

    def add(self, chosen: Tensor, label: Tensor) -> None:
        """Masks of one shape, k true of n along the last dimension."""
        count = int(label.sum())
        self.both += int((chosen & label).sum())
        self.by_chance += count * float(chosen.float().mean())
        self.labels += count

    @property
    def agreement(self) -> Agreement | None:
        return Agreement(self.both / self.labels, self.by_chance / self.labels) if self.labels else None


@dataclass
class _Choices:
    """What was chosen so far, and the tokens that each expert of each block was given."""

    given_DN: np.ndarray
    tokens: _Overlap = field(default_factory=_Overlap)
    experts: _Overlap = field(default_factory=_Overlap)


@torch.no_grad()
def measure(
    student: VAR, teacher: VAR, quantizer: MultiScaleQuantizer, held_out: TokenStore, labels: Labels = PAPER
) -> HeldOut:
    """Run both over all held-out pictures; everything on one device. Agreement is with labels of this kind."""
    device, schedule = student.pos_start.device, student.config.schedule
    experts = student.config.activation.experts if student.config.activation else 1
    choices = _Choices(np.zeros((student.config.depth, experts)))
    sums: dict[str, float] = {"cross_entropy": 0.0, "block_mse": 0.0}
    kl_S = np.zeros(len(schedule))
    for places in torch.arange(len(held_out)).split(_BATCH):
        token_ids_BT, class_ids_B = (tensor.to(device) for tensor in held_out.batch(places))
        tokens_in_BTE, _ = quantizer.teacher_forcing(token_ids_BT)
        taught = teacher_pass(teacher, class_ids_B, tokens_in_BTE)
        logits, traces = student(class_ids_B, tokens_in_BTE)
        share = len(places) / len(held_out)
        sums["cross_entropy"] += share * float(F.cross_entropy(logits.flatten(0, 1), token_ids_BT.flatten()))
        pairs = list(zip(traces, taught.traces, strict=True))
        losses = [float(block_loss(ours.output_RTC, theirs.output_RTC)) for ours, theirs in pairs]
        sums["block_mse"] += share * float(np.mean(losses))
        for si, (start, tokens) in enumerate(zip(schedule.starts, schedule.tokens, strict=True)):
            here = slice(start, start + tokens)
            kl_S[si] += share * float(output_loss(logits[:, here], taught.logits_BTV[:, here]))
        for block, trace in enumerate(traces):
            _count_choices(student.config, labels, taught, block, trace, choices)
    resting = choices.experts.labels > 0
    load_DN = choices.given_DN / choices.given_DN.mean(1, keepdims=True) if resting else None
    return HeldOut(
        cross_entropy=sums["cross_entropy"],
        kl=float(kl_S @ np.array(schedule.tokens) / schedule.total),
        kl_by_scale=tuple(kl_S.tolist()),
        block_mse=sums["block_mse"],
        tokens=choices.tokens.agreement,
        experts=choices.experts.agreement,
        load=(float(load_DN.min()), float(load_DN.max())) if load_DN is not None else None,
    )


def _count_choices(
    config: ModelConfig, labels: Labels, taught: TeacherPass, block: int, ours: BlockTrace, choices: _Choices
) -> None:
    """Hold one block's choices at every scale to the labels; the teacher's FFN makes those of experts."""
    ffn, given_N = taught.teacher.blocks[block].ffn, choices.given_DN[block]
    experts = config.activation.experts if config.activation else 1
    for si, (start, tokens) in enumerate(zip(config.schedule.starts, config.schedule.tokens, strict=True)):
        here = slice(start, start + tokens)
        kept_BL = torch.ones_like(ours.input_RTC[:, here, 0], dtype=torch.bool)
        if (keep := config.kept_tokens(si)) < tokens:
            assert ours.kept_RT is not None
            kept_BL = ours.kept_RT[:, here]
            change_BL = token_changes(labels, taught, block, here)
            choices.tokens.add(kept_BL, top_mask(change_BL, keep))
        if (active := config.active_experts(si)) < experts:
            assert ours.active_RTN is not None
            used_KN = ours.active_RTN[:, here][kept_BL]
            closeness_BLN = expert_closeness(labels, ffn, ours.ffn_input_RTC[:, here], experts, active)
            choices.experts.add(used_KN, top_mask(closeness_BLN[kept_BL], active))
            given_N += used_KN.sum(0).cpu().numpy()
