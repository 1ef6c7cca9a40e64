"""One cell of the study, on a model of one block: what it measures, and that it goes on where it was stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from actvar.config import FIXED, MINI, STATIC, Activation
from actvar.data.glyphs import GlyphPictures
from actvar.data.tokens import TokenStore
from actvar.distill.losses import output_loss
from actvar.distill.stages import student_of
from actvar.evaluation.classifier import load_classifier
from actvar.evaluation.frechet import FeatureStatistics
from actvar.models.actvar import random_model
from actvar.study import cell as cell_module
from actvar.study.budget import Budget
from actvar.study.cell import run_cell
from actvar.study.held_out import Agreement, measure
from actvar.study.inputs import Inputs, load_teacher, prepare
from actvar.study.matrix import Cell, Row

TEACHER = replace(MINI, depth=1, activation=None)
ACTIVE = Activation(experts=4, scales=(2, 4), token_rates=(0.75, 0.5), expert_rates=(0.5, 0.5))
ROW = Row("some", "some row", ACTIVE)
BUDGET = Budget(
    2, 3, 2, train_pictures=8, held_out_pictures=3, drawn_pictures=4, reference_pictures=6, stage1_rate=0.3, warmup=1
)


def random_store(pictures: int, seed: int) -> TokenStore:
    ids = np.random.default_rng(seed).integers(0, MINI.vqvae.vocab_size, (pictures, MINI.schedule.total))
    return TokenStore(ids.astype(np.uint16), np.arange(pictures) % 100)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    features = np.random.default_rng(0).normal(size=(20, 128))
    reference = FeatureStatistics.of(features)
    return Inputs(random_model(TEACHER), random_store(8, 0), random_store(3, 1), load_classifier(), reference)


def overlap(chosen: Tensor, closeness: Tensor, keep: int) -> list[bool]:
    """For each of the `keep` best of one row: whether it was chosen."""
    best = sorted(range(len(closeness)), key=lambda place: (-float(closeness[place]), place))[:keep]
    return [bool(chosen[place]) for place in best]


def test_agreement_is_counted_token_by_token(inputs: Inputs):
    """Against loops over pictures, scales, tokens and experts, written from Eqs. 5 and 10."""
    teacher, quantizer = inputs.teacher.var, inputs.teacher.vqvae.quantize
    student = student_of(teacher, ROW.model(TEACHER), seed=3)
    found = measure(student, teacher, quantizer, inputs.held_out)

    ids_BT, classes_B = inputs.held_out.batch(torch.arange(3))
    with torch.no_grad():
        tokens_in_BTE, _ = quantizer.teacher_forcing(ids_BT)
        teacher_logits, [theirs] = teacher(classes_B, tokens_in_BTE)
        logits, [ours] = student(classes_B, tokens_in_BTE)
        ffn = teacher.blocks[0].ffn
        tokens, experts, loads = [], [], np.zeros(4)
        for picture in range(3):
            for start, count, keep in ((1, 4, 3), (14, 16, 8)):
                change = (theirs.output_RTC - theirs.input_RTC)[picture, start : start + count].square().mean(-1)
                tokens += overlap(ours.kept_RT[picture, start : start + count], change, keep)
                for place in range(start, start + count):
                    if not ours.kept_RT[picture, place]:
                        continue
                    x = ours.ffn_input_RTC[picture, place]
                    hidden, whole = ffn.hidden(x), ffn(x)
                    width = len(hidden) // 4
                    alone = [
                        ffn.fc2.weight[:, i * width : (i + 1) * width] @ hidden[i * width : (i + 1) * width]
                        + ffn.fc2.bias
                        for i in range(4)
                    ]
                    distances = torch.stack([(each - whole).square().mean() for each in alone])
                    experts += overlap(ours.active_RTN[picture, place], -distances, 2)
                    loads += ours.active_RTN[picture, place].numpy()

    assert found.tokens == Agreement(pytest.approx(np.mean(tokens)), pytest.approx((3 * 0.75 + 8 * 0.5) / 11))
    assert found.experts == Agreement(pytest.approx(np.mean(experts)), pytest.approx(0.5))
    assert found.load == pytest.approx((loads.min() / loads.mean(), loads.max() / loads.mean()))
    assert found.kl == pytest.approx(float(output_loss(logits, teacher_logits)), rel=1e-4)
    assert found.block_mse == pytest.approx(float((ours.output_RTC - theirs.output_RTC).square().mean()), rel=1e-4)


@pytest.mark.parametrize("activation", [None, replace(ACTIVE, token_rates=(1.0, 1.0), expert_rates=(1.0, 1.0))])
def test_the_teacher_is_at_no_distance_from_itself(inputs: Inputs, activation: Activation | None):
    """Dense, or cut into experts that all work: a distance that is not 0 would be the measurement's."""
    teacher = inputs.teacher.var
    student = student_of(teacher, replace(TEACHER, activation=activation)) if activation else teacher
    found = measure(student, teacher, inputs.teacher.vqvae.quantize, inputs.held_out)
    assert (found.tokens, found.experts, found.load) == (None, None, None)
    assert found.kl == pytest.approx(0, abs=1e-6) and found.block_mse == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "activation", [replace(ACTIVE, token_choice=FIXED), replace(ACTIVE, expert_choice=STATIC)], ids=["fixed", "static"]
)
def test_the_baselines_are_measured_like_the_rest(inputs: Inputs, activation: Activation):
    """One block's choice for all of them, and one choice for all tokens: the load of a static choice is all or none."""
    config = replace(TEACHER, depth=2, activation=activation)
    teacher = random_model(config.dense()).var
    found = measure(student_of(teacher, config), teacher, inputs.teacher.vqvae.quantize, inputs.held_out)
    assert found.tokens and found.experts and found.load
    assert (found.load == pytest.approx((0.0, 2.0))) == (activation.expert_choice == STATIC)


