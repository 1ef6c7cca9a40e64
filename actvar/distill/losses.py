"""The distillation losses, one function each, with the paper's equation numbers.

Pure functions of tensors: no model, no optimiser. Means are taken over tokens where the paper prints a sum over them,
so that the weights alpha and beta do not depend on the batch.

Letters in shapes: R rows, L tokens of one scale, N experts, V codes, C width, F = 4C; leading dimensions are free.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar.models.experts import FFN
from actvar.models.selection import top_mask

_TO_OTHERS = 0.05  # share of a sharp label


@torch.no_grad()
def expert_distances(ffn: FFN, x_RLC: Tensor, experts: int) -> Tensor:
    """How far each expert alone is from the whole network: d_i = mean_C (e_i(x) - F(x))^2 (ActVAR, before Eq. 5).

    e_i(x) = GELU(x W1_i + b1_i) W2_i + b2, as in Eq. 4. One expert at a time, so that [R, L, N, C] never exists.

    Returns: RLN, fp32.
    """
    hidden_RLF = ffn.hidden(x_RLC)
    without_bias_RLC = F.linear(hidden_RLF, ffn.fc2.weight)
    # b2 is in both terms of the difference and cancels.
    added = expert_outputs(ffn, hidden_RLF, experts)
    return torch.stack([(one - without_bias_RLC).float().square().mean(-1) for one in added], dim=-1)


def expert_outputs(ffn: FFN, hidden: Tensor, experts: int) -> Iterator[Tensor]:
    """What each expert adds to F(x) - b2, one after the other: h_i W2_i of the hidden values [..., F], [..., C]."""
    slices = zip(hidden.chunk(experts, dim=-1), ffn.fc2.weight.chunk(experts, dim=1), strict=True)
    return (F.linear(hidden_i, weight_i) for hidden_i, weight_i in slices)


@torch.no_grad()
def token_distances(before_RLC: Tensor, after_RLC: Tensor) -> Tensor:
    """How much a block changes each token: d_t = mean_C (q_m - q_{m-1})^2 (ActVAR, before Eq. 10): RL, fp32."""
    return (after_RLC.float() - before_RLC.float()).square().mean(-1)


def pseudo_label(closeness: Tensor, keep: int) -> Tensor:
    """softmax(softmax(top-k(closeness))) along the last dimension (ActVAR, Eqs. 5-6 and 10-11).

    What top-k leaves out gets 0 from the first softmax; the second softmax, over all entries, keeps the KL finite.
    """
    best = closeness.masked_fill(~top_mask(closeness, keep), -torch.inf)
    return best.softmax(-1).softmax(-1)


def sharp_label(closeness: Tensor, keep: int) -> Tensor:
    """95 % evenly to the `keep` best, and 5 % evenly to all others, which keeps the KL finite. There must be others.

    Not the paper's. With many to keep, the label as printed is nearly even: in the geometric mean, one that is to be
    chosen has e^(1/K) times the share of one that is not, 1.09 times for 12 experts of 16, 1.005 for 192 tokens of 256.
    """
    left_out = closeness.shape[-1] - keep
    return torch.where(top_mask(closeness, keep), (1 - _TO_OTHERS) / keep, _TO_OTHERS / left_out)


def distillation_loss(scores: Tensor, label: Tensor) -> Tensor:
    """KL(p || label) = sum_i p_i log(p_i / label_i) with p = softmax(scores) (ActVAR, Eqs. 6, 11), mean over rows."""
    log_p = scores.log_softmax(-1)
    return (log_p.exp() * (log_p - label.log())).sum(-1).mean()


def balancing_loss(scores: Tensor, chosen: Tensor) -> Tensor:
    """(K / N) sum_j I_j R_j, with R = softmax(scores) (ActVAR, Eqs. 7, 15 and 18), mean over rows.

    Args:
        scores: [..., N].
        chosen: bool [..., N], K true entries in each row.
    """
    share = chosen.float().sum(-1) / chosen.shape[-1]
    return (share * (scores.softmax(-1) * chosen).sum(-1)).mean()


def block_loss(student_RLC: Tensor, teacher_RLC: Tensor) -> Tensor:
    """MSE(q_m, q̄_m) of one block's output (ActVAR, Eq. 20)."""
    return F.mse_loss(student_RLC.float(), teacher_RLC.float())


def output_loss(student_logits_RLV: Tensor, teacher_logits_RLV: Tensor) -> Tensor:
    """KL(p || p̄) of the predicted distributions (ActVAR, Eq. 21), mean over tokens."""
    log_p, log_q = student_logits_RLV.float().log_softmax(-1), teacher_logits_RLV.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
