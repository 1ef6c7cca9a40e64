"""What experts and tokens are ranked by, against loops that leave each of them out for real."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import small_config, vivid_model
from small_training import TEACHER, fresh_student, random_store, stage_settings
from torch import Tensor

from actvar.config import DYNAMIC, MINI, STATIC, Activation, ModelConfig
from actvar.distill.expert_order import fix_orders, orders_from_data
from actvar.distill.label_choice import PAPER, Labels
from actvar.distill.labels import (
    TeacherPass,
    expert_closeness,
    logit_changes,
    losses_when_dropped,
    teacher_pass,
    token_changes,
)
from actvar.distill.losses import expert_distances, token_distances
from actvar.distill.stages import student_of, train_stage1
from actvar.models.actvar import random_model
from actvar.models.experts import FFN
from actvar.models.selection import top_mask

DENSE = ModelConfig(depth=2, num_classes=4, vqvae=MINI.vqvae)


def added(ffn: FFN, x: Tensor, experts: int) -> list[Tensor]:
    """What each expert adds to F(x): the FFN with all other neurons silenced, without its bias."""
    outputs = []
    for hidden in range(experts):
        size = ffn.fc1.out_features // experts
        alone = FFN(x.shape[-1])
        alone.load_state_dict({name: value for name, value in ffn.state_dict().items() if "router" not in name})
        silent = torch.ones(ffn.fc1.out_features, dtype=torch.bool)
        silent[hidden * size : (hidden + 1) * size] = False
        with torch.no_grad():
            alone.fc2.weight[:, silent] = 0
            outputs.append(alone(x) - alone.fc2.bias)
    return outputs


def dropped_for_real(ffn: FFN, x: Tensor, experts: int, keep: int) -> list[float]:
    """The loss with each kept expert left out as well; -inf for those that were dropped before."""
    parts, kept = added(ffn, x, experts), list(range(experts))

    def loss(left: list[int]) -> float:
        return float((sum(parts) - sum((parts[i] for i in left), torch.zeros_like(x))).square().mean())

    while len(kept) > keep:
        kept.remove(min(kept, key=lambda i: loss([j for j in kept if j != i])))
    return [loss([j for j in kept if j != i]) if i in kept else -np.inf for i in range(experts)]


@pytest.mark.parametrize("keep", [1, 3, 6])
def test_experts_are_dropped_one_by_one_where_the_sum_loses_least(keep: int):
    torch.manual_seed(0)
    ffn, x_RLC = FFN(8), torch.randn(2, 3, 8)
    expected = [[dropped_for_real(ffn, x, 8, keep) for x in x_LC] for x_LC in x_RLC]
    torch.testing.assert_close(losses_when_dropped(ffn, x_RLC, 8, keep), torch.tensor(expected), rtol=1e-3, atol=1e-6)


def test_many_tokens_are_ranked_as_each_alone():
    """More than fit in one piece."""
    torch.manual_seed(1)
    ffn, x_RLC = FFN(8), torch.randn(3, 200, 8)
    apart = torch.stack([losses_when_dropped(ffn, x_RLC[:, i : i + 1], 4, 2)[:, 0] for i in range(200)], dim=1)
    torch.testing.assert_close(losses_when_dropped(ffn, x_RLC, 4, 2), apart)


@pytest.mark.parametrize("scales", [(3,), (2, 3)], ids=str)
def test_an_order_from_data_is_that_of_dropping_them_for_real(scales: tuple[int, ...]):
    """Over all tokens of the scales that leave experts out, block by block; the last to go is the best."""
    config = small_config((1, 2, 3), Activation(4, scales, (1.0,) * len(scales), (0.5,) * len(scales), DYNAMIC, STATIC))
    teacher, store = vivid_model(config.dense()), random_store()
    student = student_of(teacher.var, config)
    found_DN = orders_from_data(teacher.var, student, store, teacher.vqvae.quantize, pictures=3)
    ids_BT, classes_B = store.batch(torch.tensor([0, 12, 23]))  # the first, the middle and the last
    with torch.no_grad():
        tokens_in_BTE, _ = teacher.vqvae.quantize.teacher_forcing(ids_BT)
        _, traces = teacher.var(classes_B, tokens_in_BTE)
    for order_N, block, trace in zip(found_DN.tolist(), teacher.var.blocks, traces, strict=True):
        x = trace.ffn_input_RTC[:, (1 if 2 in scales else 5) :].flatten(0, 1)
        parts, kept, dropped = added(block.ffn, x, 4), [0, 1, 2, 3], []
        while kept:

            def loss(i: int, dropped: list[int] = dropped, parts: list[Tensor] = parts) -> float:
                return float(sum(parts[j] for j in (*dropped, i)).square().mean())

            dropped.append(min(kept, key=loss))
            kept.remove(dropped[-1])
        assert order_N == dropped[::-1]
    fix_orders(student, found_DN)
    for order_N, block in zip(found_DN.tolist(), student.blocks, strict=True):
        assert block.ffn.router(torch.zeros(1, 64)).argsort(descending=True).tolist() == [order_N]


def test_two_experts_that_cancel_are_dropped_together():
    """Each comes near to the whole alone, and the paper's ranking keeps them; their sum is nothing."""
    ffn = FFN(4)
    with torch.no_grad():
        for parameter in ffn.parameters():
            parameter.zero_()
        ffn.fc1.bias.fill_(1.0)
        size = 4  # neurons of an expert
        for expert, amount in enumerate((1.0, -1.0, 4.0, -3.0)):
            ffn.fc2.weight[0, expert * size] = amount
    x_RLC = torch.zeros(1, 1, 4)
    together = expert_closeness(Labels(experts="together"), ffn, x_RLC, 4, 2)
    assert top_mask(together, 2).tolist() == [[[False, False, True, True]]]
    assert top_mask(expert_closeness(PAPER, ffn, x_RLC, 4, 2), 2).tolist() == [[[True, True, False, False]]]
    assert torch.isneginf(together).tolist() == [[[True, True, False, False]]]