@pytest.mark.slow
def test_a_killed_cell_ends_as_an_unbroken_one(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed after stage 1, and while it draws: the same metrics; and all of them are there."""
    cell = Cell(ROW, seed=1)
    whole = run_cell(cell, BUDGET, inputs, tmp_path / "whole")
    assert list(whole.metrics) == ["saved", "fresh", "stage1", "stage2", "drawn"]
    assert whole.metrics["fresh"]["kl"] != whole.metrics["stage1"]["kl"] != whole.metrics["stage2"]["kl"]
    for name in ("train_stage2", "judge"):

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(cell_module, name, killed)
            run_cell(cell, BUDGET, inputs, tmp_path / "killed")
    again = run_cell(cell, BUDGET, inputs, tmp_path / "killed")
    assert again.metrics == whole.metrics
    assert (whole.seconds["resumed"], again.seconds["resumed"]) == (0.0, 1.0)


def test_the_teacher_itself_is_only_measured(inputs: Inputs, tmp_path: Path):
    """No training, and nothing left in the folder."""
    done = run_cell(Cell(Row("var", "the teacher", None, trained=False), 0), BUDGET, inputs, tmp_path / "cell")
    assert list(done.metrics) == ["saved", "stage2", "drawn"] and not (tmp_path / "cell").exists()


def test_what_chooses_nothing_has_no_first_stage(inputs: Inputs, tmp_path: Path):
    """Stage 1 would have nothing to learn."""
    row = Row("dense", "all of it", replace(ACTIVE, token_rates=(1.0, 1.0), expert_rates=(1.0, 1.0)))
    done = run_cell(Cell(row, 0), BUDGET, inputs, tmp_path / "cell")
    assert "stage1" not in done.metrics and done.metrics["stage2"]["kl"] > 0


@pytest.mark.slow
def test_what_all_cells_share_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tokens of the training and of the held-out pictures, and the statistics of real ones."""
    from actvar.checkpoint.files import shipped_checkpoint

    shipped = shipped_checkpoint("var-mini")
    teacher, weights = load_teacher(shipped.path, shipped.vqvae)
    assert weights == load_teacher(shipped.path, shipped.vqvae)[1] and len(weights) == 64
    first = prepare(teacher, BUDGET, tmp_path)
    pictures = GlyphPictures(2).load(range(2)).pictures_N3HW
    assert (first.store.batch(torch.arange(2))[0] == teacher.vqvae.encode(pictures)).float().mean() > 0.99
    assert (first.store.token_ids[:3] != first.held_out.token_ids[:3]).any()
    monkeypatch.setattr("actvar.study.inputs.judge", None)
    again = prepare(teacher, BUDGET, tmp_path)
    assert (again.reference.mean == first.reference.mean).all() and again.reference.count == 6
