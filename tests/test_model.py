"""VAR and ActVAR against themselves: training against inference, all-active against dense, alone against in a batch.

Letters in shapes: B pictures, R rows, L tokens of a scale, K kept, T tokens of all scales, C width, h heads, d = 64.
"""

import numpy as np
import pytest
import torch
from small_models import small_config, vivid_model
from torch import Tensor

from actvar.config import PRESETS, Activation, ModelConfig, Sampling
from actvar.generation import generate
from actvar.models.actvar import ActVAR, random_model
from actvar.models.kv_cache import KVCache
from actvar.models.selection import token_gather, token_scatter, token_select, top_mask
from actvar.models.var import Condition
from actvar.parameters import is_scorer
from actvar.scales import STANDARD_PATCH_NUMS

SAMPLING = Sampling(cfg=1.5, top_k=20, top_p=0.9)

# Any scales, any rates, any N that divides 4C (512 at depth 2, 768 at depth 3).
ODD_ACTIVATIONS = {
    "the paper's, on the last two": ((1, 2, 3, 5), 2, Activation(16, (3, 4), (0.75, 0.75), (0.75, 0.75))),
    "tokens alone": ((1, 2, 3, 5), 2, Activation(1, (4,), (0.3,), (1.0,))),
    "experts alone, named out of order": ((1, 2, 3, 5), 2, Activation(4, (4, 2), (1.0, 1.0), (0.25, 0.5))),
    "every scale, many experts": ((1, 2, 4), 2, Activation(64, (1, 2, 3), (0.5, 0.5, 0.1), (0.5, 0.9, 0.01))),
    "three experts, a scale in the middle": ((1, 3, 4), 3, Activation(3, (2,), (0.6,), (0.34,))),
    "no scale at all": ((1, 2, 3), 2, Activation(16, (), (), ())),
    "Table 4's baseline": ((1, 2, 3, 5), 3, Activation(16, (3, 4), (0.75, 0.5), (0.75, 0.75), "fixed")),
    "Table 5's baseline": ((1, 2, 3, 5), 2, Activation(4, (3, 4), (0.75, 0.5), (0.75, 0.25), "dynamic", "static")),
    "both baselines, not at the last scale": ((1, 3, 4), 3, Activation(32, (2,), (0.6,), (0.5,), "fixed", "static")),
    "fixed tokens at one of two active scales": (
        (1, 2, 4),
        2,
        Activation(8, (3, 2), (1.0, 0.5), (0.75, 1.0), "fixed"),
    ),
}


def random_tokens(config: ModelConfig, batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vqvae.vocab_size, (batch, config.schedule.total), generator=generator)


def inferred_logits(model: ActVAR, class_ids_B: Tensor, token_ids_BT: Tensor) -> Tensor:
    """Logits of known tokens as inference makes them: scale by scale, against the KV cache."""
    config, quantizer = model.config, model.vqvae.quantize
    batch = len(class_ids_B)
    condition, cache = model.var.condition(class_ids_B), KVCache(config, batch, model.var.pos_start)
    f_hat_BEHH = torch.zeros(batch, quantizer.width, config.schedule.side, config.schedule.side)
    all_logits = []
    for si, (start, tokens) in enumerate(zip(config.schedule.starts, config.schedule.tokens, strict=True)):
        tokens_in = quantizer.tokens_in(f_hat_BEHH, si) if si else None
        logits_BLV, new_kv = model.var.infer(tokens_in, condition, cache.past, si)
        cache.append(new_kv)
        f_hat_BEHH = f_hat_BEHH + quantizer.contribution(token_ids_BT[:, start : start + tokens], si)
        all_logits.append(logits_BLV)
    return torch.cat(all_logits, dim=1)


def trained_logits(model: ActVAR, class_ids_B: Tensor, token_ids_BT: Tensor, straight_through: bool = False) -> Tensor:
    """The same by teacher forcing, in one pass."""
    inputs_BTE, _ = model.vqvae.quantize.teacher_forcing(token_ids_BT)
    return model.var(class_ids_B, inputs_BTE, straight_through)[0]


# ---- training against inference


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_training_and_inference_agree_for_a_dense_model(shared_adaln):
    model = vivid_model(small_config(STANDARD_PATCH_NUMS, shared_adaln=shared_adaln))
    class_ids_B, token_ids_BT = torch.tensor([1, 5]), random_tokens(model.config, 2)
    found, expected = (logits(model, class_ids_B, token_ids_BT) for logits in (trained_logits, inferred_logits))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ODD_ACTIVATIONS)
