"""`actvar-trt sample`: pictures in shards, the same bytes however often it was stopped; each is `generate`'s."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, in_process
from PIL import Image
from small_bundle import drawn_alone, small_bundle

from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_graphs
from actvar.serve import sample_run

CLASSES, COUNT, SHARD = 5, 13, 5  # three shards, the last of three
FORMS = ["png", "webdataset", "parquet"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def expected_NHW3(bundle: Path) -> np.ndarray:
    """Every picture drawn alone, by its class and number."""
    return drawn_alone(bundle, COUNT, seed=3)


def arguments(bundle: Path) -> list[str]:
    return ["--model", str(bundle), "--threads", "1", "--batch-size", "4", "--seed", "3"]


@pytest.fixture
def sample(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`actvar-trt sample` of the small bundle, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys, "sample", *arguments(bundle))


def sharded(form: str) -> list[object]:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    return ["--format", form, "--shard-size", SHARD, "--count", COUNT]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def pictures(folder: Path, form: str) -> dict[tuple[int, int], np.ndarray]:
    """By class and number, as a program of another hand would read them."""
    found = {}
    if form == "png":
        for path in folder.glob("*/*.png"):
            found[int(path.parent.name), int(path.stem)] = pixels(path.read_bytes())
    elif form == "webdataset":
        for path in folder.glob("*.tar"):
            with tarfile.open(path) as archive:
                parts = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
            for name, content in parts.items():
                key, end = name.split(".")
                if end == "png":
                    facts = json.loads(parts[f"{key}.json"])
                    assert facts == {"class_id": int(parts[f"{key}.cls"]), "number": int(key), "seed": 3}
                    found[facts["class_id"], facts["number"]] = pixels(content)
    else:
        import pyarrow.parquet

        for path in folder.glob("*.parquet"):
            for row in pyarrow.parquet.read_table(path).to_pylist():
                assert row["seed"] == 3 and row["image"]["path"] == f"{row['number']:06d}.png"
                found[row["label"], row["number"]] = pixels(row["image"]["bytes"])
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_pictures_of_their_numbers(sample: Command, expected_NHW3: np.ndarray, form: str):
    """All classes in turn, whatever the batch and the shard; and the manifest leads to the hash of every file."""
    code, out, err = sample(*sharded(form), "--out", "set")
    assert (code, out) == (0, f"{Path('set/manifest.json')}\n")
    assert "13 pictures drawn in" in err and "pictures per second" in err and "13 of 13 pictures are in set." in err
    found = pictures(Path("set"), form)
    assert sorted(found) == sorted((number % CLASSES, number) for number in range(COUNT))
    for (_, number), picture_HW3 in found.items():
        np.testing.assert_array_equal(picture_HW3, expected_NHW3[number])
    files = tree(Path("set"))
    records = json.loads(files["manifest.json"])["records"]
    listed = [entry for record in records for entry in json.loads(files[f"shards/{record['file']}"])["files"]]
    hashes = {f"shards/{record['file']}": record["sha256"] for record in records}
    hashes |= {entry["file"]: entry["sha256"] for entry in listed}
    assert hashes.keys() | {"run.json", "manifest.json"} == files.keys()
    assert all(sha256(files[name]).hexdigest() == digest for name, digest in hashes.items())


@pytest.mark.parametrize("form", FORMS)
def test_classes_that_are_named_take_turns_and_none_is_one(sample: Command, bundle: Path, form: str):
    """A shard that is drawn without a class has its own folder, or the number after the last class for a label."""
    wanted = [2, CLASSES]
    code, _, err = sample(*sharded(form), "--class", "2", "--class", "none", "--out", "set", "--count", 6)
    assert code == 0, err
    if form == "png":
        assert sorted(path.name for path in Path("set").iterdir() if path.is_dir()) == ["0002", "none", "shards"]
        Path("set/none").rename(f"set/{CLASSES:04d}")
    source = open_graphs(bundle, batch_size=1, threads=1)
    expected = source.draw((Order(wanted[number % 2], number) for number in range(6)), source.model.sampling, 3)
    found = pictures(Path("set"), form)
    assert sorted(found) == sorted((wanted[number % 2], number) for number in range(6))
    for picture in expected:
        np.testing.assert_array_equal(found[picture.order.class_id, picture.order.number], picture.pixels_HW3)


def test_a_picture_is_the_file_that_generate_writes(
    sample: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The same class, seed and number: the same bytes of a PNG."""
    sample("--per-class", 2, "--out", "set")
    generate = in_process(monkeypatch, capsys, "generate", *arguments(bundle), "--class", "2", "--count", "8")
    assert generate("--out", "drawn")[0] == 0
    for number in (2, 7):
        [drawn] = Path("drawn").glob(f"*-seed3-{number}.png")
        assert drawn.read_bytes() == Path(f"set/0002/{number:06d}.png").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_is_not_drawn_again(sample: Command, form: str):
    """Not even written; a shard that was damaged, or lost its record, is drawn again and nothing else."""
    sample(*sharded(form), "--out", "set")
    before = tree(Path("set"))
    code, _, err = sample(*sharded(form), "--out", "set")
    assert code == 0 and "13 of 13 pictures are in set already." in err and "drawn in" not in err
    damaged = {"png": "0002/000007.png", "webdataset": "shard-000005.tar", "parquet": "shard-000005.parquet"}[form]
    content = before[damaged]
    (Path("set") / damaged).write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    Path("set/shards/000010.json").unlink()
    times = {name: os.stat(Path("set") / name).st_mtime_ns for name in before if "000000" in name}
    code, _, err = sample(*sharded(form), "--out", "set")
    assert code == 0 and "5 of 13 pictures are in set already." in err and "8 pictures drawn in" in err
    assert tree(Path("set")) == before
    assert times and {name: os.stat(Path("set") / name).st_mtime_ns for name in times} == times