def test_the_papers_labels_are_the_default():
    torch.manual_seed(2)
    ffn, x_RLC = FFN(8), torch.randn(1, 5, 8)
    assert torch.equal(expert_closeness(PAPER, ffn, x_RLC, 4, 3), -expert_distances(ffn, x_RLC, 4))
    batch = passed()
    trace, here = batch.traces[1], slice(5, 14)
    expected = token_distances(trace.input_RTC[:, here], trace.output_RTC[:, here])
    assert torch.equal(token_changes(PAPER, batch, 1, here), expected)


def passed() -> TeacherPass:
    teacher = random_model(DENSE).var
    tokens_in_BTE = torch.randn(2, 29, DENSE.vqvae.z_channels, generator=torch.Generator().manual_seed(3))
    return teacher_pass(teacher, torch.tensor([1, 4]), tokens_in_BTE)


def test_without_the_last_block_the_logits_are_the_heads_of_the_block_before():
    batch, here = passed(), slice(5, 14)
    teacher = batch.teacher
    modulation = teacher.head_nm.ada_lin(teacher.class_emb(batch.class_ids_B))
    with torch.no_grad():
        skipped_BTV = teacher.logits(batch.traces[0].output_RTC, modulation)
    expected = (batch.logits_BTV - skipped_BTV).square().mean(-1)[:, here]
    torch.testing.assert_close(logit_changes(batch, 1, here), expected)


def test_a_first_block_is_judged_by_what_it_added_alone():
    batch, here = passed(), slice(5, 14)
    teacher, first = batch.teacher, batch.traces[0]
    modulation = teacher.head_nm.ada_lin(teacher.class_emb(batch.class_ids_B))
    with torch.no_grad():
        # Nothing of the first block: its input, and what the second block added to its output.
        without = first.input_RTC + (batch.traces[1].output_RTC - batch.traces[1].input_RTC)
        expected = (batch.logits_BTV - teacher.logits(without, modulation)).square().mean(-1)[:, here]
    torch.testing.assert_close(logit_changes(batch, 0, here), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("labels", [Labels("together"), Labels(tokens="logits"), Labels(form="sharp")], ids=str)
def test_stage_1_learns_the_labels_it_is_given(labels: Labels, tmp_path: Path):
    teacher, store = vivid_model(TEACHER), random_store()

    def trained(name: str, by: Labels) -> dict[str, Tensor]:
        settings = stage_settings(tmp_path / name, steps=2, labels=by)
        return train_stage1(teacher.var, fresh_student(teacher), settings, store, teacher.vqvae.quantize).state_dict()

    ours, papers = trained("ours", labels), trained("papers", PAPER)
    moved = {name for name in ours if not torch.equal(ours[name], papers[name])}
    taught = "selector" if labels.tokens != PAPER.tokens else "ffn.router"
    assert moved and any(taught in name for name in moved)


def test_an_unknown_label_is_refused():
    with pytest.raises(ValueError, match="experts of a label is alone or together, not 'best'"):
        Labels(experts="best")