def test_training_and_inference_agree_for_a_sparse_model(case):
    """The mask of the training hides what inference has not cached, and no more; the two choose alike."""
    patch_nums, depth, activation = ODD_ACTIVATIONS[case]
    model = vivid_model(small_config(patch_nums, activation, depth))
    class_ids_B, token_ids_BT = torch.tensor([0, 3, 5]), random_tokens(model.config, 3)
    expected = inferred_logits(model, class_ids_B, token_ids_BT)
    torch.testing.assert_close(trained_logits(model, class_ids_B, token_ids_BT), expected, rtol=0, atol=2e-5)
    through = trained_logits(model, class_ids_B, token_ids_BT, straight_through=True)
    torch.testing.assert_close(through, expected, rtol=0, atol=2e-5)  # straight-through is of gradients, not of values


def test_leaving_out_changes_the_result():
    """Else the tests above would hold for a model that leaves nothing out."""
    patch_nums, depth, activation = ODD_ACTIVATIONS["the paper's, on the last two"]
    sparse = vivid_model(small_config(patch_nums, activation, depth))
    dense = vivid_model(small_config(patch_nums, None, depth))
    ids = random_tokens(dense.config, 1)
    a_LV, b_LV = (inferred_logits(model, torch.tensor([2]), ids)[0] for model in (dense, sparse))
    assert torch.equal(a_LV[:5], b_LV[:5])  # scales 1 and 2 are dense in both
    assert (a_LV[5:] - b_LV[5:]).abs().amax(dim=1).min() > 1e-3  # of 3 and 4 every token feels it


def test_a_training_pass_over_the_first_scales_is_the_start_of_the_whole():
    """A scale sees only those before it, so progressive training may stop at any."""
    model = vivid_model(small_config((1, 2, 3, 5), Activation(16, (2, 4), (0.75, 0.75), (0.75, 0.75))))
    class_ids_B, token_ids_BT = torch.tensor([1, 4]), random_tokens(model.config, 2)
    whole = trained_logits(model, class_ids_B, token_ids_BT)
    for count in (1, 5, 14):
        found = trained_logits(model, class_ids_B, token_ids_BT[:, :count])
        torch.testing.assert_close(found, whole[:, :count], rtol=0, atol=1e-5)


# ---- all active


def test_all_tokens_and_experts_active_is_the_dense_model_bit_for_bit():
    """Router and selector are there and must not be felt: b2 is added once, and nothing is gathered or masked."""
    activation = Activation(16, (1, 2, 3, 4), (1.0,) * 4, (1.0,) * 4)
    dense, full = vivid_model(small_config()), vivid_model(small_config(activation=activation))
    assert not torch.equal(full.var.blocks[0].ffn.router.weight, torch.zeros(16, 128))
    class_ids_B, token_ids_BT = torch.tensor([1, 5]), random_tokens(dense.config, 2)
    for logits in (inferred_logits, trained_logits):
        assert torch.equal(logits(full, class_ids_B, token_ids_BT), logits(dense, class_ids_B, token_ids_BT))
    a, b = (generate(model, [3], SAMPLING, seed=1).pictures_B3HW for model in (dense, full))
    assert torch.equal(a, b)


def test_active_experts_are_the_slices_that_the_router_scores_highest():
    """Expert i is rows i*de on of fc1 and columns i*de on of fc2, added up without weights, b2 once (Eq. 4)."""
    model = vivid_model(small_config(activation=Activation(8, (4,), (1.0,), (0.5,))))
    ffn, width = model.var.blocks[1].ffn, 512 // 8
    x_LC = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    scores_LN = ffn.router(x_LC)
    found_LC = ffn(x_LC, top_mask(scores_LN, 4))
    for x_C, scores_N, found_C in zip(x_LC, scores_LN, found_LC, strict=True):
        expected_C = ffn.fc2.bias.clone()
        for expert in sorted(range(8), key=lambda i: -scores_N[i])[:4]:
            mine = slice(expert * width, (expert + 1) * width)
            hidden = torch.nn.functional.gelu(ffn.fc1.weight[mine] @ x_C + ffn.fc1.bias[mine], approximate="tanh")
            expected_C = expected_C + ffn.fc2.weight[:, mine] @ hidden
        torch.testing.assert_close(found_C, expected_C, rtol=0, atol=1e-5)


# ---- skipped tokens


