"""From logits to tokens: guidance, top-k, top-p, and the inverse CDF at a given uniform number.

Nothing random inside: the uniforms are an argument (`actvar.uniforms`).

Letters in shapes: B pictures, R = 2B rows (conditional, then unconditional), L tokens, V codes, S sorted codes.
"""

import torch
from torch import Tensor

from actvar.bundle.contract import DRAWN
from actvar.config import SORTED_CODES
from actvar.models.selection import best_first


def guide(logits_RLV: Tensor, strength: float | Tensor) -> Tensor:
    """Classifier-free guidance: (1 + t) * conditional - t * unconditional, RLV -> BLV; t of all tokens, or L1."""
    conditional, unconditional = logits_RLV.chunk(2)
    return (1 + strength) * conditional - strength * unconditional


def sample(logits_BLV: Tensor, uniform_BL: Tensor, top_k: int | Tensor, top_p: float | Tensor) -> Tensor:
    """Invert the CDF of the top-k, then top-p distribution at the uniforms.

    Codes are sorted by falling logit, equal ones by index. top_p keeps a code when the mass before it is less than
    top_p, so that the first is always kept.

    Args:
        logits_BLV: fp32.
        uniform_BL: in [0, 1).
        top_k: 1 to min(SORTED_CODES, V).
        top_p: above 0; 1 keeps all. Both may lie on the device, without dimensions.

    Returns: token ids, BL int64.
    """
    count = min(SORTED_CODES, logits_BLV.shape[-1])
    sorted_logits, order = best_first(logits_BLV)
    sorted_logits_BLS, order_BLS = sorted_logits[..., :count], order[..., :count]
    rank_S = torch.arange(count, device=logits_BLV.device)
    probability_BLS = sorted_logits_BLS.masked_fill(rank_S >= top_k, -torch.inf).softmax(-1)
    kept_BLS = probability_BLS.cumsum(-1) - probability_BLS < top_p
    cdf_BLS = (probability_BLS * kept_BLS).cumsum(-1)
    # The place is the number of codes whose CDF lies at or below u * total; u < 1 could still round up to the total.
    below_BLS = cdf_BLS <= uniform_BL.unsqueeze(-1) * cdf_BLS[..., -1:]
    last_BL = (kept_BLS & (rank_S < top_k)).sum(-1) - 1
    place_BL = below_BLS.sum(-1).minimum(last_BL)
    return order_BLS.gather(-1, place_BL.unsqueeze(-1)).squeeze(-1)


def or_given(drawn_BL: Tensor, given_BL: Tensor) -> Tensor:
    """The drawn codes, but for those in whose place one is given: `DRAWN` is none."""
    return torch.where(given_BL == DRAWN, drawn_BL, given_BL)
