"""What routers and selectors are taught to choose: which experts serve a token best, which tokens need a block most.

The paper's two answers, and beside each another one that this project asks about. They are rankings, of which a label
is made; how far a choice is from its label is `actvar.distill.losses`'.

Letters in shapes: B pictures, R rows, T tokens of all scales, L tokens of one scale, K tokens of a piece, N experts,
C width, V codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from actvar.distill.label_choice import LOGITS, SHARP, TOGETHER, Labels
from actvar.distill.losses import expert_distances, expert_outputs, pseudo_label, sharp_label, token_distances
from actvar.models.block import BlockTrace
from actvar.models.experts import FFN
from actvar.models.var import VAR

TOKENS_AT_ONCE = 256  # bounds what all experts' outputs of a piece take: 256 * N * C values


@dataclass(frozen=True)
class TeacherPass:
    """The teacher on one batch: what all labels and both stages' losses are made of."""

    teacher: VAR
    class_ids_B: Tensor
    logits_BTV: Tensor
    traces: Sequence[BlockTrace]

    @cached_property
    def head_modulation_B2C(self) -> Tensor:
        """What the head is told of the classes; made once, however many blocks ask for it."""
        return self.teacher.head_nm.ada_lin(self.teacher.class_emb(self.class_ids_B))


@torch.no_grad()
def teacher_pass(teacher: VAR, class_ids_B: Tensor, tokens_in_BTE: Tensor) -> TeacherPass:
    """Run the frozen teacher, without gradients; once per step."""
    return TeacherPass(teacher, class_ids_B, *teacher(class_ids_B, tokens_in_BTE))


def label_of(labels: Labels, closeness: Tensor, keep: int) -> Tensor:
    """The label of a ranking: a distribution over its last dimension, whose `keep` best are to be chosen."""
    return sharp_label(closeness, keep) if labels.form == SHARP else pseudo_label(closeness, keep)


def expert_closeness(labels: Labels, ffn: FFN, x_RLC: Tensor, experts: int, keep: int) -> Tensor:
    """What is highest for the `keep` experts that a token should use: RLN, fp32."""
    if labels.experts == TOGETHER:
        return losses_when_dropped(ffn, x_RLC, experts, keep)
    return -expert_distances(ffn, x_RLC, experts)


def token_changes(labels: Labels, batch: TeacherPass, block: int, here: slice) -> Tensor:
    """What is highest for the tokens of one scale that a block should update: BL, fp32."""
    if labels.tokens == LOGITS:
        return logit_changes(batch, block, here)
    trace = batch.traces[block]
    return token_distances(trace.input_RTC[:, here], trace.output_RTC[:, here])


@torch.no_grad()
def losses_when_dropped(ffn: FFN, x_RLC: Tensor, experts: int, keep: int) -> Tensor:
    """What the sum of the best `keep` experts loses with each of them; -inf for the others.

    With c_i = h_i W2_i, what expert i adds to F(x), and D the experts left out, the loss is mean_C (sum_D c_i)^2, the
    distance of F(x) to what is kept. D grows from nothing, one expert at a time, by the one with which the loss is
    least. Of a kept expert, what is returned is the loss with it left out as well.

    Returns: RLN, fp32.
    """
    pieces_KC = x_RLC.flatten(0, 1).split(TOKENS_AT_ONCE)
    dropped = (dropped_in_turn(expert_products(ffn, x_KC, experts), experts - keep) for x_KC in pieces_KC)
    losses_KN = torch.cat([losses_KN for _, losses_KN in dropped])
    return losses_KN.view(*x_RLC.shape[:-1], experts) / x_RLC.shape[-1]


def expert_products(ffn: FFN, x_KC: Tensor, experts: int) -> Tensor:
    """Scalar products of what every two experts add, c_i · c_j: KNN, fp32."""
    added_KNC = torch.stack([one.float() for one in expert_outputs(ffn, ffn.hidden(x_KC), experts)], dim=1)
    with torch.autocast(x_KC.device.type, enabled=False):
        return added_KNC @ added_KNC.mT


def dropped_in_turn(products_KNN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Drop `count` experts one after the other, each time the one with which ‖s + c_i‖² is least, s what was dropped.

    Returns: the dropped experts in their order, [K, count] int64; and ‖s + c_i‖² of each expert i that is left, with s
    the sum of all dropped ones: KN; -inf for the others.
    """
    own_KN = products_KNN.diagonal(dim1=1, dim2=2)
    with_s_KN = torch.zeros_like(own_KN)  # s·c_i
    dropped_KN = torch.zeros_like(own_KN, dtype=torch.bool)
    loss_KN, order = own_KN, []
    for _ in range(count):
        next_K1 = loss_KN.masked_fill(dropped_KN, torch.inf).argmin(dim=1, keepdim=True)
        square_K1 = loss_KN.gather(1, next_K1)
        with_s_KN = with_s_KN + products_KNN.take_along_dim(next_K1.unsqueeze(2), dim=1).squeeze(1)
        dropped_KN = dropped_KN.scatter(1, next_K1, True)
        loss_KN = square_K1 + 2 * with_s_KN + own_KN
        order.append(next_K1)
    order_KD = torch.cat(order, dim=1) if order else torch.zeros_like(own_KN[:, :0], dtype=torch.int64)
    return order_KD, loss_KN.masked_fill(dropped_KN, -torch.inf)


@torch.no_grad()
def logit_changes(batch: TeacherPass, block: int, here: slice) -> Tensor:
    """How much the final logits of a token change without what one block did to it, all other blocks as they were.

    mean_V (head(q_D) - head(q_D - (q_m - q_{m-1})))^2, with D the last block: the block's direct share, exact for the
    last block. What later blocks would have done otherwise is not in it; that would take a pass for each block.

    Returns: BL, fp32.
    """
    trace = batch.traces[block]
    without_BLC = batch.traces[-1].output_RTC[:, here] - (trace.output_RTC[:, here] - trace.input_RTC[:, here])
    return token_distances(batch.logits_BTV[:, here], batch.teacher.logits(without_BLC, batch.head_modulation_B2C))
