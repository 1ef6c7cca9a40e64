"""Guidance distilled away: the guided target against a loop, and what the training leaves."""

import math
from pathlib import Path

import pytest
import torch
from command_line import Command, in_process
from small_models import vivid_model
from small_training import (
    ACTIVE,
    TEACHER,
    fresh_student,
    logged,
    random_store,
    stage_settings,
    write_teacher,
    write_tokens,
)

from actvar.checkpoint.model import load_model
from actvar.checkpoint.tensor_file import open_tensor_file
from actvar.distill.guidance import guided_pass, token_strengths
from actvar.distill.stages import train_guidance_free, train_stage2
from actvar.models.actvar import ActVAR
from actvar.models.var import is_scorer
from actvar.scales import ScaleSchedule

STRENGTH = 1.5


@pytest.fixture(scope="module")
def teacher() -> ActVAR:
    return vivid_model(TEACHER)


def test_a_tokens_strength_is_its_scales():
    """t = cfg·si/(S−1): none at the first scale, all of it at the last."""
    assert token_strengths(ScaleSchedule((1, 2, 3)), 1.5).tolist() == [0.0] + [0.75] * 4 + [1.5] * 9


def test_the_guided_target_is_both_rows_of_every_picture(teacher: ActVAR):
    """(1+t)·cond − t·uncond, token by token; the traces are those of the class."""
    classes, schedule = torch.tensor([3, 0]), TEACHER.schedule
    inputs = torch.randn(2, schedule.total - 1, TEACHER.vqvae.z_channels, generator=torch.Generator().manual_seed(0))
    found = guided_pass(teacher.var, classes, inputs, STRENGTH)
    with torch.no_grad():
        conditional, traces = teacher.var(classes, inputs)
        unconditional, _ = teacher.var(torch.full((2,), TEACHER.num_classes), inputs)
    for si, (start, tokens) in enumerate(zip(schedule.starts, schedule.tokens, strict=True)):
        t = STRENGTH * si / (len(schedule) - 1)
        for token in range(start, start + tokens):
            for picture in range(2):
                pairs = zip(conditional[picture, token].tolist(), unconditional[picture, token].tolist(), strict=True)
                expected = torch.tensor([(1 + t) * c - t * u for c, u in pairs])
                torch.testing.assert_close(found.logits_BTV[picture, token], expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(found.traces, traces, strict=True):
        torch.testing.assert_close(ours.output_RTC, theirs.output_RTC)


def kl_to_guided(student: torch.nn.Module, teacher: ActVAR) -> float:
    """KL(student || guided teacher) on the stored pictures, token by token."""
    token_ids, classes = random_store().batch(torch.arange(8))
    inputs, _ = teacher.vqvae.quantize.teacher_forcing(token_ids)
    with torch.no_grad():
        guided, ours = guided_pass(teacher.var, classes, inputs, STRENGTH).logits_BTV, student(classes, inputs)[0]
    values = []
    for p, q in zip(ours.softmax(-1).flatten(0, 1).tolist(), guided.softmax(-1).flatten(0, 1).tolist(), strict=True):
        values.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(values) / len(values)


@pytest.mark.parametrize("dense", [True, False])
def test_the_student_learns_the_guided_predictions(teacher: ActVAR, tmp_path: Path, dense: bool):
    """Its loss is what a loop gives, falls, and leaves a model that needs no guidance, its choices as they were."""
    student = vivid_model(TEACHER).var if dense else fresh_student(teacher)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    run = stage_settings(tmp_path, steps=30, batch=8)
    first = kl_to_guided(student, teacher)
    trained = train_guidance_free(teacher.var, student, run, random_store(), teacher.vqvae.quantize, strength=STRENGTH)
    assert kl_to_guided(trained, teacher) < 0.7 * first
    assert trained.config.guided_scales == 0 and trained.config.activation == (None if dense else ACTIVE)
    after = trained.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if is_scorer(name))
    log = logged(tmp_path)
    assert log[-1]["loss"] < log[0]["loss"] and set(log[0]) == {"step", "learning_rate", "loss", "gradient"}


def test_no_class_is_never_shown(teacher: ActVAR, tmp_path: Path):
    """It has no meaning for such a student: its row of the class embedding stays as it was, to the bit."""
    student = fresh_student(teacher)
    before = student.class_emb.weight.detach().clone()
    run = stage_settings(tmp_path, class_drop=0.5, weight_decay=0.0)
    trained = train_guidance_free(teacher.var, student, run, random_store(), teacher.vqvae.quantize, strength=STRENGTH)
    assert torch.equal(trained.class_emb.weight[-1], before[-1])
    assert not torch.equal(trained.class_emb.weight[0], before[0])


