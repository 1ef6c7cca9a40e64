"""Operations by formula against operations that PyTorch counts while the eager model runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from small_models import small_config, vivid_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from actvar.config import PRESETS, Activation, ModelConfig, VQVAEConfig
from actvar.flops import ROWS, ScaleWork, condition_work, decoder_work, scale_work, transformer_work
from actvar.generation import generate
from actvar.models.actvar import ActVAR, random_model
from actvar.models.experts import FFN
from actvar.models.kv_cache import KVCache

ACTIVE = Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))
CONFIGS = [
    small_config(),
    small_config(activation=ACTIVE),
    small_config(activation=replace(ACTIVE, token_rates=(1.0, 1.0))),
    small_config(activation=replace(ACTIVE, expert_rates=(1.0, 1.0))),
    small_config(activation=replace(ACTIVE, token_choice="fixed")),
    small_config(activation=replace(ACTIVE, expert_choice="static")),
    small_config(shared_adaln=True),
    small_config(vqvae=VQVAEConfig(48, 6, 16, (1, 2, 2, 3), 2, 8), depth=1),
]


def count(run: Callable[[], object]) -> tuple[dict[str, dict[str, int]], object]:
    """What PyTorch counts while this runs, by module and operator, and what it returns."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # of fused ones it knows too few
        result = run()
    found = {
        module: {str(operator): flops for operator, flops in of_module.items()}
        for module, of_module in counter.get_flop_counts().items()
    }
    return found, result


def total(counts: dict[str, dict[str, int]], module: str = "Global") -> int:
    return sum(counts.get(module, {}).values())


def as_parts(counts: dict[str, dict[str, int]], embedding: int) -> ScaleWork:
    """One scale's counts by part.

    PyTorch has one name for the two linear layers outside the blocks, and another for a router after its FFN is known.
    """
    return ScaleWork(
        embedding=embedding,
        projections=counts["SelfAttention"]["aten.addmm"],
        attention=counts["SelfAttention"]["aten.bmm"],
        ffn=total(counts, "FFN"),
        selector=total(counts, "Selector"),
        router=total(counts, "Router") + total(counts, "FFN.router"),
        head=total(counts, "Linear") - embedding,
    )


def only_active_experts(ffn: FFN, x: Tensor, gate: Tensor | None = None) -> Tensor:
    """The FFN, expert by expert: the eager one computes all of them and masks those that rest."""
    if gate is None:
        return original_ffn(ffn, x)
    experts = gate.shape[-1]
    rows, result = x.flatten(0, -2), torch.zeros_like(x.flatten(0, -2))
    size = ffn.fc1.out_features // experts
    for expert in range(experts):
        mine, part = gate.flatten(0, -2)[:, expert].bool(), slice(expert * size, (expert + 1) * size)
        hidden = torch.nn.functional.linear(rows[mine], ffn.fc1.weight[part], ffn.fc1.bias[part])
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
        result[mine] += torch.nn.functional.linear(hidden, ffn.fc2.weight[:, part])
    return (result + ffn.fc2.bias).view_as(x)


original_ffn = FFN.forward


@pytest.fixture
def sparse_ffn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the eager model compute what it is said to compute."""
    monkeypatch.setattr(FFN, "forward", only_active_experts)


def counted(model: ActVAR, rows_of_scales: Sequence[int]) -> tuple[int, list[ScaleWork], int]:
    """What PyTorch counts for one picture: condition, every scale with so many rows, decoder."""
    config, classes = model.config, torch.tensor([0, model.config.num_classes][: rows_of_scales[0]])
    counts, condition = count(lambda: model.var.condition(classes))
    work = total(counts)
    cache, scales = KVCache(config, rows_of_scales[0], model.var.pos_start), []
    for si, (tokens, rows) in enumerate(zip(config.schedule.tokens, rows_of_scales, strict=True)):
        tokens_in, given = torch.randn(rows, tokens, config.vqvae.z_channels) if si else None, condition.of_rows(rows)
        past = cache.past[:, :, :rows]
        counts, (_, new_kv) = count(lambda si=si, x=tokens_in, g=given, p=past: model.var.infer(x, g, p, si))
        cache.append(new_kv)
        embedding = total(count(lambda x=tokens_in: model.var.word_embed(x))[0]) if si else 0
        scales.append(as_parts(counts, embedding))
        assert scales[-1].total == total(counts)  # so that no part is left out
    side = config.schedule.side
    counts, _ = count(lambda: model.vqvae.decode(torch.randn(1, config.vqvae.z_channels, side, side)))
    return work, scales, total(counts)


@pytest.mark.parametrize("rows", [1, ROWS], ids=["without guidance", "with guidance"])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_formula_counts_what_runs(config: ModelConfig, rows: int, sparse_ffn: None):
    """Every matrix product and convolution of condition, decoder and each part of each scale, none twice."""
    condition, scales, decoder = counted(vivid_model(config), [rows] * 4)
    assert condition_work(config, rows) == condition
    assert [scale_work(config, si, rows) for si in range(4)] == scales
    assert decoder_work(config) == decoder
    assert transformer_work(config, rows) == condition + sum(scale.total for scale in scales)


@pytest.mark.parametrize("guided", [None, 3, 1, 0])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_scale_is_counted_with_the_rows_that_it_has(config: ModelConfig, guided: int | None, sparse_ffn: None):
    """Two up to the last guided scale, and one after it: no rows are named, and none are left out."""
    config = replace(config, guided_scales=guided)
    condition, scales, _ = counted(vivid_model(config), [1 + (guided is None or si < guided) for si in range(4)])
    assert condition_work(config) == condition
    assert [scale_work(config, si) for si in range(4)] == scales
    assert transformer_work(config) == condition + sum(scale.total for scale in scales)
    if guided == 0:
        assert 2 * transformer_work(config) == transformer_work(replace(config, guided_scales=None))


def test_the_expert_by_expert_ffn_of_this_test_is_the_models():
    """Otherwise the count above would be of another model."""
    model = vivid_model(small_config(activation=ACTIVE))
    ffn, x = model.var.blocks[0].ffn, torch.randn(2, 7, model.config.width)
    gate = torch.rand(2, 7, 16) < 0.4
    torch.testing.assert_close(only_active_experts(ffn, x, gate), ffn(x, gate), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", [None, Activation()], ids=["dense", "active"])
def test_a_whole_picture_of_a_mini_model_within_a_hundredth(activation: Activation | None, sparse_ffn: None):
    """With all that the formula leaves out: the quantizer's small maps between the scales."""
    config = replace(PRESETS["mini"], depth=2, activation=activation)
    model = random_model(config)
    counts, _ = count(lambda: generate(model, [88], config.sampling))
    assert transformer_work(config) + decoder_work(config) == pytest.approx(total(counts), rel=0.01)


def test_experts_that_rest_are_saved_and_their_router_is_paid():
    """At 3 of 4 experts a quarter of the FFN's 8 C^2 goes, for each kept token; a router of C x N comes."""
    whole = small_config(activation=Activation(4, (4,), (0.5,), (1.0,)))
    routed = replace(whole, activation=Activation(4, (4,), (0.5,), (0.75,)))
    kept, width, depth, rows = whole.kept_tokens(3), whole.width, whole.depth, 2
    saved = scale_work(whole, 3).linear - scale_work(routed, 3).linear
    assert saved == 2 * rows * depth * kept * 8 * width * width // 4
    paid = scale_work(routed, 3).choosing - scale_work(whole, 3).choosing
    assert paid == 2 * rows * depth * kept * width * 4
