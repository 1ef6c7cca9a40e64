"""The distillation losses against loops written from the paper's formulas, and what each stage may change."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import small_config
from torch import Tensor

from actvar.class_names import imagenet_names
from actvar.config import MINI, Activation, ModelConfig
from actvar.data.tokens import TokenStore
from actvar.distill.expert_order import orders_from_data
from actvar.distill.losses import (
    balancing_loss,
    block_loss,
    distillation_loss,
    expert_distances,
    output_loss,
    pseudo_label,
    sharp_label,
    token_distances,
)
from actvar.distill.stages import StageSettings, student_of, train_stage1, train_stage2
from actvar.models.actvar import ActVAR, random_model
from actvar.models.experts import FFN

ACTIVE = Activation(experts=4, scales=(2,), token_rates=(0.75,), expert_rates=(0.5,))
TEACHER = ModelConfig(depth=1, num_classes=4, vqvae=MINI.vqvae)
STUDENT = replace(TEACHER, activation=Activation(experts=4, scales=(3, 10), token_rates=(0.5, 0.75)))


@pytest.fixture(scope="module")
def teacher() -> ActVAR:
    return random_model(TEACHER)


@pytest.fixture(scope="module")
def store() -> TokenStore:
    ids = np.random.default_rng(0).integers(0, TEACHER.vqvae.vocab_size, (12, TEACHER.schedule.total))
    return TokenStore(ids.astype(np.uint16), np.arange(12) % 4)


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_an_experts_distance_is_that_of_its_own_output_with_b2():
    """e_i = GELU(x W1_i + b1_i) W2_i + b2, F the whole network; the mean square over the width (before Eq. 5)."""
    torch.manual_seed(0)
    width, experts = 8, 4
    ffn, x = FFN(width), torch.randn(width)
    w1, b1, w2, b2 = (t.tolist() for t in (ffn.fc1.weight, ffn.fc1.bias, ffn.fc2.weight, ffn.fc2.bias))
    hidden = [gelu(sum(w * v for w, v in zip(row, x.tolist(), strict=True)) + b) for row, b in zip(w1, b1, strict=True)]
    size = len(hidden) // experts

    def output(neurons: range) -> list[float]:
        return [sum(w2[c][n] * hidden[n] for n in neurons) + b2[c] for c in range(width)]

    whole = output(range(len(hidden)))
    expected = [
        sum((a - b) ** 2 for a, b in zip(output(range(i * size, (i + 1) * size)), whole, strict=True)) / width
        for i in range(experts)
    ]
    torch.testing.assert_close(expert_distances(ffn, x.view(1, 1, width), experts)[0, 0], torch.tensor(expected))


def test_a_tokens_distance_is_the_mean_square_of_its_change():
    before, after = torch.zeros(1, 2, 4), torch.tensor([[[1.0, 1, 1, 1], [2, 0, 0, 0]]])
    assert token_distances(before, after).tolist() == [[1.0, 1.0]]


def test_the_pseudo_label_is_two_softmaxes_over_the_best():
    """Eq. 5 gives what top-k leaves out a probability of 0, Eq. 6 softens all of them once more."""
    closeness, keep = [0.3, -1.2, 2.0, 0.7], 2
    first = [0.0] * 4
    first[2], first[3] = softmax([2.0, 0.7])
    torch.testing.assert_close(pseudo_label(torch.tensor(closeness), keep), torch.tensor(softmax(first)))


def test_a_sharp_label_shares_95_percent_among_the_best():
    label = sharp_label(torch.tensor([0.3, -1.2, 2.0, 0.7, 0.0]), 2)
    torch.testing.assert_close(label, torch.tensor([0.05 / 3, 0.05 / 3, 0.475, 0.475, 0.05 / 3]))


def test_the_distillation_loss_is_the_printed_kl():
    """KL(p || label), in the paper's order: the prediction comes first (Eq. 6)."""
    scores, label = [0.5, -0.3, 1.1], [0.2, 0.3, 0.5]
    p = softmax(scores)
    expected = sum(a * math.log(a / b) for a, b in zip(p, label, strict=True))
    value = distillation_loss(torch.tensor([scores]), torch.tensor([label]))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_balancing_loss_weighs_chosen_probability_by_the_share_chosen():
    scores = [[0.5, -0.3, 1.1, 0.0], [0.0, 0.0, 0.0, 3.0]]
    chosen = [[True, False, True, False], [False, True, False, True]]
    rows = [
        2 / 4 * sum(p for p, c in zip(softmax(s), cs, strict=True) if c) for s, cs in zip(scores, chosen, strict=True)
    ]
    value = balancing_loss(torch.tensor(scores), torch.tensor(chosen))
    assert value.item() == pytest.approx(sum(rows) / 2, rel=1e-5)


