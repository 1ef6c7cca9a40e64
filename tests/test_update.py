"""One update: in parts as in one, clipped, averaged; and the curves that tell of it."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from small_models import vivid_model
from small_training import TEACHER, TRAININGS, fresh_student, logged, random_store, stage_settings
from torch import nn

from actvar.errors import ActVARError, UsageError
from actvar.models.actvar import ActVAR
from actvar.training.average import Average
from actvar.training.curves import Curves
from actvar.training.update import Update


@pytest.fixture(scope="module")
def teacher() -> ActVAR:
    return vivid_model(TEACHER)


@pytest.mark.parametrize("train", TRAININGS)
def test_a_batch_in_parts_teaches_what_it_teaches_in_one(teacher: ActVAR, tmp_path: Path, train):
    """The losses are means over pictures: equal parts average to the batch, gradients too."""
    quantizer, store, trained = teacher.vqvae.quantize, random_store(), []
    for parts in (1, 3):
        settings = stage_settings(tmp_path / str(parts), accumulate=parts)
        trained.append(train(teacher.var, fresh_student(teacher), settings, store, quantizer))
    whole, in_parts = logged(tmp_path / "1"), logged(tmp_path / "3")
    assert in_parts[0] == pytest.approx(whole[0], abs=2e-5)
    assert [line["loss"] for line in in_parts] == pytest.approx([line["loss"] for line in whole], abs=1e-3)
    for name, value in trained[0].state_dict().items():
        if name.endswith("selector.bias"):  # shifts all scores: its gradient is rounding, which Adam makes large
            continue
        torch.testing.assert_close(trained[1].state_dict()[name], value, rtol=0, atol=2e-3, msg=name)


def test_a_batch_that_cannot_be_cut_is_refused_before_anything_is_written(teacher: ActVAR, tmp_path: Path):
    settings = stage_settings(tmp_path / "run", accumulate=4)
    with pytest.raises(UsageError, match="batch of 6 pictures cannot be cut into 4 equal parts"):
        TRAININGS[0](teacher.var, fresh_student(teacher), settings, random_store(), teacher.vqvae.quantize)
    assert not (tmp_path / "run").exists()


def test_the_norm_of_the_whole_batchs_gradient_is_cut_to_one():
    """Parts are not cut one by one: gradients of 3 and -1, in halves, make a norm of 1 and a step of 1."""
    weight = nn.Parameter(torch.zeros(1))
    update = Update(nn.Identity(), {"w": weight}, {"sgd": torch.optim.SGD([weight], lr=1.0)}, parts=2)
    values = update.step(0.5, (lambda slope=slope: {"loss": (slope * weight).sum()} for slope in (30.0, -10.0)))
    assert values["gradient"].item() == pytest.approx(10) and weight.item() == pytest.approx(-0.5)


def test_the_average_is_that_of_the_formula():
    """m <- d m + (1 - d) w, with d = min(decay, (1 + n) / (10 + n)); and it goes on from its state."""
    weight = nn.Parameter(torch.tensor([1.0, -1.0]))
    average = Average({"w": weight}, 0.3)
    expected = [1.0, -1.0]
    for n in range(8):
        with torch.no_grad():
            weight.copy_(torch.tensor([float(n), 2.0 - n]))
        if n == 4:
            state, average = copy.deepcopy(average.state_dict()), Average({"w": weight}, 0.3)
            average.load_state_dict(state)
        average.update()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = [decay * m + (1 - decay) * w for m, w in zip(expected, weight.tolist(), strict=True)]
    average.replace_parameters()
    assert weight.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_training_ends_with_the_average_if_one_is_kept(teacher: ActVAR, tmp_path: Path):
    """A mean lies between what it is of: nearer to the start than the last weights, and not at it."""
    ends = {}
    for decay in (0.0, 0.9):
        settings = stage_settings(tmp_path / str(decay), average=decay)
        ends[decay] = TRAININGS[0](
            teacher.var, fresh_student(teacher), settings, random_store(), teacher.vqvae.quantize
        ).blocks[0].selector.weight  # fmt: skip
    start = fresh_student(teacher).blocks[0].selector.weight
    moved = {decay: (end - start).norm().item() for decay, end in ends.items()}
    assert 0 < moved[0.9] < moved[0.0]


def test_what_was_logged_after_the_last_state_is_taken_back(tmp_path: Path):
    """And so is a line that a kill broke off: every step stands there once."""
    with Curves(tmp_path, 0, tensorboard=False) as curves:
        for step in range(5):
            curves.write(step, {"loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    with Curves(tmp_path, 3, tensorboard=False) as curves:
        curves.write(3, {"loss": 2.0})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_tensorboard_shows_every_step_once(tmp_path: Path):
    """Read by TensorBoard's own reader, over the files of two runs."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((0, 5), (3, 7)):
        with Curves(tmp_path, first, tensorboard=True) as curves:
            for step in range(first, last):
                curves.write(step, {"loss": float(first)})
    reader = events.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    found = [(event.step, event.value) for event in reader.Scalars("loss")]
    assert found == [(step, 0.0 if step < 3 else 3.0) for step in range(7)]


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ActVARError, match=r"package tensorboard is needed .* pip install 'actvar-trt\[train\]'"):
        Curves(tmp_path, 0, tensorboard=True)


def test_processes_that_do_not_write_leave_no_file(tmp_path: Path):
    with Curves(tmp_path, 0, tensorboard=False, writes=False) as curves:
        for step in range(3):
            curves.write(step, {"loss": 1.0})
        curves.secure()
    assert not list(tmp_path.iterdir())
