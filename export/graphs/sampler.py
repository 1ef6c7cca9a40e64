"""From the last block's output to tokens, and from tokens to the next scale's input, as ONNX nodes.

The counterpart of `actvar.sampling` and of the quantizer's `contribution` and `tokens_in`; all in fp32.

Letters in shapes: B pictures, R = 2B rows of a guided scale (conditional, then unconditional), L tokens, C width, V
codes, S codes that are sorted, E code width, H side of f_hat, p side of a token map.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from actvar.config import SORTED_CODES
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.layers import best_first

Phi: TypeAlias = tuple[str, str]
"""Weight and bias of a convolution phi of the quantizer."""

CODEBOOK = "vqvae.quantize.embedding.weight"


def guided(b: GraphBuilder, ramp: str, normed_RLC: str, cfg: str) -> str:
    """The guided input of the head, BLC: logits = (1 + t) * conditional - t * unconditional, t = cfg * ramp.

    The head is linear and the two weights sum to 1, so guiding its input is the same, with half the head's work.
    """
    with b.scope("guidance"):
        strength = b.op("Mul", cfg, ramp, name="strength")
        conditional, unconditional = b.split(normed_RLC, 2, axis=0)
        difference = b.op("Sub", conditional, unconditional, name="difference")
        return b.op("Add", conditional, b.op("Mul", difference, strength, name="push"), name="guided")


@dataclass(frozen=True)
class _Best:
    """Values of a graph: the best codes in falling order, and of each its logit, what top-k leaves of the mass, whether
    top-p keeps it and, by its place alone, whether top-k does."""

    count: int
    order_BLS: str
    logits_BLS: str
    probability_BLS: str
    kept_BLS: str
    allowed_S: str

    def last_BL1(self, b: GraphBuilder) -> str:
        """Place of the last code that is kept."""
        usable_BLS = b.op("And", self.kept_BLS, self.allowed_S, name="usable")
        return b.op("Sub", _count(b, usable_BLS), b.constant("one_int32", np.array(1, np.int32)), name="last")


def _best(b: GraphBuilder, logits_BLV: str, vocab_size: int, top_k: str, top_p: str) -> _Best:
    """The codes that count, inside the scope of the one that asks."""
    count = min(SORTED_CODES, vocab_size)
    sorted_BLS, order_BLS = best_first(b, logits_BLV, b.ints(count), axis=-1, name="sorted")
    rank_S = b.op("Range", b.int_scalar(0), b.int_scalar(count), b.int_scalar(1), name="rank")
    allowed_S = b.op("Less", rank_S, top_k, name="in_top_k")
    masked_BLS = b.op("Where", allowed_S, sorted_BLS, b.scalar(-np.inf), name="masked")
    probability_BLS = b.op("Softmax", masked_BLS, axis=-1, name="probability")
    mass_BLS = b.op("CumSum", probability_BLS, b.int_scalar(-1), name="mass")
    before_BLS = b.op("Sub", mass_BLS, probability_BLS, name="mass_before")
    kept_BLS = b.op("Less", before_BLS, top_p, name="in_top_p")
    return _Best(count, order_BLS, sorted_BLS, probability_BLS, kept_BLS, allowed_S)


def sample(b: GraphBuilder, logits_BLV: str, vocab_size: int, uniform_BL: str, top_k: str, top_p: str) -> str:
    """Drawn codes [B, L] int64: the inverse CDF of the top-k, then top-p distribution at the uniforms."""
    last_axis = b.ints(-1)
    with b.scope("sampling"):
        best = _best(b, logits_BLV, vocab_size, top_k, top_p)
        drawn_BLS = b.op("Where", best.kept_BLS, best.probability_BLS, b.scalar(0.0), name="drawn_from")
        cdf_BLS = b.op("CumSum", drawn_BLS, b.int_scalar(-1), name="cdf")
        total_BL1 = b.op("Gather", cdf_BLS, b.ints(best.count - 1), axis=-1, name="total")
        uniform_BL1 = b.op("Unsqueeze", uniform_BL, last_axis, name="uniform")
        goal_BL1 = b.op("Mul", uniform_BL1, total_BL1, name="goal")
        below_BLS = b.op("LessOrEqual", cdf_BLS, goal_BL1, name="below")
        last_BL1 = best.last_BL1(b)
        place_BL1 = b.op("Min", _count(b, below_BLS), last_BL1, name="place")
        ids_BL1 = b.op("GatherElements", best.order_BLS, place_BL1, axis=-1, name="chosen")
        return b.op("Squeeze", ids_BL1, last_axis, name="drawn")


def mix(
    b: GraphBuilder,
    logits_BLV: str,
    vocab_size: int,
    noise_BLV: str,
    top_k: str,
    top_p: str,
    smoothing: tuple[str, str],
) -> tuple[str, str]:
    """Drawn codes [B, L] int64, and mixtures of codes [B, L, E]; see `actvar.sampling.mix`."""
    gain, temperature = smoothing
    with b.scope("sampling"):
        best = _best(b, logits_BLV, vocab_size, top_k, top_p)
        least_BL1 = b.op("GatherElements", best.logits_BLS, best.last_BL1(b), axis=-1, name="least")
        gained_BLV = b.op("Mul", logits_BLV, gain, name="gained")
        noisy_BLV = b.op("Add", gained_BLV, noise_BLV, name="noisy")
        is_out_BLV = b.op("Less", logits_BLV, least_BL1, name="is_out")
        kept_BLV = b.op("Where", is_out_BLV, b.scalar(-np.inf), noisy_BLV, name="kept")
        most_BL1, ids_BL1 = best_first(b, kept_BLV, b.ints(1), axis=-1, name="most")
        behind_BLV = b.op("Sub", kept_BLV, most_BL1, name="behind")
        weights_BLV = b.op("Softmax", b.op("Div", behind_BLV, temperature, name="cooled"), axis=-1, name="weights")
        mixed_BLE = b.op("MatMul", weights_BLV, b.weight(CODEBOOK), name="mixed")
        return b.op("Squeeze", ids_BL1, b.ints(-1), name="drawn"), mixed_BLE


def or_given(b: GraphBuilder, drawn_BL: str, given_BL: str) -> str:
    """`token_ids` [B, L] int64: the drawn codes, but for those in whose place one is given, which is no `DRAWN`."""
    with b.scope("sampling"):
        return b.op("Where", is_drawn(b, given_BL), drawn_BL, given_BL, output="token_ids")


def mixed_or_given(b: GraphBuilder, mixed_BLE: str, given_BL: str, codes_BLE: str) -> str:
    """Mixtures [B, L, E], but for the vectors of the tokens that are given."""
    with b.scope("sampling"):
        is_drawn_BL1 = b.op("Unsqueeze", is_drawn(b, given_BL), b.ints(-1), name="is_mixed")
        return b.op("Where", is_drawn_BL1, mixed_BLE, codes_BLE, name="mixed_or_given")


def is_drawn(b: GraphBuilder, given_BL: str) -> str:
    """Whether no code is given, bool [B, L]."""
    return b.op("Less", given_BL, b.int_scalar(0), name="is_drawn")


def codes_of(b: GraphBuilder, token_ids_BL: str) -> str:
    """The vectors of tokens, [B, L, E]."""
    with b.scope("quantizer"):
        return b.op("Gather", b.weight(CODEBOOK), token_ids_BL, axis=0, name="codes")


@dataclass(frozen=True)
class Resize:
    """A resize of square maps, x -> U x U^T, as values of a graph: U [after, before] and U^T."""

    rows: str
    columns: str


def add_codes(b: GraphBuilder, codes_BLE: str, f_hat_BEHH: str, shape_BEpp: str, up: Resize | None, phi: Phi) -> str:
    """`next_f_hat` [B, E, H, H]: f_hat + phi(up(codes)); `shape_BEpp` is how codes are arranged to a map."""
    added_BEHH = enlarged(b, codes_BLE, shape_BEpp, up, phi)
    with b.scope("quantizer"):
        return b.op("Add", f_hat_BEHH, added_BEHH, output="next_f_hat")


def enlarged(b: GraphBuilder, codes_BLE: str, shape_BEpp: str, up: Resize | None, phi: Phi) -> str:
    """What the codes of a scale add to f_hat, [B, E, H, H]."""
    with b.scope("quantizer"):
        codes_BEL = b.op("Transpose", codes_BLE, perm=[0, 2, 1])
        codes_BEHH = resized(b, b.op("Reshape", codes_BEL, shape_BEpp, name="map"), up, "bicubic")
        return b.op("Conv", codes_BEHH, *phi, pads=[1, 1, 1, 1], name="phi")


def next_tokens_in(b: GraphBuilder, f_hat_BEHH: str, down: Resize | None, shape_BEL: str) -> str:
    """`next_tokens_in` [B, L', E]: f_hat averaged to the map of the next scale, whose tokens `shape_BEL` counts."""
    with b.scope("quantizer"):
        map_BEpp = resized(b, f_hat_BEHH, down, "area")
        map_BEL = b.op("Reshape", map_BEpp, shape_BEL, name="tokens")
        return b.op("Transpose", map_BEL, perm=[0, 2, 1], output="next_tokens_in")


def resize_matrix(before: int, after: int, mode: str) -> np.ndarray:
    """U of one side of a resize, [after, before] fp32: a map x becomes U x U^T, as torch's `interpolate` has it.

    Computed in float64, and rounded once. Of sides that are a power of two, as the published ones are, that is what
    torch computes; of others torch rounds more often, and is off by some 1e-6.

    Args:
        before, after: the side, in pixels.
        mode: "area", the mean of the pixels that a new one reaches into; or "bicubic", for an enlargement.
    """
    matrix = np.zeros((after, before))
    if mode == "area":
        for i in range(after):
            start, end = i * before // after, -(-(i + 1) * before // after)
            matrix[i, start:end] = 1 / (end - start)
        return matrix.astype(np.float32)
    places = np.arange(after)
    centres = (before * (2 * places + 1) - after) / (2 * after)  # in pixels of the map before
    first = np.floor(centres).astype(int) - 1
    for tap in (first, first + 1, first + 2, first + 3):
        np.add.at(matrix, (places, tap.clip(0, before - 1)), _cubic(np.abs(tap - centres)))  # the edge goes on outside
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75: the weight of a pixel at a distance of up to 2."""
    a, d = -0.75, distance
    return np.where(d <= 1, ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)


def resized(b: GraphBuilder, x: str, by: Resize | None, name: str) -> str:
    """[..., before, before] -> [..., after, after]."""
    return b.op("MatMul", b.op("MatMul", by.rows, x, name=f"{name}_rows"), by.columns, name=name) if by else x


def _count(b: GraphBuilder, mask_BLS: str) -> str:
    """How many are true, [B, L, 1] int32."""
    return b.op("ReduceSum", b.op("Cast", mask_BLS, to=6, name="as_int32"), b.ints(-1), keepdims=1, name="count")
