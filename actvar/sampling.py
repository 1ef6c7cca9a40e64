"""From logits to tokens: guidance, top-k, top-p, and the inverse CDF at a given uniform number, or a mixture of codes.

Nothing random inside: uniforms and noise are arguments (`actvar.uniforms`).

Letters in shapes: B pictures, R = 2B rows (conditional, then unconditional), L tokens, V codes, S sorted codes, E code
width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actvar.bundle.contract import DRAWN
from actvar.config import SORTED_CODES, ModelConfig
from actvar.models.quantizer import MultiScaleQuantizer
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
    best = _best(logits_BLV, top_k, top_p)
    cdf_BLS = (best.probability_BLS * best.kept_BLS).cumsum(-1)
    # The place is the number of codes whose CDF lies at or below u * total; u < 1 could still round up to the total.
    below_BLS = cdf_BLS <= uniform_BL.unsqueeze(-1) * cdf_BLS[..., -1:]
    place_BL = below_BLS.sum(-1).minimum(best.last_BL)
    return best.order_BLS.gather(-1, place_BL.unsqueeze(-1)).squeeze(-1)


def mix(
    logits_BLV: Tensor,
    noise_BLV: Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    gain: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Weigh the codes that top-k and top-p keep by the softmax of (gain * logit + noise) / temperature.

    Source: official VAR's `more_smooth`, a Gumbel softmax. Codes whose logit equals that of the last kept one are kept.

    Args:
        logits_BLV, top_k, top_p: see `sample`.
        noise_BLV: Gumbel noise.
        gain, temperature: of the scale.

    Returns: of each token the code that weighs most, BL int64, which is a draw from the kept codes at logits that are
        multiplied by the gain; and all weights, BLV.
    """
    best = _best(logits_BLV, top_k, top_p)
    least_BL1 = best.logits_BLS.gather(-1, best.last_BL.unsqueeze(-1))
    noisy_BLV = (logits_BLV * gain + noise_BLV).masked_fill(logits_BLV < least_BL1, -torch.inf)
    most_BL1, ids_BL1 = noisy_BLV.max(-1, keepdim=True)
    # What a small temperature makes large is told apart first.
    return ids_BL1.squeeze(-1), ((noisy_BLV - most_BL1) / temperature).softmax(-1)


@dataclass(frozen=True, eq=False)
class _Best:
    """The best codes: logits and codes in falling order, what top-k leaves of the mass, and which top-p keeps.

    `last_BL` is the place of the last that both keep.
    """

    logits_BLS: Tensor
    order_BLS: Tensor
    probability_BLS: Tensor
    kept_BLS: Tensor
    last_BL: Tensor


def _best(logits_BLV: Tensor, top_k: int | Tensor, top_p: float | Tensor) -> _Best:
    count = min(SORTED_CODES, logits_BLV.shape[-1])
    sorted_logits, order = best_first(logits_BLV)
    logits_BLS, order_BLS = sorted_logits[..., :count], order[..., :count]
    rank_S = torch.arange(count, device=logits_BLV.device)
    probability_BLS = logits_BLS.masked_fill(rank_S >= top_k, -torch.inf).softmax(-1)
    kept_BLS = probability_BLS.cumsum(-1) - probability_BLS < top_p
    last_BL = (kept_BLS & (rank_S < top_k)).sum(-1) - 1
    return _Best(logits_BLS, order_BLS, probability_BLS, kept_BLS, last_BL)


@dataclass(frozen=True, eq=False)
class Drawn:
    """The tokens of a scale, BL int64, and the vectors that they add to f_hat, BLE."""

    ids_BL: Tensor
    codes_BLE: Tensor


def drawn(
    config: ModelConfig,
    quantizer: MultiScaleQuantizer,
    si: int,
    logits_BLV: Tensor,
    random: Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    given_BL: Tensor | None = None,
) -> Drawn:
    """What scale index si draws.

    Args:
        config: of the model: whether codes are mixed.
        quantizer: its codes.
        si: the scale's index.
        logits_BLV, top_k, top_p: see `sample`.
        random: uniforms BL, or noise BLV where codes are mixed.
        given_BL: codes in place of drawn ones, as `or_given` has them. A given code is not mixed with others.
    """
    if not config.smooth:
        ids_BL = sample(logits_BLV, random, top_k, top_p)
        ids_BL = ids_BL if given_BL is None else or_given(ids_BL, given_BL)
        return Drawn(ids_BL, quantizer.embedding(ids_BL))
    gain, temperature = config.schedule.smooth_gain(si), config.schedule.smooth_temperature(si)
    ids_BL, weights_BLV = mix(logits_BLV, random, top_k, top_p, gain, temperature)
    codes_BLE = weights_BLV @ quantizer.embedding.weight
    if given_BL is None:
        return Drawn(ids_BL, codes_BLE)
    ids_BL = or_given(ids_BL, given_BL)
    is_drawn_BL1 = (given_BL == DRAWN).unsqueeze(-1)
    return Drawn(ids_BL, torch.where(is_drawn_BL1, codes_BLE, quantizer.embedding(ids_BL)))


def or_given(drawn_BL: Tensor, given_BL: Tensor) -> Tensor:
    """The drawn codes, but for those in whose place one is given: `DRAWN` is none."""
    return torch.where(given_BL == DRAWN, drawn_BL, given_BL)
