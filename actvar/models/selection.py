"""Choosing the best K of some scores: which tokens a block updates, and which experts a token uses.

The two learned scorers are one linear layer each, computed in fp32 (ActVAR, Sec. 3.2 and 3.3). Pure functions beside
them do the choosing; the exporter writes the same choice as an ONNX operator.

Letters in shapes: R rows, L tokens, K kept tokens, C width, N experts, A active experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Scorer(nn.Linear):
    """A linear layer that computes in fp32 whatever the precision around it: near-ties must not flip with it."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., outputs] fp32."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Selector(Scorer):
    """Scores how much a token would gain from a block: C -> 1 on the block's input (G in ActVAR, Eq. 8)."""

    def __init__(self, width: int):
        super().__init__(width, 1)

    def forward(self, x_RLC: Tensor) -> Tensor:
        """RLC -> scores RL, fp32."""
        return super().forward(x_RLC).squeeze(-1)


class Router(Scorer):
    """Scores each expert for each token: C -> N on the FFN's input (R in ActVAR, Sec. 3.2)."""


class StaticRouter(nn.Module):
    """Scores each expert once, whatever the token: a router's bias without its weight (ActVAR, Table 5's baseline)."""

    def __init__(self, experts: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(experts))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., N] fp32, all rows the same."""
        return self.bias.float().expand(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Selection:
    """What a block chooses at one scale: tokens, and experts for each of them; ascending, None where nothing is cut."""

    kept_RK: Tensor | None = None
    experts_RKA: Tensor | None = None


def best_first(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The scores along the last dimension in falling order, and their places before: what "the K best" means.

    Equal scores: the lower place first. NaN counts as largest, -0 equals +0.
    """
    values, places = scores.sort(dim=-1, descending=True, stable=True)
    return values, places


def token_select(scores_RL: Tensor, keep: int) -> Tensor:
    """Places of each row's `keep` best scores, as `best_first` has them, ascending: RL -> RK int64."""
    _, places_RL = best_first(scores_RL)
    return places_RL[:, :keep].sort(dim=-1).values


def top_mask(scores: Tensor, keep: int) -> Tensor:
    """Bool mask of the `keep` best scores along the last dimension, as `best_first` has them."""
    _, places = best_first(scores)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, places[..., :keep], True)


def token_gather(x_RLC: Tensor, indices_RK: Tensor) -> Tensor:
    """The chosen tokens: RLC, RK -> RKC."""
    return x_RLC.gather(1, indices_RK.unsqueeze(-1).expand(-1, -1, x_RLC.shape[2]))


def token_scatter(x_RLC: Tensor, indices_RK: Tensor, updated_RKC: Tensor) -> Tensor:
    """x with the chosen tokens replaced (ActVAR, Eq. 9): RLC, RK, RKC -> RLC."""
    return x_RLC.scatter(1, indices_RK.unsqueeze(-1).expand_as(updated_RKC), updated_RKC)