def test_the_output_loss_is_a_mean_over_tokens_and_zero_for_equals():
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    expected = []
    for s, t in zip(student.view(6, 5).tolist(), teacher.view(6, 5).tolist(), strict=True):
        p, q = softmax(s), softmax(t)
        expected.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert output_loss(student, teacher).item() == pytest.approx(sum(expected) / 6, rel=1e-5)
    assert output_loss(student, student).item() == pytest.approx(0, abs=1e-6)
    assert block_loss(student, student + 2).item() == pytest.approx(4, rel=1e-5)


def test_a_student_begins_as_its_teacher(teacher: ActVAR):
    """With nothing left out, the new parts must not change a single logit."""
    whole = replace(TEACHER, activation=Activation(4, (9, 10), (1.0, 1.0), (1.0, 1.0)))
    classes, inputs = torch.tensor([1, 4]), torch.randn(2, TEACHER.schedule.total - 1, TEACHER.vqvae.z_channels)
    with torch.no_grad():
        expected, _ = teacher.var(classes, inputs)
        actual, _ = student_of(teacher.var, whole)(classes, inputs)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_student_of_another_shape_is_refused(teacher: ActVAR):
    with pytest.raises(ValueError, match="teacher's with an activation"):
        student_of(teacher.var, TEACHER)
    with pytest.raises(ValueError, match="teacher's with an activation"):
        student_of(teacher.var, replace(STUDENT, depth=2))


def settings(folder: Path, **changes: float) -> StageSettings:
    common = {"steps": 3, "batch": 2, "learning_rate": 1e-3, "warmup": 1, "log_every": 1}
    return StageSettings(folder=folder, **{**common, **changes})


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_stage_1_changes_routers_and_selectors_and_nothing_else(teacher: ActVAR, store: TokenStore, tmp_path: Path):
    student = student_of(teacher.var, STUDENT)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = train_stage1(teacher.var, student, settings(tmp_path), store, teacher.vqvae.quantize)
    assert changed(before, trained.state_dict()) == {
        f"blocks.0.{part}" for part in ("selector.weight", "selector.bias", "ffn.router.weight", "ffn.router.bias")
    }
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [0, 1, 2]
    assert logged[0]["loss"] == pytest.approx(
        logged[0]["cls"] + 0.05 * logged[0]["dis"] + 0.01 * logged[0]["bl"], abs=1e-4
    )


def test_stage_1_trains_what_a_baseline_chooses_by(store: TokenStore, tmp_path: Path):
    """One selector in all, and of each router its bias; the second block keeps what the first selected."""
    dense = replace(TEACHER, depth=2)
    baseline = replace(STUDENT.activation, token_choice="fixed", expert_choice="static")
    teacher = random_model(dense)
    student = student_of(teacher.var, replace(dense, activation=baseline))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = train_stage1(teacher.var, student, settings(tmp_path), store, teacher.vqvae.quantize)
    assert changed(before, trained.state_dict()) == {
        "blocks.0.selector.weight",
        "blocks.0.selector.bias",
        "blocks.0.ffn.router.bias",
        "blocks.1.ffn.router.bias",
    }


def test_a_static_choice_keeps_the_experts_whose_distances_are_least(store: TokenStore, tmp_path: Path):
    """By the paper's losses, as the router learns; a balancing loss would drive out whichever expert is chosen."""
    activation = Activation(4, (10,), (1.0,), (0.5,), expert_choice="static")
    teacher = random_model(TEACHER)
    ffn = teacher.var.blocks[0].ffn
    for expert, factor in enumerate((0.1, 1.0, 0.1, 1.0)):  # the second and the last do most of the work
        ffn.fc2.weight[:, expert * 64 : (expert + 1) * 64] *= factor
    student = student_of(teacher.var, replace(TEACHER, activation=activation))
    run = settings(tmp_path, steps=12, alpha=5.0)
    trained = train_stage1(teacher.var, student, run, store, teacher.vqvae.quantize)
    assert sorted(trained.blocks[0].ffn.router.bias.argsort(descending=True)[:2].tolist()) == [1, 3]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["bl"] for line in log] == [0] * 12


