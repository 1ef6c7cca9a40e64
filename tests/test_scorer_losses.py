"""One block's distillation and balancing losses against loops over pictures, tokens and experts (Eqs. 13 to 18)."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import vivid_model
from small_training import ACTIVE, TEACHER, TRAININGS, fresh_student, logged, random_store, stage_settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actvar.distill.label_choice import PAPER
from actvar.distill.labels import teacher_pass
from actvar.distill.losses import block_loss, distillation_loss, expert_distances
from actvar.distill.scorer_losses import scorer_losses
from actvar.distill.stages import learns_in_stage1
from actvar.models.experts import FFN


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


def label(closeness: list[float], keep: int) -> list[float]:
    """Softmax of the best, nothing for the rest, and a softmax of all that."""
    best = sorted(range(len(closeness)), key=lambda place: -closeness[place])[:keep]
    first = dict(zip(best, softmax([closeness[place] for place in best]), strict=True))
    return softmax([first.get(place, 0.0) for place in range(len(closeness))])


def row_losses(scores: list[float], closeness: list[float], keep: int) -> tuple[float, float]:
    """KL(p || label), and K / N times the probability of what is chosen."""
    p, q = softmax(scores), label(closeness, keep)
    chosen = sorted(range(len(scores)), key=lambda place: -scores[place])[:keep]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), keep / len(p) * sum(p[i] for i in chosen)


def mean(rows: list[tuple[float, float]]) -> Tensor:
    return torch.tensor(rows).mean(0)


@pytest.mark.parametrize("expert_choice", ["dynamic", "static"])
@pytest.mark.parametrize("token_rates", [(0.75, 0.5), (1.0, 0.5)])
def test_a_blocks_losses_are_those_of_the_loops(token_rates: tuple[float, ...], expert_choice: str):
    """Sums over the scales, means over their rows; a scale that keeps all tokens teaches no selector."""
    teacher = vivid_model(TEACHER)
    student = fresh_student(teacher, token_rates=token_rates, expert_choice=expert_choice)
    for name, parameter in student.named_parameters():
        if ".router." in name or ".selector." in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    classes, tokens_in = torch.tensor([0, 3]), torch.randn(2, 13, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        taught = teacher_pass(teacher.var, classes, tokens_in)
        _, [ours] = student(classes, tokens_in)
        found = scorer_losses(student.config, PAPER, taught, 0, ours)

    [theirs] = taught.traces
    ffn, expected = teacher.var.blocks[0].ffn, torch.zeros(2)
    for start, tokens, keep, active in ((1, 4, round(4 * token_rates[0]), 2), (5, 9, 5, 3)):
        by_picture, by_token = [], []
        for picture in range(2):
            here = range(start, start + tokens)
            change = [(theirs.output_RTC - theirs.input_RTC)[picture, t].square().mean().item() for t in here]
            by_picture.append(row_losses([ours.selector_scores_RT[picture, t].item() for t in here], change, keep))
            for t in here:
                x = ours.ffn_input_RTC[picture, t]
                hidden, width = ffn.hidden(x), 256 // 4
                slices = [slice(i * width, (i + 1) * width) for i in range(4)]
                alone = [hidden[s] @ ffn.fc2.weight[:, s].T + ffn.fc2.bias for s in slices]
                distances = [(one - ffn(x)).square().mean().item() for one in alone]
                scores = ours.router_scores_RTN[picture, t].tolist()
                by_token.append(row_losses(scores, [-distance for distance in distances], active))
        if keep < tokens:
            expected += mean(by_picture)
        expected += mean(by_token) * torch.tensor([1.0, float(expert_choice == "dynamic")])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_means_are_taken_over_all_rows():
    """So that equal parts of a batch, in one process or in many, average to its loss."""
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(2, 3, 4, generator=generator), torch.rand(2, 3, 4, generator=generator).softmax(-1)
    rows = [
        sum(a * math.log(a / b) for a, b in zip(softmax(s), q, strict=True))
        for s, q in zip(scores.view(6, 4).tolist(), labels.view(6, 4).tolist(), strict=True)
    ]
    assert distillation_loss(scores, labels).item() == pytest.approx(sum(rows) / 6, rel=1e-5)
    pairs = zip(scores.flatten().tolist(), labels.flatten().tolist(), strict=True)
    assert block_loss(scores, labels).item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 24, rel=1e-5)


class Largest(TorchDispatchMode):
    """The most numbers that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        self.numel = max(self.numel, result.numel() if isinstance(result, Tensor) else 0)
        return result


def test_distances_take_no_memory_for_each_expert():
    """Nothing larger than the hidden values, however many experts: [tokens, N, C] would be four times them here."""
    tokens, width, experts = 50, 32, 16
    with Largest() as largest:
        expert_distances(FFN(width), torch.randn(1, tokens, width), experts)
    assert largest.numel == tokens * 4 * width


def test_stage_2s_loss_is_the_sum_of_its_parts(tmp_path: Path):
    """Eq. 22, as it is logged; each part is tested alone."""
    teacher = vivid_model(TEACHER)
    settings = stage_settings(tmp_path, steps=1)
    TRAININGS[1](teacher.var, fresh_student(teacher), settings, random_store(), teacher.vqvae.quantize)
    [line] = logged(tmp_path)
    assert line["loss"] == pytest.approx(line["cls"] + line["kl"] + line["mse"], abs=1e-5)


def test_what_has_nothing_to_choose_is_not_trained():
    """Its gradient would be none, and DDP would wait for it; with neither choice stage 1 has no parameters."""
    config = replace(TEACHER, activation=replace(ACTIVE, token_rates=(1.0, 1.0)))
    assert learns_in_stage1(config, "blocks.0.ffn.router.weight")
    assert not learns_in_stage1(config, "blocks.0.selector.weight")
    assert not learns_in_stage1(config, "blocks.0.ffn.fc1.weight")
    assert not learns_in_stage1(config.dense(), "blocks.0.ffn.router.weight")
