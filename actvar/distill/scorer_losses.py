"""How far one block's router and selector are from their labels.

Knows which scales are active; what is ranked best is `actvar.distill.labels`', the formulas `actvar.distill.losses`'.

Letters in shapes: B pictures, T tokens of all scales, L tokens of one scale, N experts, C width.
"""

import torch
from torch import Tensor

from actvar.config import DYNAMIC, ModelConfig
from actvar.distill.label_choice import Labels
from actvar.distill.labels import TeacherPass, expert_closeness, label_of, token_changes
from actvar.distill.losses import balancing_loss, distillation_loss
from actvar.models.block import BlockTrace


def scorer_losses(
    config: ModelConfig,
    labels: Labels,
    batch: TeacherPass,
    block: int,
    student: BlockTrace,
    *,
    teaches_experts: bool = True,
) -> Tensor:
    """Sums of the distillation (Eqs. 14, 17) and balancing losses (Eqs. 15, 18) of one block over the active scales.

    A scale at which a scorer leaves nothing out adds nothing: there is nothing to choose. Where tokens are fixed, the
    first block alone has a selector to teach. A static choice of experts learns from the same distances, but not to
    balance: of experts that work for all tokens or for none, the loss would push out whichever was chosen.

    Args:
        config: the student's.
        labels: by what experts and tokens are ranked.
        batch: the teacher's pass; its FFNs are the whole networks that the experts were cut from.
        block: which block, from 0.
        student: this block's pass in the student, on the same tokens.
        teaches_experts: False where their order is fixed.

    Returns: [2], fp32: the distillation losses, the balancing losses.
    """
    assert student.kept_RT is not None and config.activation is not None
    assert student.router_scores_RTN is not None and student.active_RTN is not None
    dis = bl = student.router_scores_RTN.new_zeros(())
    selector_scores_RT, ffn, experts = (
        student.selector_scores_RT,
        batch.teacher.blocks[block].ffn,
        config.activation.experts,
    )
    for si in (scale - 1 for scale in config.activation.scales):
        here = slice(config.schedule.starts[si], config.schedule.starts[si] + config.schedule.tokens[si])
        keep, active = config.kept_tokens(si), config.active_experts(si)
        if selector_scores_RT is not None and keep < config.schedule.tokens[si]:
            change_BL = token_changes(labels, batch, block, here)
            scores_BL = selector_scores_RT[:, here]
            dis = dis + distillation_loss(scores_BL, label_of(labels, change_BL, keep))
            bl = bl + balancing_loss(scores_BL, student.kept_RT[:, here])
        if teaches_experts and active < experts:
            x_BLC = student.ffn_input_RTC[:, here].detach()
            closeness_BLN = expert_closeness(labels, ffn, x_BLC, experts, active)
            scores_BLN = student.router_scores_RTN[:, here]
            dis = dis + distillation_loss(scores_BLN, label_of(labels, closeness_BLN, active))
            if config.activation.expert_choice == DYNAMIC:
                bl = bl + balancing_loss(scores_BLN, student.active_RTN[:, here])
    return torch.stack((dis, bl))
