"""Operations by formula against operations that PyTorch counts while the eager model runs."""

from dataclasses import replace

import pytest
import torch
from small_models import small_config, vivid_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from actvar.config import PRESETS, Activation, ModelConfig, VQVAEConfig
from actvar.flops import condition_work, decoder_work, scale_work, transformer_work
from actvar.models.actvar import ActVAR
from actvar.models.kv_cache import KVCache

ACTIVE = Activation(16, (3, 4), (0.75, 0.5), (1.0, 1.0))  # the eager FFN computes all experts and masks them


def counted(model: ActVAR) -> tuple[int, list[int], int]:
    """What PyTorch counts for one picture: condition, every scale, decoder."""
    config, rows = model.config, torch.tensor([0, model.config.num_classes])

    def count(run) -> tuple[int, object]:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # of fused ones it knows too few
            result = run()
        return counter.get_total_flops(), result

    work, condition = count(lambda: model.var.condition(rows))
    cache, scales = KVCache(config, 2, model.var.pos_start), []
    for si, tokens in enumerate(config.schedule.tokens):
        tokens_in = torch.randn(2, tokens, config.vqvae.z_channels) if si else None
        scale, (_, new_kv) = count(lambda si=si, x=tokens_in: model.var.infer(x, condition, cache.past, si))
        cache.append(new_kv)
        scales.append(scale)
    side = config.schedule.side
    decoder, _ = count(lambda: model.vqvae.decode(torch.randn(1, config.vqvae.z_channels, side, side)))
    return work, scales, decoder


@pytest.mark.parametrize(
    "config",
    [
        small_config(),
        small_config(activation=ACTIVE),
        small_config(shared_adaln=True),
        small_config(vqvae=VQVAEConfig(48, 6, 16, (1, 2, 2, 3), 2, 8), depth=1),
    ],
)
def test_the_formula_counts_what_runs(config: ModelConfig):
    """Every matrix product and convolution of condition, scales and decoder, none twice."""
    condition, scales, decoder = counted(vivid_model(config))
    assert condition_work(config) == condition
    assert [scale_work(config, si).total for si in range(4)] == scales
    assert decoder_work(config) == decoder
    assert transformer_work(config) == condition + sum(scales)


def test_experts_that_rest_are_saved_and_their_router_is_paid():
    """At 3 of 4 experts a quarter of the FFN's 8 C^2 goes, for each kept token; a router of C x N comes."""
    whole = small_config(activation=Activation(4, (4,), (0.5,), (1.0,)))
    routed = replace(whole, activation=Activation(4, (4,), (0.5,), (0.75,)))
    kept, width, depth, rows = whole.kept_tokens(3), whole.width, whole.depth, 2
    saved = scale_work(whole, 3).linear - scale_work(routed, 3).linear
    assert saved == 2 * rows * depth * kept * 8 * width * width // 4
    paid = scale_work(routed, 3).choosing - scale_work(whole, 3).choosing
    assert paid == 2 * rows * depth * kept * width * 4


@pytest.mark.parametrize(("preset", "saved"), [("d16", 0.214), ("d20", 0.219), ("d24", 0.222), ("d30", 0.224)])
def test_the_papers_savings_are_met(preset: str, saved: float):
    """ActVAR's Eq. 12 counts linear work and overhead over all operations of the transformer (DESIGN, Sec. 5)."""
    dense = PRESETS[preset]
    active = replace(dense, activation=Activation())
    works = [(scale_work(dense, si), scale_work(active, si)) for si in range(10)]
    difference = sum(a.linear - b.linear - b.choosing for a, b in works)
    assert difference / transformer_work(dense) == pytest.approx(saved, abs=0.001)