def test_skipped_tokens_pass_unchanged_and_leave_nothing_in_the_cache():
    """Each row keeps its own tokens; the rest is copied (Eq. 9), and later scales cannot see it."""
    config = small_config((1, 2, 4), Activation(16, (3,), (0.6,), (1.0,)))
    block, dense = vivid_model(config).var.blocks[0], vivid_model(config.dense()).var.blocks[0]
    generator = torch.Generator().manual_seed(0)
    x_RLC, past = torch.randn(2, 16, 128, generator=generator), torch.randn(2, 2, 2, 5, 64, generator=generator)
    modulation_R6C = torch.randn(2, 6, 128, generator=generator)
    out_RLC, new_kv_2RhKd, _ = block.infer(x_RLC, modulation_R6C, past, 2)
    assert new_kv_2RhKd.shape == (2, 2, 2, 10, 64)  # 0.6 * 16 = 9.6 tokens, rounded

    best_RL = block.selector(x_RLC).argsort(dim=1, descending=True)
    kept = [set(row[:10].tolist()) for row in best_RL]
    assert kept[0] != kept[1]
    changed_RL = (out_RLC != x_RLC).any(dim=2)
    assert [set(row.nonzero().flatten().tolist()) for row in changed_RL] == kept
    for row in range(2):  # the kept tokens become what a dense block makes of them where there are no others
        alone = x_RLC[row, sorted(kept[row])][None]
        expected, expected_kv, _ = dense.infer(alone, modulation_R6C[row : row + 1], past[:, row : row + 1], 0)
        torch.testing.assert_close(out_RLC[row, sorted(kept[row])], expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(new_kv_2RhKd[:, row], expected_kv[:, 0], rtol=0, atol=1e-5)


def test_the_cache_grows_by_the_kept_tokens():
    config = small_config((1, 2, 4), Activation(16, (2, 3), (0.5, 0.6), (1.0, 1.0)))
    model = vivid_model(config)
    condition, cache = model.var.condition(torch.tensor([0, 5])), KVCache(config, 2, model.var.pos_start)
    lengths = []
    for si, tokens in enumerate(config.schedule.tokens):
        lengths.append(cache.past.shape[-2])
        _, new_kv = model.var.infer(torch.zeros(2, tokens, 6) if si else None, condition, cache.past, si)
        before = cache.past.clone()
        cache.append(new_kv)
        assert torch.equal(cache.past, torch.cat((before, new_kv), dim=-2))
    assert tuple(lengths) == config.cached_tokens == (0, 1, 3)
    assert cache.past.shape == (2, 2, 2, 2, 13, 64)


# ---- the baselines of Tables 4 and 5


def inputs_of_last_scale(model: ActVAR) -> tuple[Tensor, Condition, Tensor]:
    """Two rows' tokens, condition and cache, all random."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    tokens_in = torch.randn(2, config.schedule.tokens[-1], config.vqvae.z_channels, generator=generator)
    past = torch.randn(config.depth, 2, 2, config.heads, config.cached_tokens[-1], 64, generator=generator)
    return tokens_in, model.var.condition(torch.tensor([1, 5])), past


def test_fixed_tokens_are_a_shorter_sequence_from_the_first_block_on():
    """Row by row: a dense model of those tokens alone; the others reach the head as they came in, and no cache."""
    config = small_config((1, 2, 4), Activation(16, (3,), (0.6,), (1.0,), "fixed"), depth=3)
    model, dense = vivid_model(config), vivid_model(config.dense())
    tokens_in, condition, past = inputs_of_last_scale(model)
    logits_RLV, new_kv = model.var.infer(tokens_in, condition, past, 2)
    embedded_RLC = model.var.word_embed(tokens_in) + model.var.positions(2)
    chosen = [set(row[:10].tolist()) for row in model.var.blocks[0].selector(embedded_RLC).argsort(1, descending=True)]
    assert chosen[0] != chosen[1]
    for row, places in enumerate(map(sorted, chosen)):
        x_1KC, of_row = embedded_RLC[row, places][None], slice(row, row + 1)
        for i, block in enumerate(dense.var.blocks):
            x_1KC, kv, _ = block.infer(x_1KC, condition.modulation_DR6C[i, of_row], past[i][:, of_row], 0)
            torch.testing.assert_close(new_kv[i][:, of_row], kv, rtol=0, atol=1e-5)
        hidden_LC = embedded_RLC[row].clone()
        hidden_LC[places] = x_1KC[0]
        expected_1LV = dense.var.logits(hidden_LC[None], condition.head_modulation_R2C[of_row])
        torch.testing.assert_close(logits_RLV[of_row], expected_1LV, rtol=0, atol=1e-5)


def test_static_experts_are_a_dense_model_whose_other_neurons_are_cut_out():
    """Of every block the same neurons for all tokens; which, its router's bias says."""
    config = small_config((1, 2, 4), Activation(8, (3,), (1.0,), (0.375,), expert_choice="static"))
    model, pruned = vivid_model(config), vivid_model(config.dense())
    kept = []
    for block, of_pruned in zip(model.var.blocks, pruned.var.blocks, strict=True):
        bias = block.ffn.router.bias.tolist()
        kept.append(sorted(range(8), key=lambda expert: -bias[expert])[:3])
        for expert in set(range(8)) - set(kept[-1]):
            of_pruned.ffn.fc2.weight[:, expert * 64 : (expert + 1) * 64] = 0
    assert set(kept[0]) != set(kept[1])
    inputs = inputs_of_last_scale(model)
    (logits_RLV, new_kv), (expected_RLV, expected_kv) = (each.var.infer(*inputs, 2) for each in (model, pruned))
    torch.testing.assert_close(logits_RLV, expected_RLV, rtol=0, atol=1e-5)
    torch.testing.assert_close(new_kv, expected_kv, rtol=0, atol=1e-5)


def test_a_baseline_has_no_weights_that_it_never_reads():
    """Else data-parallel training would wait for gradients that never come."""
    activation = Activation(16, (3, 4), (0.75, 0.75), (0.75, 0.75), "fixed", "static")
    model = vivid_model(small_config(activation=activation)).requires_grad_(True)
    class_ids_B, token_ids_BT = torch.tensor([0, 3]), random_tokens(model.config, 2)
    trained_logits(model, class_ids_B, token_ids_BT, straight_through=True).square().sum().backward()
    scorers = {name: p for name, p in model.var.named_parameters() if is_scorer(name)}
    assert scorers.keys() == {
        "blocks.0.selector.weight",
        "blocks.0.selector.bias",
        "blocks.0.ffn.router.bias",
        "blocks.1.ffn.router.bias",
    }
    assert all(p.grad is not None and (name.endswith("selector.bias") or p.grad.any()) for name, p in scorers.items())


@pytest.mark.parametrize("experts", [4, 8, 16, 32])
def test_every_number_of_experts_of_figure_9_trains_and_draws(experts):
    """At the paper's rates; three quarters of 4 are 3."""
    activation = Activation(experts, (3, 4), (0.75, 0.75), (0.75, 0.75))
    model = vivid_model(small_config(activation=activation))
    assert model.config.active_experts(3) == experts * 3 // 4
    _, traces = model.var(torch.tensor([1]), torch.randn(1, 38, 6))
    assert (traces[0].active_RTN[0].sum(1)[14:] == experts * 3 // 4).all()
    assert torch.isfinite(generate(model, [1], SAMPLING).pictures_B3HW).all()


# ---- choosing

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "keep", "expected"),
    [
        ([1, 3, 3, 2, 3], 2, [1, 2]),  # equal scores: the lower place first
        ([3, 3, 3, 3, 3], 3, [0, 1, 2]),
        ([0.0, -0.0, 0.0, -0.0], 2, [0, 1]),  # the two zeros are equal
        ([-0.0, 0.0, -0.0, 0.0], 1, [0]),
        ([1, NAN, INF, 2], 1, [1]),  # NaN is larger than anything
        ([INF, NAN, -NAN, NAN], 2, [1, 2]),  # and equal to itself
        ([-INF, -1, -INF, -2], 3, [0, 1, 3]),
        ([5, 4, 3, 2], 4, [0, 1, 2, 3]),
        ([2, 9, 4], 2, [1, 2]),  # ascending by place, not by score
    ],
)
def test_choices_are_decided_for_every_kind_of_tie(scores, keep, expected):
    """A kernel has to choose alike, and training (a mask) like inference (indices)."""
    scores_RL = torch.tensor([scores], dtype=torch.float32)
    assert token_select(scores_RL, keep)[0].tolist() == expected
    assert top_mask(scores_RL, keep)[0].nonzero().flatten().tolist() == expected


