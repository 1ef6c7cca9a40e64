"""Runs of numbered pictures: the same whoever draws them and however often they were stopped; and the .npz of them.

Letters in shapes: N pictures, H W pixels down and across, 3 red green blue.
"""

import os
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, in_process
from small_bundle import drawn_alone, small_bundle
from small_models import small_config, vivid_model

from actvar.bundle.json_form import write_json
from actvar.cli.options import chosen_shard
from actvar.errors import ActVARError, UsageError
from actvar.evaluation import picture_run, picture_sets
from actvar.evaluation.picture_run import WHOLE, PictureRun, RunSpec, open_run
from actvar.evaluation.picture_sets import open_npz, write_npz
from actvar.export.onnx_export import export_bundle

AT_ONCE, COUNT = 10, 34  # four files, the last of four
FILES = [f"pictures-{first:06d}.npy" for first in (0, 10, 20, 30)]
CLASSES, SIDE = 5, 10
SPEC = RunSpec("00", "dense", "fp32", "onnxruntime", "cpu", CLASSES, SIDE, COUNT, 0, 1.5, 900, 0.96)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def expected_NHW3(bundle: Path) -> np.ndarray:
    """Every picture drawn alone, by its number."""
    return drawn_alone(bundle, COUNT, seed=0)


@pytest.fixture
def evaluate(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`actvar-trt evaluate` of the small bundle, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(picture_run, "PIECE", AT_ONCE)
    return in_process(monkeypatch, capsys, "evaluate", *arguments(bundle))


def arguments(bundle: Path) -> tuple[object, ...]:
    return "--model", bundle, "--threads", 1, "--batch-size", 8, "--count", COUNT


def drawn(folder: Path) -> np.ndarray:
    assert sorted(path.name for path in folder.iterdir()) == [*FILES, "run.json"]
    return np.concatenate([np.load(folder / file) for file in FILES])


def full_after(files: int, at: str):
    """In place of `written_whole`: a disk that is full, in the midst of writing, after so many files."""
    real, done = picture_run.written_whole, iter(range(100))

    @contextmanager
    def written(path: Path) -> Iterator:
        with real(path) as file:
            yield file
            if path.name.startswith(at) and next(done) >= files:
                raise OSError(28, "No space left on device")

    return written


# ---- drawing


def test_a_run_holds_the_pictures_of_its_numbers(evaluate: Command, expected_NHW3: np.ndarray):
    """All classes in turn, whatever the batch; without a reference nothing is scored, and nothing needs PyTorch."""
    code, out, err = evaluate()
    assert (code, out) == (0, "") and err.splitlines() == ["34 of 34 pictures are in evaluation-bundle-34."]
    np.testing.assert_array_equal(drawn(Path("evaluation-bundle-34")), expected_NHW3)


def test_shards_make_the_same_run(evaluate: Command, expected_NHW3: np.ndarray):
    """Three processes, the last of them first."""
    for number, kept in ((2, 10), (0, 24), (1, 34)):
        code, _, err = evaluate("--shard", f"{number}/3", "--out", "run")
        assert code == 0 and err.splitlines()[-1] == f"{kept} of 34 pictures are in run."
    np.testing.assert_array_equal(drawn(Path("run")), expected_NHW3)


def test_the_files_of_other_shards_are_not_read_for_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are there when they have their names; 64 processes would read 50,000 pictures each."""
    monkeypatch.setattr(picture_run, "PIECE", 2)
    spec = replace(SPEC, count=8)
    run = open_run(tmp_path / "run", spec)
    for piece in run.pieces():
        run.save(piece, np.zeros((piece.count, spec.side, spec.side, 3)))
    damaged = tmp_path / "run" / run.pieces()[2].file
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"0")
    read: list[str] = []
    holds = PictureRun._holds
    monkeypatch.setattr(PictureRun, "_holds", lambda run, piece: read.append(piece.file) or holds(run, piece))
    again = open_run(tmp_path / "run", spec)
    assert again.kept((0, 2)) == 6 and read == [piece.file for piece in again.pieces((0, 2))]
    assert again.kept((1, 2)) == 8 and again.kept() == 8


SMALL_PIECES = """
from actvar.evaluation import picture_run
from actvar.cli.main import main

picture_run.PIECE = 10
main()
"""


def test_shards_that_begin_at_once_make_the_same_run(evaluate: Command, bundle: Path, expected_NHW3: np.ndarray):
    """Three processes in one folder that none of them has made yet."""
    command = [sys.executable, "-c", SMALL_PIECES, "evaluate", *map(str, arguments(bundle)), "--out", "run", "--shard"]
    started = [subprocess.Popen([*command, f"{shard}/3"], stderr=subprocess.PIPE, text=True) for shard in range(3)]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    np.testing.assert_array_equal(drawn(Path("run")), expected_NHW3)


def test_a_run_that_another_shard_begins_meanwhile_is_no_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It has seen no record, and then sees the other's pictures."""
    monkeypatch.setattr(picture_run, "PIECE", AT_ONCE)
    real = Path.iterdir

    def seen_late(folder: Path):
        monkeypatch.setattr(Path, "iterdir", real)
        run = open_run(folder, SPEC)
        run.save(run.pieces()[1], np.zeros((run.pieces()[1].count, SIDE, SIDE, 3)))
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", seen_late)
    assert open_run(tmp_path / "run", SPEC).spec == SPEC


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from actvar.evaluation import picture_run
from actvar.cli.main import main

@contextmanager
def written(path, real=picture_run.written_whole):
    with real(path) as file:
        if path.name == "pictures-000020.npy":
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        yield file

picture_run.PIECE, picture_run.written_whole = 10, written
main()
"""


def test_a_killed_run_goes_on(evaluate: Command, bundle: Path, expected_NHW3: np.ndarray):
    """kill -9 in the midst of the third file: two are kept as they are, and half of one is not left in the end."""
    command = [sys.executable, "-c", KILLED, "evaluate", *map(str, arguments(bundle)), "--out", "run"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {file: os.stat(Path("run") / file).st_mtime_ns for file in FILES[:2]}
    assert [path.name for path in Path("run").glob("pictures-*")] and list(Path("run").glob(".pictures-000020.*.tmp"))
    code, _, err = evaluate("--out", "run")
    assert code == 0 and err.splitlines()[0] == "20 of 34 pictures are in run already."
    assert {file: os.stat(Path("run") / file).st_mtime_ns for file in kept} == kept
    np.testing.assert_array_equal(drawn(Path("run")), expected_NHW3)


@pytest.mark.parametrize("damage", ["cut", "longer", "other shape"])
def test_a_damaged_file_is_drawn_again(evaluate: Command, expected_NHW3: np.ndarray, damage: str):
    """A power cut may leave a file that has its name and not its content."""
    evaluate("--out", "run")
    path = Path("run") / FILES[1]
    if damage == "other shape":
        np.save(path, np.zeros((AT_ONCE, SIDE, 3, SIDE), np.uint8))
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else path.read_bytes() + b"x")
    code, _, err = evaluate("--out", "run")
    assert code == 0 and err.startswith("24 of 34 pictures are in run already.")
    np.testing.assert_array_equal(drawn(Path("run")), expected_NHW3)


def elsewhere(path: Path) -> Path:
    return path.rename(path.absolute().parent.parent / f"elsewhere-{path.name}")


STRANGE = {
    "other pixels": lambda path, other: path.write_bytes(flipped(path.read_bytes(), 500)),
    "other class order": lambda path, other: path.write_bytes(reversed_pictures(path.read_bytes())),
    "another piece": lambda path, other: path.write_bytes(other.read_bytes()),
    "no hash": lambda path, other: path.write_bytes(path.read_bytes()[:-72]),
    "link": lambda path, other: path.symlink_to(elsewhere(path)),
    "pipe": lambda path, other: (path.unlink(), os.mkfifo(path)),
    "itself": lambda path, other: (path.unlink(), path.symlink_to(path.name)),
}


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def reversed_pictures(content: bytes) -> bytes:
    pixels = AT_ONCE * SIDE * SIDE * 3
    pictures_NHW3 = np.frombuffer(content[-72 - pixels : -72], np.uint8).reshape(AT_ONCE, SIDE, SIDE, 3)
    return content[: -72 - pixels] + pictures_NHW3[::-1].tobytes() + content[-72:]


@pytest.mark.parametrize("kind", STRANGE)
def test_a_file_that_is_not_what_was_drawn_is_drawn_again(evaluate: Command, expected_NHW3: np.ndarray, kind: str):
    """It has its name, its length and its header; what it holds would be in every score. A pipe is not waited for."""
    evaluate("--out", "run")
    STRANGE[kind](Path("run") / FILES[1], Path("run") / FILES[0])
    code, _, err = evaluate("--out", "run")
    assert code == 0 and err.startswith("24 of 34 pictures are in run already.")
    np.testing.assert_array_equal(drawn(Path("run")), expected_NHW3)


def test_a_piece_of_another_run_is_none_of_this(tmp_path: Path):
    """The same numbers, sizes and name, of another seed: copied together, they would be taken for one."""
    runs = [open_run(tmp_path / str(seed), replace(SPEC, seed=seed)) for seed in range(2)]
    for run in runs:
        run.save(run.pieces()[0], np.full((COUNT, SIDE, SIDE, 3), run.spec.seed))
    assert not runs[1].missing()
    file = runs[1].pieces()[0].file
    (tmp_path / "1" / file).write_bytes((tmp_path / "0" / file).read_bytes())
    assert runs[1].missing() == runs[1].pieces() and runs[1].kept(WHOLE) == 0
    with pytest.raises(ActVARError, match="is missing or not whole"):
        list(runs[1].batches(5))


def test_a_whole_number_is_the_same_run(tmp_path: Path):
    run = open_run(tmp_path, replace(SPEC, cfg=2, top_p=1))
    run.save(run.pieces()[0], np.zeros((COUNT, SIDE, SIDE, 3)))
    assert not open_run(tmp_path, replace(SPEC, cfg=2.0, top_p=1.0)).missing()


def test_a_run_of_an_earlier_version_is_told_so(tmp_path: Path):
    """Its pictures have no hash. They stay where they are."""
    write_json(tmp_path / "run.json", {**SPEC.record, "version": 1})
    np.save(tmp_path / FILES[0], np.zeros((COUNT, SIDE, SIDE, 3), np.uint8))
    with pytest.raises(ActVARError, match=r"drawn by an earlier version, whose pictures have no hash.*--out"):
        open_run(tmp_path, SPEC)


def test_what_a_record_says_reaches_no_terminal_raw(tmp_path: Path):
    open_run(tmp_path, replace(SPEC, device="\x1b[2J"))
    with pytest.raises(ActVARError, match=r"device is \\x1b\[2J there, and cpu here"):
        open_run(tmp_path, SPEC)


def test_a_full_disk_keeps_what_was_drawn(
    evaluate: Command, expected_NHW3: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(picture_run, "written_whole", full_after(2, "pictures-"))
        code, _, err = evaluate("--out", "run")
    assert code == 1 and err.splitlines() == [
        "20 of 34 pictures are in run.",
        f"Error: {Path('run') / FILES[2]} cannot be written: No space left on device. 20 of 34 pictures are kept "
        "there: make room, and give the same command again.",
    ]
    assert sorted(path.name for path in Path("run").iterdir()) == [*FILES[:2], "run.json"]
    assert evaluate("--out", "run")[0] == 0
    np.testing.assert_array_equal(drawn(Path("run")), expected_NHW3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seed", 1], "seed is 0 there, and 1 here"),
        (["--cfg", 2], "cfg is 1.5 there, and 2.0 here"),
        (["--top-k", 9], "top_k is 900 there, and 9 here"),
        (["--class", "none"], "class_ids is not given there, and [5] here"),
        (["--count", 30], "count is 34 there, and 30 here"),
    ],
)
def test_a_run_with_other_settings_is_refused(evaluate: Command, more: list[object], words: str):
    """Before anything is drawn, and nothing is lost."""
    evaluate("--out", "run", "--shard", "3/4")
    code, _, err = evaluate("--out", "run", *more)
    assert code == 1 and f"run holds pictures of another run: {words}. Name another folder with --out" in err
    assert sorted(path.name for path in Path("run").iterdir()) == [FILES[3], "run.json"]


def test_a_run_of_another_model_is_refused(evaluate: Command, tmp_path: Path):
    """The same configuration and settings, and other weights."""
    export_bundle(vivid_model(small_config(), seed=1), tmp_path / "other", "fp32", "a test")
    evaluate("--out", "run", "--shard", "3/4")
    code, _, err = evaluate("--out", "run", "--model", tmp_path / "other")
    assert code == 1 and "run holds pictures of another run: weights is" in err
    assert sorted(path.name for path in Path("run").iterdir()) == [FILES[3], "run.json"]


def test_a_folder_of_other_things_is_no_run(evaluate: Command):
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("")
    code, _, err = evaluate("--out", "thesis")
    assert code == 1 and "thesis holds chapter.tex and no run.json, so it is no run." in err


def test_a_run_whose_record_was_edited_is_refused(tmp_path: Path):
    open_run(tmp_path, SPEC)
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ActVARError, match="was edited"):
        open_run(tmp_path, replace(SPEC, seed=1))


@pytest.mark.parametrize("text", ["2/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text: str):
    with pytest.raises(UsageError, match="--shard must be"):
        chosen_shard(text)


@pytest.mark.parametrize(("of", "count"), [(1, 7), (3, 50), (3, 51), (7, 170), (9, 100)])
def test_shards_cover_all_files_once(tmp_path: Path, of: int, count: int):
    run = PictureRun(tmp_path, replace(SPEC, count=count))
    numbers = [n for i in range(of) for piece in run.pieces((i, of)) for n in piece.numbers]
    assert sorted(numbers) == list(range(count))


@pytest.mark.parametrize("option", ["--npz", "--reference", "--json", "--save-statistics"])
def test_a_shard_does_not_score(evaluate: Command, option: str):
    code, _, err = evaluate("--shard", "1/2", option, "file")
    assert code == 2 and f"{option} needs all pictures" in err


# ---- the .npz


def as_the_adm_suite_reads(path: Path) -> np.ndarray:
    """guided-diffusion's evaluator.py streams a header of version 1.0 or 2.0 and then the bytes, batch by batch."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
        assert not fortran_order and not dtype.hasobject
        batches = [np.frombuffer(member.read(int(np.prod(shape[1:]))), dtype) for _ in range(shape[0])]
        assert not member.read()
    return np.stack(batches).reshape(shape)


def test_the_npz_is_what_numpy_and_the_adm_suite_read(evaluate: Command, expected_NHW3: np.ndarray):
    code, out, _ = evaluate("--npz", "all.npz", "--out", "run")
    assert code == 0 and out.startswith("all.npz: 34 pictures")
    for read_NHW3 in (np.load("all.npz")["arr_0"], as_the_adm_suite_reads(Path("all.npz"))):
        assert read_NHW3.dtype == np.uint8
        np.testing.assert_array_equal(read_NHW3, expected_NHW3)


def test_the_npz_is_never_in_memory(tmp_path: Path):
    """Of 30 MB no more than a few batches of 0.3 MB."""
    batch_NHW3 = np.zeros((100, 32, 32, 3), np.uint8)
    tracemalloc.start()
    write_npz(tmp_path / "all.npz", (10_000, 32, 32, 3), (batch_NHW3 for _ in range(100)))
    assert sum(len(batch) for batch in open_npz(tmp_path / "all.npz").batches(100)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_full_disk_leaves_no_half_npz(evaluate: Command, monkeypatch: pytest.MonkeyPatch):
    """The pictures are kept, and the same command needs only to write."""
    monkeypatch.setattr(picture_sets, "written_whole", full_after(0, "all"))
    code, _, err = evaluate("--npz", "all.npz", "--out", "run")
    assert code == 1 and "all.npz cannot be written: No space left on device. The pictures are kept in run" in err
    assert sorted(path.name for path in Path().iterdir()) == ["run"] and len(drawn(Path("run"))) == COUNT


@pytest.mark.parametrize("option", ["--npz", "--json", "--save-statistics"])
def test_a_file_in_no_folder_is_refused_before_drawing(evaluate: Command, option: str):
    code, _, err = evaluate(option, "nowhere/file")
    assert code == 2 and f"{option} must be a file in a folder that is there" in err and not list(Path().iterdir())
