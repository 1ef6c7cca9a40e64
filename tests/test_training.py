"""The training loop's promises: a killed run ends as an unbroken one, and no run continues another."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import small_config, vivid_model
from small_training import random_store
from torch import Tensor

from actvar.config import MINI, ModelConfig
from actvar.data.glyphs import glyph_batch
from actvar.data.tokens import TokenStore
from actvar.errors import ActVARError, CheckpointError
from actvar.models.actvar import ActVAR, random_model
from actvar.training.loop import RunSettings, autocast, learning_rate_at, run, step_generator
from actvar.training.var import VARSettings, depth_gates, teacher_forced_loss, train_var
from actvar.training.vqvae import VQVAESettings, train_vqvae

TINY = ModelConfig(depth=1, num_classes=4, vqvae=MINI.vqvae)
STEPS = 6


class Killed(Exception):
    """Stands for what ends a process between two steps."""


@pytest.fixture(scope="module")
def model() -> ActVAR:
    return random_model(TINY)


@pytest.fixture(scope="module")
def store() -> TokenStore:
    ids = np.random.default_rng(0).integers(0, TINY.vqvae.vocab_size, (20, TINY.schedule.total))
    return TokenStore(ids.astype(np.uint16), np.arange(20) % 4)


def pictures(numbers: range) -> Tensor:
    return glyph_batch(np.asarray(numbers), seed=0)[0]


def var_settings(folder: Path) -> VARSettings:
    return VARSettings(
        folder=folder, steps=STEPS, batch=2, learning_rate=1e-3, warmup=2, save_every=2, log_every=1,
        cycle=((3, 4), (10, 2)),
    )  # fmt: skip


def vqvae_settings(folder: Path) -> VQVAESettings:
    return VQVAESettings(
        folder=folder, steps=STEPS, batch=2, learning_rate=1e-3, warmup=2, save_every=2, log_every=1,
        continuous=0.3, restart_every=2,
    )  # fmt: skip


class StoreThatBreaksOff(TokenStore):
    """Raises in the middle of the fourth step: the state then holds two."""

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        if self.calls == 4:
            raise Killed
        return super().batch(places)


def test_a_killed_var_training_ends_as_an_unbroken_one(model: ActVAR, store: TokenStore, tmp_path: Path):
    """Weights, both optimisers and the order of the pictures all have to be as they were."""
    quantizer = model.vqvae.quantize
    unbroken = train_var(TINY, var_settings(tmp_path / "a"), store, quantizer)
    breaking = StoreThatBreaksOff(store.token_ids, store.class_ids)
    with pytest.raises(Killed):
        train_var(TINY, var_settings(tmp_path / "b"), breaking, quantizer)
    resumed = train_var(TINY, var_settings(tmp_path / "b"), store, quantizer)
    for name, value in unbroken.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5]  # what was logged after the state is taken back


def test_a_killed_vqvae_training_ends_as_an_unbroken_one(tmp_path: Path):
    """The restarts of unused codes depend on what was used before the kill."""

    def breaking(numbers: range) -> Tensor:
        if numbers.start >= 2 * 3 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            raise Killed
        return pictures(numbers)

    unbroken = train_vqvae(TINY, vqvae_settings(tmp_path / "a"), pictures)
    with pytest.raises(Killed):
        train_vqvae(TINY, vqvae_settings(tmp_path / "b"), breaking)
    resumed = train_vqvae(TINY, vqvae_settings(tmp_path / "b"), breaking)
    for name, value in unbroken.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_a_run_with_other_settings_is_not_continued(model: ActVAR, store: TokenStore, tmp_path: Path):
    settings = var_settings(tmp_path)
    train_var(TINY, settings, store, model.vqvae.quantize)
    with pytest.raises(CheckpointError, match=r"holds another run \(learning_rate 0.001 -> 0.5\)"):
        train_var(TINY, replace(settings, learning_rate=0.5), store, model.vqvae.quantize)


def test_a_cut_state_is_named(model: ActVAR, store: TokenStore, tmp_path: Path):
    settings = var_settings(tmp_path)
    train_var(TINY, settings, store, model.vqvae.quantize)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        train_var(TINY, settings, store, model.vqvae.quantize)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path):
    settings = RunSettings(folder=tmp_path, steps=3, batch=1, learning_rate=1.0)
    with pytest.raises(ActVARError, match="loss is nan at step 0"):
        run("Test", lambda number, rate: {"loss": float("nan")}, {}, settings)
    assert not (tmp_path / "state.pt").exists()


def test_every_step_of_every_seed_draws_numbers_of_its_own():
    """Seeds of 1 and more once drew what seed 0 did: the generator leaves out all but 32 bits of what it is given."""
    settings = [RunSettings(folder=Path(), steps=100, batch=1, learning_rate=1.0, seed=seed) for seed in (0, 1, 2, 7)]

    def drawn(settings: RunSettings, step: int) -> tuple[int, ...]:
        return tuple(torch.randint(1 << 40, (4,), generator=step_generator(settings, step)).tolist())

    assert len({drawn(each, step) for each in settings for step in range(100)}) == 400
    of_streams = {tuple(torch.rand(4, generator=step_generator(settings[0], 3, stream)).tolist()) for stream in (0, 1)}
    assert len(of_streams) == 2
    assert drawn(settings[1], 5) == drawn(settings[1], 5)


def test_the_learning_rate_rises_then_falls_to_its_floor():
    settings = RunSettings(folder=Path(), steps=100, batch=1, learning_rate=1.0, warmup=10)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert 0.02 <= rates[-1] < 0.03


@pytest.mark.parametrize(("flags", "dtype"), [({"avx2"}, torch.float32), ({"avx2", "avx512_bf16"}, torch.bfloat16)])
def test_bfloat16_is_left_to_processors_that_have_it(monkeypatch: pytest.MonkeyPatch, flags: set, dtype: torch.dtype):
    """Others emulate it: on two AVX2 cores a step of stage 1 took five times as long as in fp32."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512_bf16" in flags)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx_tile" in flags)
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_gates_weigh_what_each_half_of_a_block_adds(model: ActVAR, store: TokenStore):
    """Row by row; a block whose gates are 0 is not there."""
    ids, classes = store.batch(torch.arange(3))
    tokens_in_BTE, _ = model.vqvae.quantize.teacher_forcing(ids)

    def outputs(*gates: tuple[float, float]) -> list[Tensor]:
        """Of every block, in each of which the rows have these gates."""
        gates_BD2 = torch.tensor(gates)[:, None].expand(-1, TINY.depth, -1)
        with torch.no_grad():
            return [trace.output_RTC for trace in model.var(classes, tokens_in_BTE, gates_BD2=gates_BD2)[1]]

    with torch.no_grad():
        plain = model.var(classes, tokens_in_BTE)[1]
    torch.testing.assert_close(outputs((1, 1), (1, 1), (1, 1))[-1], plain[-1].output_RTC, rtol=0, atol=0)
    none, attention, both = outputs((0, 0), (0, 0), (0, 0))[0], outputs(*[(1.0, 0.0)] * 3)[0], plain[0].output_RTC
    torch.testing.assert_close(none, plain[0].input_RTC, rtol=0, atol=0)
    mixed = outputs((0, 0), (2, 0), (1, 3))[0]
    torch.testing.assert_close(mixed[0], none[0], rtol=0, atol=0)
    torch.testing.assert_close(mixed[1], none[1] + 2 * (attention[1] - none[1]))
    torch.testing.assert_close(mixed[2], attention[2] + 3 * (both[2] - attention[2]))