def test_an_order_from_data_is_fixed_before_stage_1(teacher: ActVAR, store: TokenStore, tmp_path: Path):
    """Selectors learn beside it, and the experts' labels are no part of the loss; without selectors nothing is left."""
    static = replace(STUDENT.activation, expert_choice="static")
    run = settings(tmp_path / "both", expert_order="data")
    expected = orders_from_data(
        teacher.var, student_of(teacher.var, replace(STUDENT, activation=static)), store, teacher.vqvae.quantize
    )
    for rates, learns in (((0.75,), True), ((1.0,), False)):
        config = replace(STUDENT, activation=replace(static, token_rates=rates * len(static.scales)))
        student = student_of(teacher.var, config)
        before = {name: value.clone() for name, value in student.state_dict().items()}
        trained = train_stage1(teacher.var, student, run, store, teacher.vqvae.quantize)
        assert trained.blocks[0].ffn.router.bias.argsort(descending=True).tolist() == expected[0].tolist()
        selector = {"blocks.0.selector.weight", "blocks.0.selector.bias"} if learns else set()
        assert changed(before, trained.state_dict()) == selector | {"blocks.0.ffn.router.bias"}
        assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_experts_may_be_taken_as_they_are_numbered(teacher: ActVAR, store: TokenStore, tmp_path: Path):
    """Whatever scores the student came with."""
    student = student_of(teacher.var, replace(STUDENT, activation=replace(STUDENT.activation, expert_choice="static")))
    with torch.no_grad():
        student.blocks[0].ffn.router.bias.copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
    run = settings(tmp_path, expert_order="index")
    trained = train_stage1(teacher.var, student, run, store, teacher.vqvae.quantize)
    assert trained.blocks[0].ffn.router.bias.tolist() == [0, -1, -2, -3]


@pytest.mark.parametrize("order", ["data", "index"])
def test_a_fixed_order_is_for_static_experts(teacher: ActVAR, store: TokenStore, tmp_path: Path, order: str):
    with pytest.raises(ValueError, match="for a static choice"):
        run = settings(tmp_path, expert_order=order)
        train_stage1(teacher.var, student_of(teacher.var, STUDENT), run, store, teacher.vqvae.quantize)


def test_stage_1_brings_the_choosers_nearer_to_the_pseudo_labels(teacher: ActVAR, store: TokenStore, tmp_path: Path):
    student = student_of(teacher.var, STUDENT, seed=3)
    with torch.no_grad():
        student.blocks[0].ffn.router.weight.mul_(2)  # far from the labels
    run = settings(tmp_path, steps=25, learning_rate=3e-2, alpha=5.0)
    train_stage1(teacher.var, student, run, store, teacher.vqvae.quantize)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged[-1]["dis"] < 0.5 * logged[0]["dis"]


def test_stage_2_leaves_routers_and_selectors_alone(teacher: ActVAR, store: TokenStore, tmp_path: Path):
    student = student_of(teacher.var, STUDENT)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = train_stage2(teacher.var, student, settings(tmp_path), store, teacher.vqvae.quantize)
    moved = changed(before, trained.state_dict())
    assert not any(".router." in name or ".selector." in name for name in moved)
    parts = ("blocks.0.ffn.fc1", "blocks.0.ffn.fc2", "blocks.0.attn.mat_qkv", "head")
    assert {f"{part}.weight" for part in parts} <= moved


def named_by(store_names: tuple[str, ...], own: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of a model of so many classes that is trained for a step on pictures from folders of these names."""
    config = replace(small_config((1, 2), ACTIVE, depth=1), num_classes=len(store_names), class_names=own)
    teacher = random_model(config.dense())
    ids = np.zeros((4, config.schedule.total), np.uint16)
    store = TokenStore(ids, np.arange(4), len(store_names), store_names)
    with tempfile.TemporaryDirectory() as folder:
        settings = StageSettings(Path(folder), 1, 4, 1e-3, warmup=0)
        student = student_of(teacher.var, config)
        return train_stage2(teacher.var, student, settings, store, teacher.vqvae.quantize).config.class_names


def test_a_trained_model_is_given_the_names_of_folders_unless_it_has_better_ones():
    """Own names stay, and ImageNet's classes, in folders called by WordNet's ids, are known by their words."""
    ids = tuple(of_class[-1] for of_class in imagenet_names())
    assert ids[0] == "n01440764" and named_by(ids) == ()
    assert named_by(ids[::-1]) == ids[::-1]
    assert named_by(("a", "b", "c", "d")) == ("a", "b", "c", "d")
    assert named_by(("a", "b", "c", "d"), own=("w", "x", "y", "z")) == ("w", "x", "y", "z")
