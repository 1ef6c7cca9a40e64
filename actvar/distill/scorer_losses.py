"""What one block's router and selector have to learn: their labels, and how far they are from them.

Knows which scales are active and what a label is made of; the formulas are `actvar.distill.losses`'.

Letters in shapes: B pictures, T tokens of all scales, L tokens of one scale, N experts.
"""

import torch
from torch import Tensor

from actvar.config import DYNAMIC, ModelConfig
from actvar.distill.losses import (
    balancing_loss,
    distillation_loss,
    expert_distances,
    pseudo_label,
    token_distances,
)
from actvar.models.block import BlockTrace
from actvar.models.experts import FFN


def scorer_losses(config: ModelConfig, ffn: FFN, student: BlockTrace, teacher: BlockTrace) -> Tensor:
    """Sums of the distillation (Eqs. 14, 17) and balancing losses (Eqs. 15, 18) of one block over the active scales.

    A scale at which a scorer leaves nothing out adds nothing: there is nothing to choose. Where tokens are fixed, the
    first block alone has a selector to teach. A static choice of experts learns from the same distances, but not to
    balance: of experts that work for all tokens or for none, the loss would push out whichever was chosen.

    Args:
        config: the student's.
        ffn: the whole network that the experts were cut from.
        student: the block's pass in the student.
        teacher: the same block's pass in the teacher, on the same tokens.

    Returns: [2], fp32: the distillation losses, the balancing losses.
    """
    assert student.kept_RT is not None and config.activation is not None
    assert student.router_scores_RTN is not None and student.active_RTN is not None
    dis = bl = student.router_scores_RTN.new_zeros(())
    selector_scores_RT = student.selector_scores_RT
    for si in (scale - 1 for scale in config.activation.scales):
        here = slice(config.schedule.starts[si], config.schedule.starts[si] + config.schedule.tokens[si])
        keep, active = config.kept_tokens(si), config.active_experts(si)
        if selector_scores_RT is not None and keep < config.schedule.tokens[si]:
            change_BL = token_distances(teacher.input_RTC[:, here], teacher.output_RTC[:, here])
            scores_BL = selector_scores_RT[:, here]
            dis = dis + distillation_loss(scores_BL, pseudo_label(change_BL, keep))
            bl = bl + balancing_loss(scores_BL, student.kept_RT[:, here])
        if active < config.activation.experts:
            distances_BLN = expert_distances(ffn, student.ffn_input_RTC[:, here].detach(), config.activation.experts)
            scores_BLN = student.router_scores_RTN[:, here]
            dis = dis + distillation_loss(scores_BLN, pseudo_label(-distances_BLN, active))
            if config.activation.expert_choice == DYNAMIC:
                bl = bl + balancing_loss(scores_BLN, student.active_RTN[:, here])
    return torch.stack((dis, bl))
