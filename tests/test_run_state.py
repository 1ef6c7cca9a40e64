"""A run's state: whole or not at all on the disk, continued bit by bit, and by no other run."""

import hashlib
import io
import os
import resource
import subprocess
import sys
import time
import zipfile
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
    logged,
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
    assert (tmp_path / "b/state.pt").read_bytes() == (tmp_path / "a/state.pt").read_bytes(), "byte for byte"


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
    (tmp_path / ".state.pt.0.tmp").write_bytes(b"half")
    train(0, teacher, tmp_path, steps=1)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


# ---- changed, and from a stranger


def stopped(teacher: ActVAR, folder: Path) -> Path:
    """The state of a stage 1 after four of six steps, in a run that ended at its fifth; its path."""

    class StoreThatEnds(TokenStore):
        def batch(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
            if self.calls == 5:
                raise KeyboardInterrupt
            return super().batch(places)

    store = random_store()
    with pytest.raises(KeyboardInterrupt):
        train(0, teacher, folder, StoreThatEnds(store.token_ids, store.class_ids), average=0.9)
    return folder / "state.pt"


def sealed(content: bytes) -> bytes:
    return content + f"\nsha256 {hashlib.sha256(content).hexdigest()}\n".encode()


def with_one_bit_changed(path: Path, of: str) -> None:
    """In the values of one tensor, with the checksums of the zip put right."""
    state = torch.load(path, weights_only=True)
    found = {"student": lambda: next(iter(state["parts"]["student"].values())),
             "optimizer": lambda: next(iter(state["parts"]["optimizer"]["state"].values()))["exp_avg"],
             "average": lambda: next(iter(state["parts"]["average"]["mean"].values()))}  # fmt: skip
    found[of]().view(-1).view(torch.int32)[0] ^= 1
    seal = path.read_bytes()[-SEAL:]
    content = io.BytesIO()
    torch.save(state, content)
    path.write_bytes(content.getvalue() + seal)


SEAL = len(sealed(b""))


@pytest.mark.parametrize("of", ["student", "optimizer", "average"])
def test_one_bit_of_a_state_is_not_trained_on(teacher: ActVAR, tmp_path: Path, of: str):
    """Neither of weights nor of the optimiser's memory: the run would end as another, and nobody would know."""
    path = stopped(teacher, tmp_path)
    with_one_bit_changed(path, of)
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read \(it was changed since.*Remove it to start"):
        train(0, teacher, tmp_path, average=0.9)


def test_a_state_of_an_earlier_version_is_told_so(teacher: ActVAR, tmp_path: Path):
    path = stopped(teacher, tmp_path)
    path.write_bytes(path.read_bytes()[:-SEAL])
    with pytest.raises(CheckpointError, match=r"does not end with its SHA-256.* or is of an earlier version"):
        train(0, teacher, tmp_path, average=0.9)


def test_a_hole_at_the_end_of_a_state_is_not_read(teacher: ActVAR, tmp_path: Path):
    """Four terabytes that take no place on the disk, and an hour to hash."""
    path = stopped(teacher, tmp_path)
    os.truncate(path, 1 << 42)
    with pytest.raises(CheckpointError, match="does not end with its SHA-256"):
        train(0, teacher, tmp_path, average=0.9)


def first_of(state: dict) -> dict:
    return next(iter(state["parts"]["optimizer"]["state"].values()))


def put(names: str, value: object):
    """A change: a place in a state, with `0` for the first key, gets a value, or one that is made of its own."""

    def change(state: dict) -> None:
        *above, last = names.split("/")
        for name in above:
            state = state[next(iter(state)) if name == "0" else name]
        last = next(iter(state)) if last == "0" else last
        state[last] = value(state[last]) if callable(value) else value

    return change


ODD = {
    "no parts": lambda state: state.pop("parts"),
    "a part less": lambda state: state["parts"].pop("average"),
    "steps that are none": put("step", "four"),
    "steps below 0": put("step", -1),
    "more steps than the run has": put("step", 7),
    "an identity of numbers": put("identity", {"steps": 6}),
    "a list": put("parts/student", []),
    "a weight less": lambda state: state["parts"]["student"].popitem(),
    "another shape": put("parts/student/0", torch.zeros(3)),
    "another type": put("parts/student/0", torch.Tensor.double),
    "no tensor": put("parts/average/mean/0", 1.0),
    "sparse": put("parts/average/mean/0", torch.Tensor.to_sparse),
    "meta": put("parts/average/mean/0", lambda value: value.to("meta")),
    "updates below 0": put("parts/average/updates", -3),
    "no groups": put("parts/optimizer/param_groups", None),
    "another optimiser": put("parts/optimizer/param_groups", [{"lr": 0.1, "params": [0]}]),
    "state of no parameter": lambda state: state["parts"]["optimizer"]["state"].update({99: {}}),
    "half a state": lambda state: first_of(state).pop("exp_avg"),
    "a step below 0": lambda state: first_of(state).update(step=torch.tensor(-1.0)),
    "a step that is none": lambda state: first_of(state).update(step=torch.tensor(float("nan"))),
    "memory of another shape": lambda state: first_of(state).update(exp_avg_sq=torch.zeros(2)),
    "one value for all": lambda state: first_of(state).update(
        exp_avg=torch.zeros(1).expand(first_of(state)["exp_avg"].shape)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_a_state_that_does_not_fit_is_refused_though_its_hash_is_right(teacher: ActVAR, tmp_path: Path, what: str):
    """Before anything is trained; PyTorch takes some of it in and fails a step later, or never."""
    path = stopped(teacher, tmp_path)
    state = torch.load(path, weights_only=True)
    ODD[what](state)
    content = io.BytesIO()
    torch.save(state, content)
    path.write_bytes(sealed(content.getvalue()))
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read \(.+\)\. Remove it to start again"):
        train(0, teacher, tmp_path, average=0.9)


class Memory:
    """What a pickle may ask for, though it may run nothing: a gigabyte for a few bytes."""

    def __reduce__(self):
        return bytearray, (10**9,)


def with_storage_of(count: int, content: bytes) -> bytes:
    """The same archive, in which the pickle says that a weight has more values than the archive has of it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            record = old.read(name)
            new.writestr(name, record[: len(record) // 2] if name.endswith(f"/data/{count}") else record)
    return made.getvalue()


@pytest.mark.parametrize(("kind", "reason"), [("memory", "bytearray"), ("storage", "does not have in that size")])
def test_a_state_takes_no_more_memory_than_it_has_bytes(teacher: ActVAR, tmp_path: Path, kind: str, reason: str):
    """Its hash is right, and PyTorch would allot what it asks for, or read beyond what there is."""
    path = stopped(teacher, tmp_path)
    state = torch.load(path, weights_only=True)
    if kind == "memory":
        state["more"] = Memory()
    content = io.BytesIO()
    torch.save(state, content)
    changed = content.getvalue() if kind == "memory" else with_storage_of(0, content.getvalue())
    path.write_bytes(sealed(changed))
    with pytest.raises(CheckpointError, match=rf"state\.pt cannot be read \(.*{reason}.*\)\. Remove it to start again"):
        train(0, teacher, tmp_path, average=0.9)


@pytest.mark.parametrize("name", ["state.pt", "log.jsonl"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_runs_files_are_plain(teacher: ActVAR, tmp_path: Path, name: str, kind: str):
    """A pipe would be waited for, and a link could lead anywhere."""
    path = stopped(teacher, tmp_path / "run").with_name(name)
    path.rename(tmp_path / "elsewhere")
    make = {"link": lambda: path.symlink_to(tmp_path / "elsewhere"), "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir}  # fmt: skip
    make[kind]()
    with pytest.raises(ActVARError, match=rf"{name} must be a plain file"):
        train(0, teacher, tmp_path / "run", average=0.9)


STRANGE_LINES = [
    b"\n", b"[]\n", b"null\n", b"{}\n", b'{"step": 1e999}\n', b'{"step": "1"}\n', b"\xff\xfe\n", b"[" * 9999 + b"\n",
    b'{"step": ' + b"9" * 5000 + b"}\n", b'{"step": -1}\n', b'{"step": NaN}\n', b"x" * 300_000 + b"\n",
    b'{"step": true}\n',
]  # fmt: skip


@pytest.mark.parametrize("line", STRANGE_LINES, ids=range(len(STRANGE_LINES)))
def test_a_line_that_is_none_is_left_out_of_the_curves(teacher: ActVAR, tmp_path: Path, line: bytes, capsys):
    path = stopped(teacher, tmp_path).with_name("log.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], line, *lines[1:]]) + b'{"step": 4, "lo')
    train(0, teacher, tmp_path, average=0.9)
    assert [entry["step"] for entry in logged(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert "lines that are none of a run's were left out" in capsys.readouterr().err


def test_a_value_that_is_no_number_is_null(tmp_path: Path):
    """Other readers of JSON know neither NaN nor Infinity."""
    with Curves(tmp_path, 0, tensorboard=False) as curves:
        curves.write(0, {"loss": 1.0, "gradient": float("inf")})
    with Curves(tmp_path, 1, tensorboard=False):
        assert logged(tmp_path) == [{"step": 0, "loss": 1.0, "gradient": None}]


# ---- of another length


def test_a_run_may_change_its_length_while_it_warms_up(teacher: ActVAR, tmp_path: Path):
    """Until then it is what a run of the new length would be, bit by bit."""
    stopped(teacher, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"\(warmup 2 -> 9\)"):
        train(0, teacher, tmp_path / "a", average=0.9, warmup=9)
    long = dict(average=0.9, warmup=4, steps=9)
    filling = StoreThatFillsTheDisk(random_store().token_ids, random_store().class_ids)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CheckpointError):
            train(0, teacher, tmp_path / "b", filling, **{**long, "steps": 5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert torch.load(tmp_path / "b/state.pt", weights_only=True)["step"] == 2
    require_equal(train(0, teacher, tmp_path / "b", **long), train(0, teacher, tmp_path / "c", **long))


def test_a_run_that_has_ended_says_why_it_cannot_be_made_longer(teacher: ActVAR, tmp_path: Path):
    train(0, teacher, tmp_path)
    message = r"holds another run \(steps 6 -> 9\): 6 steps are done, and after the warm-up the learning rate falls"
    with pytest.raises(CheckpointError, match=message):
        train(0, teacher, tmp_path, steps=9)


def test_a_warm_up_that_is_longer_than_the_run_is_said(teacher: ActVAR, tmp_path: Path, capsys):
    """Three steps of a hundred end at 3 % of the learning rate that was asked for."""
    train(0, teacher, tmp_path / "a", steps=3, warmup=100)
    said = "the warm-up of 100 steps is longer than the 3 of the run, whose learning rate ends at 0.0003"
    assert said in capsys.readouterr().err
    train(0, teacher, tmp_path / "b", steps=3, warmup=3)
    assert "warm-up" not in capsys.readouterr().err


# ---- killed


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
