"""Uniform numbers, and the draw that they decide.

Letters in shapes: B pictures, L tokens, V codes.
"""

import numpy as np
import pytest
import reference_var as reference
import torch

from actvar.config import SORTED_CODES
from actvar.sampling import guide, sample
from actvar.uniforms import token_uniforms

LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))


def draw_one(logits: list[float] | torch.Tensor, uniform: float, top_k: int = 900, top_p: float = 1.0) -> int:
    logits_BLV = torch.as_tensor(logits, dtype=torch.float32)[None, None]
    return int(sample(logits_BLV, torch.tensor([[uniform]]), top_k, top_p))


# ---- the draw


@pytest.mark.parametrize(("top_k", "top_p"), [(900, 1.0), (5, 1.0), (900, 0.7), (6, 0.8)])
def test_codes_are_drawn_as_often_as_the_distribution_says(top_k, top_p):
    """Pearson's statistic over 20,000 draws; with 11 degrees of freedom 40 is met once in 30,000 tries."""
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5
    uniforms_BL = torch.from_numpy(token_uniforms(3, 0, 0, 20_000))[None]
    drawn = sample(logits_V.expand(1, 20_000, 12), uniforms_BL, top_k, top_p)[0]
    counts_V = np.bincount(drawn.numpy(), minlength=12)
    expected_V = 20_000 * reference.distribution(logits_V.double().numpy(), top_k, top_p)
    possible = expected_V > 0
    assert possible.sum() == {(900, 1.0): 12, (5, 1.0): 5}.get((top_k, top_p), possible.sum())
    assert not counts_V[~possible].any()
    assert ((counts_V - expected_V)[possible] ** 2 / expected_V[possible]).sum() < 40


@pytest.mark.parametrize("uniform", [0.0, 0.3, LARGEST])
def test_top_k_1_and_a_tiny_top_p_give_the_likeliest_code(uniform):
    logits = [0.1, 2.0, 1.9, -3.0]
    assert draw_one(logits, uniform, top_k=1) == 1
    assert draw_one(logits, uniform, top_p=1e-6) == 1


def test_the_uniform_walks_from_the_likeliest_code_to_the_last_kept_one():
    """Half, a quarter, an eighth, an eighth: boundaries belong to the code above them."""
    logits = np.log([0.125, 0.5, 0.125, 0.25])
    uniforms = [0.0, 0.49, 0.51, 0.74, 0.76, 0.874, 0.876, LARGEST]
    assert [draw_one(logits, u) for u in uniforms] == [1, 1, 3, 3, 0, 0, 2, 2]
    assert [draw_one(logits, u, top_k=2) for u in (0.66, 0.67, LARGEST)] == [1, 3, 3]
    assert [draw_one(logits, u, top_p=0.8) for u in (0.57, 0.58, 0.85, 0.86, LARGEST)] == [1, 3, 3, 0, 0]


def test_equal_logits_are_ordered_by_code():
    """So that every backend's sort may agree; top_k cuts the higher codes."""
    logits = torch.zeros(8)
    assert [draw_one(logits, (i + 0.5) / 8) for i in range(8)] == list(range(8))
    assert draw_one(logits, LARGEST, top_k=3) == 2


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1000.0])
def test_the_largest_uniform_stays_inside_what_is_kept(spread):
    """However the mass rounds: a code beyond top-k or top-p, or without any mass, is never drawn."""
    generator = torch.Generator().manual_seed(0)
    for top_k, top_p in ((900, 1.0), (37, 1.0), (900, 0.96), (37, 0.5)):
        logits_LV = spread * torch.randn(200, 1000, generator=generator)
        drawn_L = sample(logits_LV[None], torch.full((1, 200), LARGEST), top_k, top_p)[0]
        for logits_V, code in zip(logits_LV, drawn_L, strict=True):
            rank = int((logits_V > logits_V[code]).sum())
            assert rank < top_k
            assert (logits_V - logits_V.max()).exp()[code] > 0
            mass_before = reference.softmax(np.sort(logits_V.double().numpy())[::-1][:top_k])[:rank].sum()
            assert mass_before < top_p + 1e-5


def test_no_more_than_900_codes_are_ever_drawn_from():
    """As official VAR has it, and as the graphs sort; every one of the 900 can be drawn."""
    logits_V = torch.zeros(4096)
    logits_V[100:1000] = 1.0
    uniforms_BL = (torch.arange(SORTED_CODES) + 0.5)[None] / SORTED_CODES
    drawn = sample(logits_V.expand(1, SORTED_CODES, 4096), uniforms_BL, 900, 1.0)
    assert drawn[0].tolist() == list(range(100, 1000))


def test_guidance_is_one_plus_t_conditional_minus_t_unconditional():
    """At strength 0 the unconditional rows must not be felt, not even in the last bit."""
    logits_RLV = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(logits_RLV, 0.0), logits_RLV[:2])
    torch.testing.assert_close(guide(logits_RLV, 2.0), 3 * logits_RLV[:2] - 2 * logits_RLV[2:])


# ---- the uniform numbers


def test_uniforms_are_at_least_0_and_below_1():
    values = np.concatenate([token_uniforms(seed, 0, 9, 100_000) for seed in range(5)])
    assert values.dtype == np.float32
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.002 and abs(values.var() - 1 / 12) < 0.002


def test_a_token_s_number_depends_on_its_place_alone():
    """Not on how many tokens its scale has, nor on what was drawn before."""
    whole = token_uniforms(7, 3, 9, 256)
    token_uniforms(8, 4, 2, 9)
    for count in (1, 2, 7, 169):
        np.testing.assert_array_equal(token_uniforms(7, 3, 9, count), whole[:count])


def test_seeds_pictures_and_scales_have_streams_of_their_own():
    """Also when seed and picture change places, and for neighbours up to 2^64 (which floats could not tell apart)."""
    seeds = (0, 1, 7, 2**63, 2**63 + 1, 2**64 - 1)
    keys = [(seed, picture, si) for seed in seeds for picture in (0, 1, 7) for si in (0, 1, 9)]
    streams = np.stack([token_uniforms(*key, tokens=256) for key in keys])
    assert len({stream[:8].tobytes() for stream in streams}) == len(keys)
    correlation = np.corrcoef(streams) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.3  # 256 numbers: five standard deviations


def test_the_numbers_are_these_for_good():
    """A seed names a picture: another numpy, or another reading of the counter, must not change it."""
    assert token_uniforms(7, 2, 0, 1).tolist() == [0.28120195865631104]
    assert token_uniforms(7, 2, 9, 3).tolist() == [0.9110463857650757, 0.3346731662750244, 0.9299706816673279]


@pytest.mark.parametrize(("seed", "picture"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_numbers_beyond_64_bits_are_refused(seed, picture):
    with pytest.raises(ValueError, match="must lie in"):
        token_uniforms(seed, picture, 0, 1)
