"""The models against `reference_var`, an independent reading of official VAR in float64.

Tolerances are for fp32 on values of the order of 1. Letters in shapes: as in `reference_var`; B pictures, R rows.
"""

from dataclasses import replace

import numpy as np
import pytest
import reference_var as reference
import torch
from small_models import SMALL_VQVAE, small_config, vivid_model

from actvar.bundle.contract import DRAWN
from actvar.config import Sampling, VQVAEConfig
from actvar.editing.area import Keep, Rectangle, Replace, kept_by_rectangle, kept_tokens
from actvar.generation import generate
from actvar.models.actvar import ActVAR
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.models.vqvae import VQVAE
from actvar.sampling import guide, sample
from actvar.scales import LARGE_PATCH_NUMS, MAX_SCALES, STANDARD_PATCH_NUMS, ScaleSchedule
from actvar.uniforms import token_uniforms


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


def assert_agrees(found: torch.Tensor, expected: np.ndarray, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=atol)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> ActVAR:
    return vivid_model(small_config())


# ---- the transformer


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_a_block_with_its_cache_agrees_over_three_scales(shared_adaln):
    """Order of the six AdaLN parts, norms, GELU, cut temperature, biases, and what a scale leaves for the next."""
    config = small_config((1, 2, 3), shared_adaln=shared_adaln)
    var = vivid_model(config).var
    state, class_ids = state_of(var), [3, 5]
    modulation_R6C = var.condition(torch.tensor(class_ids)).modulation_DR6C[1]
    caches = [reference.Cache() for _ in class_ids]
    past = torch.empty(2, len(class_ids), config.heads, 0, 64)
    for si, tokens in enumerate(config.schedule.tokens):
        x_RLC = normal(len(class_ids), tokens, config.width, seed=si)
        out_RLC, new_kv, _ = var.blocks[1].infer(x_RLC, modulation_R6C, past, si)
        past = torch.cat((past, new_kv), dim=3)
        for row, class_id in enumerate(class_ids):
            class_C = state["class_emb.weight"][class_id]
            expected_LC = reference.block(state, 1, x_RLC[row].double().numpy(), class_C, caches[row])
            assert_agrees(out_RLC[row], expected_LC)
            assert_agrees(past[0, row].transpose(0, 1), np.stack(caches[row].keys))
            assert_agrees(past[1, row].transpose(0, 1), np.stack(caches[row].values))


def test_logits_of_a_first_scale_agree(model):
    """Start token (class, position, level) and head."""
    condition = model.var.condition(torch.tensor([2, 5]))
    logits_RLV, _ = model.var.infer(None, condition, torch.empty(2, 2, 2, 2, 0, 64), 0)
    for row, class_id in enumerate((2, 5)):
        assert_agrees(logits_RLV[row], reference.Row(state_of(model.var), (1, 2, 3, 5), class_id).logits(0, None))


# ---- the quantizer


@pytest.mark.parametrize("patch_nums", [STANDARD_PATCH_NUMS, LARGE_PATCH_NUMS])
def test_resizes_agree_with_their_definitions(patch_nums):
    """Enlarging and shrinking between every scale and the last, which is all that the quantizer does."""
    quantizer = MultiScaleQuantizer(4, 3, ScaleSchedule(patch_nums))
    quantizer.quant_resi = torch.nn.Module()  # without phi, `enlarge` is the resize alone
    quantizer.quant_resi.qresi_ls = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    large_EHH = normal(3, patch_nums[-1], patch_nums[-1])
    for si, p in enumerate(patch_nums):
        small_EL = normal(3, p * p, seed=si)
        expected = reference.bicubic(small_EL.double().numpy().reshape(3, p, p), patch_nums[-1])
        assert_agrees(quantizer.enlarge(small_EL.T[None], si)[0], expected)
        shrunk_EL = reference.area(large_EHH.double().numpy(), p).reshape(3, -1)
        assert_agrees(quantizer.tokens_in(large_EHH[None], si)[0], shrunk_EL.T)