def test_choices_agree_with_a_plain_sort_on_many_ties():
    scores_RL = torch.randint(4, (20, 169), generator=torch.Generator().manual_seed(0)).float()
    for scores, places, mask in zip(scores_RL, token_select(scores_RL, 127), top_mask(scores_RL, 127), strict=True):
        expected = sorted(sorted(range(169), key=lambda i: (-scores[i], i))[:127])
        assert places.tolist() == expected == mask.nonzero().flatten().tolist()


def test_scattering_what_was_gathered_changes_nothing():
    x_RLC = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    places_RK = torch.tensor([[0, 3, 6], [1, 2, 4]])
    gathered = token_gather(x_RLC, places_RK)
    assert torch.equal(gathered, torch.stack([x_RLC[0, [0, 3, 6]], x_RLC[1, [1, 2, 4]]]))
    assert torch.equal(token_scatter(x_RLC, places_RK, gathered), x_RLC)


# ---- generation


@pytest.mark.parametrize("activation", [None, Activation()], ids=["dense", "sparse"])
def test_a_picture_is_the_same_alone_and_in_a_batch(activation):
    """Uniform numbers belong to the picture and its number, and no row looks at another."""
    model = vivid_model(small_config(STANDARD_PATCH_NUMS, activation))
    together = generate(model, [4, 0, 2], SAMPLING, seed=7)
    alone = generate(model, [2], SAMPLING, seed=7, picture_numbers=[2])
    turned = generate(model, [2, 4], SAMPLING, seed=7, picture_numbers=[2, 0])
    for si in range(10):
        assert torch.equal(together.token_ids[si][2], alone.token_ids[si][0])
        assert torch.equal(together.token_ids[si][[2, 0]], turned.token_ids[si])
    torch.testing.assert_close(together.pictures_B3HW[2], alone.pictures_B3HW[0], rtol=0, atol=1e-5)