def test_stochastic_depth_leaves_out_more_of_later_blocks():
    """Nothing of the first, the given share of the last; halves and pictures apart; a mean of 1."""
    gates_BD2 = depth_gates(5, 0.4, 20_000, torch.Generator().manual_seed(0))
    assert gates_BD2.shape == (20_000, 5, 2)
    for block, drop in enumerate((0.0, 0.1, 0.2, 0.3, 0.4)):
        assert sorted(gates_BD2[:, block].unique().tolist()) == pytest.approx([0.0, 1 / (1 - drop)][drop == 0 :])
        for half in (0, 1):
            assert (gates_BD2[:, block, half] == 0).float().mean().item() == pytest.approx(drop, abs=0.015)
        both = (gates_BD2[:, block] == 0).all(1).float().mean().item()
        assert both == pytest.approx(drop**2, abs=0.015)


def test_stochastic_depth_is_the_same_in_parts_and_over_a_break(tmp_path: Path):
    """A picture's gates follow it into its part; they are other ones at every step, and change what is learned."""
    config, store = small_config((1, 2, 3), depth=3), random_store()
    quantizer = vivid_model(config).vqvae.quantize
    whole = VARSettings(
        folder=tmp_path / "whole", steps=STEPS, batch=4, learning_rate=1e-2, warmup=2, save_every=1, precision="fp32",
        recipe="official", depth_drop=0.5,
    )  # fmt: skip
    parts, none = (replace(whole, folder=tmp_path / name) for name in ("parts", "none"))
    parts, none = replace(parts, accumulate=2), replace(none, depth_drop=0.0)
    expected = train_var(config, whole, store, quantizer).state_dict()
    with pytest.raises(Killed):
        train_var(config, parts, StoreThatBreaksOff(store.token_ids, store.class_ids), quantizer)
    found, without = (train_var(config, each, store, quantizer).state_dict() for each in (parts, none))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3, msg=name)
    assert max((without[name] - value).abs().max() for name, value in expected.items()) > 1e-2


def test_the_first_scales_loss_is_the_same_alone_and_in_the_whole_sequence(model: ActVAR, store: TokenStore):
    """What lets a step see only the first scales: no scale looks at a later one."""
    ids, classes = store.batch(torch.arange(3))
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        whole = teacher_forced_loss(model.var, model.vqvae.quantize, classes, ids)
        first = teacher_forced_loss(model.var, model.vqvae.quantize, classes, ids[:, :30])
    torch.testing.assert_close(first, whole[:, :30], rtol=0, atol=2e-2)  # bfloat16 inside