def test_phi_by_scale_is_what_official_training_used():
    """Scales 3 and 8 of ten lie halfway between two ticks: rounding decided, and the checkpoints were trained so."""
    table = [reference.phi_index(si, 10) for si in range(10)]
    assert table == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    for patch_nums in (STANDARD_PATCH_NUMS, LARGE_PATCH_NUMS, (1, 2, 3, 5), (1, 2, 3, 4, 5), (1, 3, 4, 6, 7, 8, 9)):
        found = ScaleSchedule(patch_nums).phi_indices(4)
        assert list(found) == [reference.phi_index(si, len(patch_nums)) for si in range(len(patch_nums))]


@pytest.mark.parametrize("scales", range(2, MAX_SCALES + 1))
def test_phi_of_any_number_of_scales_is_official_vars_choice(scales):
    """One scale of 10, 19, 28 … 64 lies halfway between two ticks, where a tick's last bit decides.

    One scale alone is no schedule: official VAR divides by the number of scales less one.
    """
    schedule = ScaleSchedule(tuple(range(1, scales + 1)))
    for phis in (1, 2, 3, 4, 5, 7, scales):
        expected = [reference.phi_index(si, scales, phis) for si in range(scales)]
        assert list(schedule.phi_indices(phis)) == expected, phis
    assert list(schedule.phi_indices(scales)) == list(range(scales)) or scales == 4, "each scale has its own"


def test_the_quantizer_step_agrees_at_all_ten_scales():
    """f_hat after each scale, and what the next one reads; the tokens are random."""
    config = small_config(STANDARD_PATCH_NUMS)
    quantizer = vivid_model(config).vqvae.quantize
    state = {f"quantize.{name}": value for name, value in state_of(quantizer).items()}
    f_hat_BEHH, expected = torch.zeros(1, 6, 16, 16), np.zeros((6, 16, 16))
    for si, p in enumerate(STANDARD_PATCH_NUMS):
        ids_L = torch.randint(48, (p * p,), generator=torch.Generator().manual_seed(si))
        f_hat_BEHH = f_hat_BEHH + quantizer.contribution(ids_L[None], si)
        expected = expected + reference.contribution(state, STANDARD_PATCH_NUMS, si, ids_L.tolist())
        assert_agrees(f_hat_BEHH[0], expected)
        if si < 9:
            following = STANDARD_PATCH_NUMS[si + 1]
            assert_agrees(quantizer.tokens_in(f_hat_BEHH, si + 1)[0], reference.tokens_in(expected, following))


@pytest.mark.parametrize(("phis", "znorm"), [(4, False), (3, False), (1, True), (10, True)])
def test_residual_quantisation_chooses_the_same_tokens(phis: int, znorm: bool):
    """Convolutions that all scales share, that some do, and that each has for itself; by distance and by angle."""
    config = small_config(STANDARD_PATCH_NUMS, vqvae=replace(SMALL_VQVAE, phi_count=phis, znorm=znorm))
    quantizer = vivid_model(config).vqvae.quantize
    state = {f"quantize.{name}": value for name, value in state_of(quantizer).items()}
    f_BEHH = normal(1, 6, 16, 16)
    expected, margin = reference.quantise(state, STANDARD_PATCH_NUMS, f_BEHH[0].double().numpy(), znorm)
    assert margin > 1e-5  # else the seed is a bad one: rounding may choose
    assert quantizer.encode(f_BEHH)[0].tolist() == expected


# ---- the convolutional networks


@pytest.fixture(scope="module", params=[(1, 2), (1, 2, 3)], ids=str)
def vqvae(request) -> tuple[VQVAE, int]:
    """Two shapes, the second with a level in the middle and two blocks to a level; and their norms' groups."""
    mult = request.param
    shape = VQVAEConfig(48, 6, ch=16, ch_mult=mult, num_res_blocks=len(mult) - 1, norm_groups=8)
    return vivid_model(small_config(vqvae=shape)).vqvae, 8


def test_the_encoder_agrees(vqvae):
    network, groups = vqvae
    side = 8 * (len(network.encoder.down) - 1)
    picture = normal(1, 3, side, side).clamp(-1, 1)
    expected = reference.encode(state_of(network), picture[0].double().numpy(), groups)
    assert_agrees(network.quant_conv(network.encoder(picture))[0], expected)


def test_the_decoder_agrees_and_is_clamped(vqvae):
    network, groups = vqvae
    f_hat = normal(1, 6, 5, 5)
    expected = reference.decode(state_of(network), f_hat[0].double().numpy(), groups)
    assert expected.max() == 1 or expected.min() == -1  # some of it must meet the clamp
    assert np.abs(expected).min() < 0.1
    assert_agrees(network.decode(f_hat)[0], expected)


