"""The sparse parts of a recorded drawing, and how plain PyTorch computes them. A library's may take their place.

Every shape is known beforehand, and nothing is given back to the host. Equal scores: the lower place first, as
everywhere (`actvar.models.selection`).

Letters in shapes: R rows, L tokens, K kept tokens, C width, N experts, A active experts, F hidden neurons.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar.models.block import modulated_norm
from actvar.models.selection import token_gather, token_scatter, token_select, top_mask
from actvar.recorded.weights import Experts


class SparseOperators(Protocol):
    """What leaves tokens and experts out."""

    def select(self, scores_RL: Tensor, keep: int) -> Tensor:
        """Places of each row's best, ascending: RL fp32 -> RK int64."""

    def gather(self, x_RLC: Tensor, places_RK: Tensor) -> Tensor:
        """The chosen tokens, RKC."""

    def gather_norm(
        self, x_RLC: Tensor, places_RK: Tensor, scale_R1C: Tensor, shift_R1C: Tensor, to: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The chosen tokens, RKC fp32, and their modulated norm, RKC `to`."""

    def scatter(self, x_RLC: Tensor, places_RK: Tensor, updated_RKC: Tensor) -> Tensor:
        """x with the chosen tokens replaced, RLC."""

    def scatter_gated(
        self, x_RLC: Tensor, places_RK: Tensor, kept_RKC: Tensor, gamma_R1C: Tensor, change_RKC: Tensor
    ) -> Tensor:
        """x with kept + gamma * change in place of the chosen tokens, RLC fp32."""

    def routed(self, x_RKC: Tensor, scores_RKN: Tensor, experts: Experts, active: int) -> Tensor:
        """The sum of each token's best experts, b2 added once, RKC."""


class PlainOperators:
    """See `SparseOperators`: PyTorch's own operators, on any device. Experts are left out by a mask."""

    def select(self, scores_RL: Tensor, keep: int) -> Tensor:
        """See `SparseOperators`."""
        return token_select(scores_RL, keep)

    def gather(self, x_RLC: Tensor, places_RK: Tensor) -> Tensor:
        """See `SparseOperators`."""
        return token_gather(x_RLC, places_RK)

    def gather_norm(
        self, x_RLC: Tensor, places_RK: Tensor, scale_R1C: Tensor, shift_R1C: Tensor, to: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See `SparseOperators`."""
        kept_RKC = token_gather(x_RLC, places_RK)
        return kept_RKC, modulated_norm(kept_RKC, scale_R1C, shift_R1C).to(to)

    def scatter(self, x_RLC: Tensor, places_RK: Tensor, updated_RKC: Tensor) -> Tensor:
        """See `SparseOperators`."""
        return token_scatter(x_RLC, places_RK, updated_RKC)

    def scatter_gated(
        self, x_RLC: Tensor, places_RK: Tensor, kept_RKC: Tensor, gamma_R1C: Tensor, change_RKC: Tensor
    ) -> Tensor:
        """See `SparseOperators`."""
        return token_scatter(x_RLC, places_RK, torch.addcmul(kept_RKC, change_RKC.float(), gamma_R1C))

    def routed(self, x_RKC: Tensor, scores_RKN: Tensor, experts: Experts, active: int) -> Tensor:
        """See `SparseOperators`."""
        gate_RKN1 = top_mask(scores_RKN, active).unsqueeze(-1)
        return ffn(x_RKC, experts, gate_RKN1)


def ffn(x_RKC: Tensor, experts: Experts, gate_RKN1: Tensor | None = None) -> Tensor:
    """All of these experts, or with a gate those that it names for a token: RKC -> RKC."""
    hidden_RKF = F.gelu(F.linear(x_RKC, experts.w1_FC, experts.b1_F), approximate="tanh")
    if gate_RKN1 is not None:
        hidden_RKF = (hidden_RKF.unflatten(-1, (experts.count, -1)) * gate_RKN1).flatten(-2)
    change_MC = torch.addmm(experts.b2_C, hidden_RKF.flatten(0, 1), experts.w2_FC)
    return change_MC.view(x_RKC.shape)