STAGE2 = ("stage2", "--teacher", "teacher.safetensors", "--tokens-dir", "tokens", "--batch-size", 8, "--steps", 4)
FREED = (*STAGE2, "--distil-guidance", 1.5)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """In a folder with a teacher and its tokens."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    write_tokens(Path("tokens"), write_teacher(Path("teacher.safetensors")))
    return in_process(monkeypatch, capsys, "train")


def test_a_dense_student_is_the_teachers_copy_and_may_go_on(train: Command):
    """The checkpoint says that it needs no guidance, and of which strength it has learned."""
    assert train(*FREED, "--out", "free")[0] == 0
    file = Path("free/actvar.safetensors")
    config = load_model(file).config
    assert config.activation is None and config.guided_scales == 0
    assert open_tensor_file(file).metadata["guidance_distilled"] == "1.5"
    assert train(*FREED, "--student", "free", "--out", "further")[0] == 0
    assert load_model(Path("further/actvar.safetensors")).config == config


def test_an_actvar_is_freed_after_stage_1(train: Command):
    stage1 = ("stage1", "--teacher", "teacher.safetensors", "--tokens-dir", "tokens", "--out", "stage1",
              "--batch-size", 8, "--experts", 4, "--active-scales", "2,3", "--steps", 2)  # fmt: skip
    assert train(*stage1)[0] == 0
    assert train(*FREED, "--student", "stage1", "--out", "free")[0] == 0
    freed, first = (
        load_model(Path("free/actvar.safetensors")).config,
        load_model(Path("stage1/actvar.safetensors")).config,
    )
    assert freed.activation == first.activation and (freed.guided_scales, first.guided_scales) == (0, None)


def test_a_run_of_another_strength_is_another_run(train: Command):
    assert train(*FREED, "--out", "free")[0] == 0
    code, _, err = train(*STAGE2, "--distil-guidance", 2, "--out", "free")
    assert code == 1 and "holds another run (guidance 1.5 -> 2.0)" in err


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (STAGE2, 2, "--student is missing: the folder of stage 1. Only --distil-guidance goes without"),
        (
            (*STAGE2, "--distil-guidance", 0),
            2,
            "--distil-guidance must be above 0, as at 0 there is no guidance; got 0",
        ),
        ((*STAGE2, "--distil-guidance", "nan"), 2, "--distil-guidance must be above 0"),
    ],
)
def test_what_cannot_be_distilled_is_said_before_it_begins(train: Command, given: tuple, code: int, message: str):
    ended, out, err = train(*given, "--out", "free")
    assert (ended, out) == (code, "") and message in err and len(err.splitlines()) == 1
    assert not Path("free").exists()


def test_a_freed_model_is_no_teacher_of_guidance_and_no_student_of_a_guided_one(train: Command):
    assert train(*FREED, "--out", "free")[0] == 0
    free = "free/actvar.safetensors"
    code, _, err = train(*FREED, "--teacher", free, "--out", "again")
    assert code == 2 and "needs no guidance, so there is none to distil" in err
    stage1 = ("stage1", "--teacher", free, "--tokens-dir", "tokens", "--out", "stage1",
              "--batch-size", 8, "--experts", 4, "--active-scales", "2,3", "--steps", 2)  # fmt: skip
    assert train(*stage1)[0] == 0
    code, _, err = train(*STAGE2, "--student", "stage1", "--out", "stage2")
    assert code == 1 and "was not made of --teacher teacher.safetensors (guided_scales None -> 0)" in err
    assert train(*STAGE2, "--student", "stage1", "--teacher", free, "--out", "stage2")[0] == 0
    assert load_model(Path("stage2/actvar.safetensors")).config.guided_scales == 0


def test_stage_2_without_it_is_what_it_was(teacher: ActVAR, tmp_path: Path):
    """No new entry in its state's identity, or runs of an earlier version could not be gone on with."""
    run = stage_settings(tmp_path, steps=2)
    train_stage2(teacher.var, fresh_student(teacher), run, random_store(), teacher.vqvae.quantize)
    identity = torch.load(tmp_path / "state.pt", weights_only=True)["identity"]
    assert "guidance" not in identity and identity["training"] == "Stage 2"