def test_class_seed_number_and_sampling_each_change_the_picture():
    model = vivid_model(small_config())

    def tokens(class_id: int = 1, sampling: Sampling = SAMPLING, seed: int = 0, number: int = 0) -> list[int]:
        found = generate(model, [class_id], sampling, seed, picture_numbers=[number])
        return torch.cat(found.token_ids, dim=1)[0].tolist()

    base = tokens()
    assert base == tokens()
    changed = [tokens(class_id=2), tokens(seed=1), tokens(number=1), tokens(sampling=Sampling(4.0, 20, 0.9))]
    changed += [tokens(sampling=Sampling(1.5, 1, 0.9)), tokens(sampling=Sampling(1.5, 20, 0.2))]
    assert all(other != base for other in changed)


def test_a_generation_s_parts_fit_each_other():
    """Tokens, decoded by the quantizer, are f_hat; f_hat, decoded by the VQVAE, is the picture in [0, 1]."""
    model = vivid_model(small_config())
    found = generate(model, [0, 1], SAMPLING)
    f_hat_BEHH = model.vqvae.quantize.decode(torch.cat(found.token_ids, dim=1))
    torch.testing.assert_close(f_hat_BEHH, found.f_hats[-1], rtol=0, atol=1e-5)
    pictures = model.vqvae.decode(f_hat_BEHH)
    torch.testing.assert_close(found.pictures_B3HW, (pictures + 1) / 2, rtol=0, atol=1e-5)
    assert found.pictures_B3HW.min() >= 0 and found.pictures_B3HW.max() <= 1
    assert found.pictures_B3HW.shape == (2, 3, model.config.picture_size, model.config.picture_size)


def test_a_random_model_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone():
    config = small_config(activation=Activation(16, (3, 4)))
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    a, b, other = random_model(config, 1), random_model(config, 1), random_model(config, 2)
    assert torch.equal(torch.rand(3), expected_next)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.var.head.weight, other.var.head.weight)
    tokens = [torch.cat(generate(a, [c], SAMPLING).token_ids, dim=1) for c in (0, 1)]
    assert not torch.equal(*tokens)  # its gates are open: the class shows


# ---- sizes


def test_the_presets_have_the_published_numbers_of_parameters():
    """310 M, 600 M, 1.0 B, 2.0 B and 2.3 B (VAR's README), and 109 M for the VQVAE; without allocating them."""
    with torch.device("meta"):
        models = {name: ActVAR(PRESETS[name]) for name in ("d16", "d20", "d24", "d30", "d36")}
    millions = {name: sum(p.numel() for p in model.var.parameters()) / 1e6 for name, model in models.items()}
    np.testing.assert_allclose([millions[name] for name in models], [310, 600, 1000, 2000, 2300], rtol=0.04)
    assert sum(p.numel() for p in models["d16"].vqvae.parameters()) == pytest.approx(109e6, rel=0.01)