# ---- sampling


@pytest.mark.parametrize(("top_k", "top_p"), [(900, 0.96), (7, 0.96), (7, 0.5), (48, 0.3), (1, 1.0), (48, 1.0)])
def test_sampling_agrees_token_by_token(top_k, top_p):
    """Guidance, then cuts and draw: the ascending top-p of official VAR keeps what `sample`'s descending one keeps."""
    logits_RLV = 2 * normal(2, 60, 48)
    uniforms_L = np.random.default_rng(0).random(60)
    guided_LV = (1 + 1.5) * logits_RLV[0].double().numpy() - 1.5 * logits_RLV[1].double().numpy()
    drawn = [
        reference.draw(reference.distribution(logits_V, top_k, top_p), uniform)
        for logits_V, uniform in zip(guided_LV, uniforms_L, strict=True)
    ]
    expected, margins = zip(*drawn, strict=True)
    assert min(margins) > 1e-5  # of the seed: no uniform number lies on a boundary
    guided_BLV = guide(logits_RLV, 1.5)
    assert_agrees(guided_BLV[0], guided_LV)
    found = sample(guided_BLV, torch.from_numpy(uniforms_L).float()[None], top_k, top_p)
    assert found[0].tolist() == list(expected)


@pytest.mark.parametrize(
    ("class_id", "area"),
    [(5, Replace(0.2, 0.2, 0.8, 0.8)), (5, Keep(0.2, 0, 0.8, 0.8)), (3, Replace(0, 0.4, 0.6, 1))],
    ids=["in-painting", "out-painting", "another class"],
)
def test_editing_agrees(class_id: int, area: Rectangle):
    """As official VAR's notebook does it: everything is drawn, and what the mask keeps is put back at every scale."""
    model, patch_nums = vivid_model(small_config((1, 2, 3, 5))), (1, 2, 3, 5)
    schedule, random = model.config.schedule, np.random.default_rng(8)
    own = [random.integers(48, size=tokens) for tokens in schedule.tokens]
    uniforms = [token_uniforms(11, 0, si, tokens) for si, tokens in enumerate(schedule.tokens)]
    kept_SS = np.zeros((5, 5))
    kept_SS[round(area.y0 * 5) : round(area.y1 * 5), round(area.x0 * 5) : round(area.x1 * 5)] = 1
    kept_SS = kept_SS if isinstance(area, Keep) else 1 - kept_SS
    expected = reference.generate(state_of(model), patch_nums, class_id, uniforms, 1.5, 20, 0.9, 8, own, kept_SS)
    assert expected.margin > 5e-5  # of the seed
    edit = zip(kept_tokens(kept_by_rectangle(area, 5), schedule), own, strict=True)
    given = [np.where(kept_L, codes_L, DRAWN)[None] for kept_L, codes_L in edit]
    found = generate(model, [class_id], Sampling(1.5, 20, 0.9), seed=11, picture_numbers=[0], given=given)
    assert [ids[0].tolist() for ids in found.token_ids] == expected.ids
    assert_agrees(found.f_hats[-1][0], expected.f_hats[-1])


def test_a_whole_picture_agrees():
    """Ten scales with cache, guidance that grows, sampling and decoder: the same 680 tokens, and the same picture."""
    config = small_config(STANDARD_PATCH_NUMS)
    model = vivid_model(config)
    uniforms = [token_uniforms(11, 4, si, tokens) for si, tokens in enumerate(config.schedule.tokens)]
    expected = reference.generate(state_of(model), STANDARD_PATCH_NUMS, 3, uniforms, 1.5, 20, 0.9, groups=8)
    assert expected.margin > 5e-5  # of the seed: no draw is so near a boundary that rounding may decide it
    found = generate(model, [3], Sampling(cfg=1.5, top_k=20, top_p=0.9), seed=11, picture_numbers=[4])
    assert [ids[0].tolist() for ids in found.token_ids] == expected.ids
    for si in range(10):
        assert_agrees(found.f_hats[si][0], expected.f_hats[si])
        assert_agrees(found.guided_logits[si][0], expected.logits[si], atol=3e-5)  # values of 10, two errors
    assert_agrees(found.pictures_B3HW[0], expected.picture_3HH)