def test_a_shard_of_many_files_is_there_whatever_the_length_of_its_record(sample: Command, monkeypatch):
    """Of 60,700 pictures and more, a record was longer than any other JSON file may be, and all was drawn again."""
    sample(*sharded("png"), "--out", "set")
    longest = max(path.stat().st_size for path in Path("set/shards").iterdir())
    monkeypatch.setattr(sample_run, "MAX_JSON_BYTES", longest - 500)
    code, _, err = sample(*sharded("png"), "--out", "set")
    assert code == 0 and "13 of 13 pictures are in set already." in err and "drawn in" not in err


KILLED = """
import os, signal
from contextlib import contextmanager
from actvar.serve import sample_run
from actvar.cli.main import main

@contextmanager
def written(path, real=sample_run.written_whole):
    with real(path) as file:
        if path.name in ("000007.png", "shard-000005.tar", "shard-000005.parquet"):
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        yield file

sample_run.written_whole = written
main()
"""


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_run_goes_on(sample: Command, bundle: Path, form: str):
    """kill -9 in the midst of a file of the second shard: the rest is drawn, and the folder is the undisturbed one."""
    options = [*map(str, sharded(form))]
    command = [sys.executable, "-c", KILLED, "sample", *arguments(bundle), *options, "--out", "killed"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(name.endswith(".tmp") for name in tree(Path("killed")))
    code, _, err = sample(*options, "--out", "killed")
    assert code == 0 and "5 of 13 pictures are in killed already." in err and "8 pictures drawn in" in err
    sample(*options, "--out", "undisturbed")
    assert tree(Path("killed")) == tree(Path("undisturbed"))


def test_parts_make_the_same_folder(sample: Command):
    """Two processes, the last of them first; who ends it writes the manifest."""
    sample(*sharded("webdataset"), "--out", "whole")
    for part, drawn in (("1/2", 5), ("0/2", 13)):
        assert not Path("set/manifest.json").exists()
        code, _, err = sample(*sharded("webdataset"), "--out", "set", "--shard", part)
        assert code == 0 and f"{drawn} of 13 pictures are in set." in err
    assert tree(Path("set")) == tree(Path("whole"))


def test_the_npz_has_pictures_and_classes(sample: Command, expected_NHW3: np.ndarray):
    """As guided-diffusion's samplers write it; the pieces stay, and are not drawn again."""
    code, out, _ = sample("--count", COUNT, "--out", "set.npz")
    assert code == 0 and out == "set.npz: 13 pictures, for guided-diffusion's evaluator.py\n"
    with np.load("set.npz") as npz:
        assert npz.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(npz["arr_0"], expected_NHW3)
        np.testing.assert_array_equal(npz["arr_1"], np.arange(COUNT) % CLASSES)
    assert sample("--count", 3, "--class", "none,1", "--out", "named.npz")[0] == 0
    assert np.load("named.npz")["arr_1"].tolist() == [CLASSES, 1, CLASSES]
    before = Path("set.npz").read_bytes()
    code, _, err = sample("--count", COUNT, "--out", "set.npz")
    assert code == 0 and "13 of 13 pictures are in set-pieces already." in err and "drawn in" not in err
    assert Path("set.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--out", "x"], "Give --count for all classes together, or --per-class"),
        (["--out", "x", "--count", 9, "--per-class", 2], "--per-class 2 of 5 classes is 10 in all, and --count says 9"),
        (
            ["--out", "x", "--class", "none", "--count", 9, "--per-class", 2],
            "--per-class 2 of 1 class is 2 in all, and --count says 9",
        ),
        (["--out", "x", "--class", "5", "--count", 9], "--class must lie in 0..4 for this model, got 5."),
        (["--out", "x", "--per-class", 300_000], "is 1500000 pictures in all, more than 1000000"),
        (
            ["--out", "x.npz", "--count", 9, "--format", "png"],
            "--format is of a folder, and --out names the file x.npz",
        ),
        (["--out", "x.npz", "--count", 9, "--shard-size", 7], "--shard-size is of a folder"),
    ],
)
def test_options_that_do_not_fit_are_refused(sample: Command, more: list[object], words: str):
    code, _, err = sample(*more)
    assert code == 2 and words in err and not list(Path().iterdir())


def test_a_folder_in_another_form_is_refused(
    sample: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By `sample` with another form, and by `evaluate`, which has runs of its own."""
    sample("--count", 3, "--out", "set")
    code, _, err = sample("--count", 3, "--out", "set", "--format", "webdataset")
    assert code == 1 and "set holds pictures of another run: form is png there, and webdataset here" in err
    evaluate = in_process(monkeypatch, capsys, "evaluate", *arguments(bundle))
    code, _, err = evaluate("--count", 4, "--out", "set")
    assert code == 1 and "format must be 'actvar-picture-run', found 'actvar-samples'" in err


def test_without_pyarrow_there_is_no_parquet(sample: Command, monkeypatch: pytest.MonkeyPatch):
    """Said before anything is drawn."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    code, _, err = sample("--count", 3, "--format", "parquet", "--out", "set")
    assert code == 1 and "pip install 'actvar-trt[ray]'" in err and not list(Path().iterdir())
