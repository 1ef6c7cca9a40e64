"""A run's state: whole or not at all on the disk, continued bit by bit, and by no other run."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import in_process
from safetensors.torch import load_file
from small_models import vivid_model
from small_training import (
    TEACHER,
    TRAININGS,
    fresh_student,
    random_store,
    require_equal,
    stage_settings,
    write_teacher,
    write_tokens,
)

from actvar.data.tokens import TokenStore
from actvar.distill.files import CHECKPOINT, write_checkpoint
from actvar.errors import ActVARError, CheckpointError
from actvar.models.actvar import ActVAR
from actvar.models.var import VAR
from actvar.training.curves import Curves


@pytest.fixture(scope="module")
def teacher() -> ActVAR:
    return vivid_model(TEACHER)


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """Writing more bytes into a file fails, as it does on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class StoreThatFillsTheDisk(TokenStore):
    """From its fourth batch on, files may be no longer than what is there; the state then holds two steps."""

    def batch(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        if self.calls == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return super().batch(places)


def train(stage: int, teacher: ActVAR, folder: Path, store: TokenStore | None = None, **changes) -> VAR:
    student = fresh_student(teacher)
    return TRAININGS[stage](
        teacher.var, student, stage_settings(folder, **changes), store or random_store(), teacher.vqvae.quantize
    )


@pytest.mark.parametrize("stage", [0, 1])
def test_a_full_disk_costs_nothing_but_the_last_steps(teacher: ActVAR, tmp_path: Path, stage: int):
    """The state before stays, no temporary file does, and the run then ends as an unbroken one."""
    changes = dict(accumulate=1, average=0.9)
    unbroken = train(stage, teacher, tmp_path / "a", **changes)
    filling = StoreThatFillsTheDisk(random_store().token_ids, random_store().class_ids)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CheckpointError, match=r"state\.pt cannot be written: File too large\. The state before"):
            train(stage, teacher, tmp_path / "b", filling, **changes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["log.jsonl", "state.pt"]
    assert torch.load(tmp_path / "b/state.pt", weights_only=True)["step"] == 2
    require_equal(train(stage, teacher, tmp_path / "b", **changes), unbroken)


def test_a_full_disk_before_the_first_state_is_said(teacher: ActVAR, tmp_path: Path):
    with files_of_at_most(20_000), pytest.raises(CheckpointError, match="There is no state before it"):
        train(0, teacher, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_curves_that_cannot_be_written_are_said(tmp_path: Path):
    message = r"log\.jsonl cannot be written: File too large\. Make room"
    limit = files_of_at_most(10)
    with pytest.raises(ActVARError, match=message), limit, Curves(tmp_path, 0, tensorboard=False) as curves:
        curves.write(0, {"loss": 1.0})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("teacher", lambda teacher: {"teacher": vivid_model(TEACHER, seed=1)}),
        ("student", lambda teacher: {"student": fresh_student(vivid_model(TEACHER, seed=1))}),
        ("activation", lambda teacher: {"student": fresh_student(teacher, token_rates=(0.5, 0.5))}),
        ("data", lambda teacher: {"store": random_store(seed=1)}),
        ("vqvae", lambda teacher: {"quantizer": vivid_model(TEACHER, seed=1).vqvae.quantize}),
        ("accumulate", lambda teacher: {"accumulate": 2}),
        ("average", lambda teacher: {"average": 0.5}),
        ("precision", lambda teacher: {"precision": "bf16"}),
        ("training", lambda teacher: {"stage": 1}),
    ],
)
def test_a_run_of_something_else_is_not_continued(teacher: ActVAR, tmp_path: Path, name: str, change):
    """Each alone is told, by its name."""
    train(0, teacher, tmp_path, steps=1)
    changes = change(teacher)
    other, student = changes.pop("teacher", teacher), changes.pop("student", fresh_student(teacher))
    store, quantizer = changes.pop("store", random_store()), changes.pop("quantizer", teacher.vqvae.quantize)
    stage, settings = changes.pop("stage", 0), stage_settings(tmp_path, steps=1, **changes)
    with pytest.raises(CheckpointError, match=rf"holds another run \({name} [^,]+ -> [^,]+|\({name} Activation"):
        TRAININGS[stage](other.var, student, settings, store, quantizer)


def test_where_a_run_lies_and_how_often_it_is_saved_may_change(teacher: ActVAR, tmp_path: Path):
    first = train(0, teacher, tmp_path / "a", steps=4)
    (tmp_path / "a").rename(tmp_path / "b")
    again = TRAININGS[0](
        teacher.var, fresh_student(teacher),
        replace(stage_settings(tmp_path / "b", steps=4), save_every=1, log_every=3),
        random_store(), teacher.vqvae.quantize,
    )  # fmt: skip
    require_equal(again, first)


def test_what_a_killed_process_left_is_removed(teacher: ActVAR, tmp_path: Path):
    (tmp_path / ".state.pt.0123abcd.tmp").write_bytes(b"half")
    train(0, teacher, tmp_path, steps=1)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


STEPS = 20
SLOWED = """
import time
from actvar.data.tokens import TokenStore

batch = TokenStore.batch
TokenStore.batch = lambda *arguments: time.sleep(0.03) or batch(*arguments)
from actvar.cli.main import main
main()
"""


def stage_arguments(stage: int, out: Path) -> list[str]:
    common = [
        "--teacher", "teacher.safetensors", "--tokens-dir", "tokens", "--out", out, "--steps", STEPS, "--batch-size", 8,
        "--accumulate", 2, "--average", 0.9, "--warmup", 5, "--save-every", 4,
    ]  # fmt: skip
    own = ["--experts", 4, "--active-scales", "2,3"] if stage == 1 else ["--student", "student.safetensors"]
    return [f"stage{stage}", *map(str, common + own)]


def kill_in_the_middle(folders: dict[int, Path]) -> None:
    """Start both stages, slowed down so that there is a moment to hit; kill -9 each when its first state is there."""
    running = {
        folder: subprocess.Popen(
            [sys.executable, "-c", SLOWED, "train", *stage_arguments(stage, folder)], stdout=subprocess.DEVNULL
        )
        for stage, folder in folders.items()
    }
    deadline = time.monotonic() + 200
    while running:
        for folder in [folder for folder in running if (folder / "state.pt").exists()]:
            process = running.pop(folder)
            process.kill()
            process.wait()
        assert all(process.poll() is None for process in running.values()) and time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_a_run_killed_by_the_system_ends_as_an_unbroken_one(teacher: ActVAR, tmp_path: Path, monkeypatch, capsys):
    """Both stages, by the command line; accumulation and average on."""
    monkeypatch.chdir(tmp_path)
    command = in_process(monkeypatch, capsys, "train")
    write_tokens(Path("tokens"), write_teacher(Path("teacher.safetensors")))
    write_checkpoint(Path(), fresh_student(teacher), teacher)
    Path(CHECKPOINT).rename("student.safetensors")
    folders = {1: Path("killed1"), 2: Path("killed2")}
    kill_in_the_middle(folders)
    for stage, killed in folders.items():
        assert 0 < torch.load(killed / "state.pt", weights_only=True)["step"] < STEPS
        assert not (killed / CHECKPOINT).exists()
        for out in (killed, unbroken := Path(f"unbroken{stage}")):
            assert command(*stage_arguments(stage, out))[0] == 0
        expected, actual = load_file(unbroken / CHECKPOINT), load_file(killed / CHECKPOINT)
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name
