"""Where results go: names that say what is in a file, folders that may be written, and nothing lost in silence."""

import json
import os
from pathlib import Path

import pytest
from command_line import Command, in_process
from small_models import small_config, vivid_model

from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.export.onnx_export import export_bundle
from actvar.files import content_of

MODEL = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as a checkpoint and as a bundle."""
    folder = tmp_path_factory.mktemp("models")
    save_model(vivid_model(MODEL), folder / "small model.safetensors")
    export_bundle(vivid_model(MODEL), folder / "bundle", "fp32", "a test")
    return folder


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt` in this process, in an empty folder."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return in_process(monkeypatch, capsys)


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


# ---- pictures


def test_a_name_says_the_model_and_the_class(command: Command, pristine: Path):
    """By one scheme, for pictures, their strips, sheets and explanations."""
    draw = ("generate", "--model", pristine / "bundle", "--seed", 5)
    command(*draw, "--class", 1, "--show-scales")
    command(*draw, "--class", 1, "--count", 2, "--grid")
    command(*draw, "--class", "3,1", "--grid")
    command(*draw, "--class", "all", "--grid")
    command("explain", "--model", pristine / "small model.safetensors", "--class", 1, "--count", 1, "--out", "why")
    assert names() == [
        "bundle-001-seed5-0-scales.png",
        "bundle-001-seed5-0.png",
        "bundle-001-seed5-grid.png",
        "bundle-003-001-seed5-grid.png",
        "bundle-5-classes-seed5-grid.png",
        "why",
    ]
    assert {name.partition("-seed")[0] for name in names("why")} == {"small-model-001"}


def test_the_same_picture_again_is_left_alone(command: Command, pristine: Path):
    """Not even its time changes: a run that is given again goes over what it drew."""
    draw = ("generate", "--model", pristine / "bundle", "--class", 1, "--count", 2)
    command(*draw)
    before = {name: Path(name).stat().st_mtime_ns for name in names()}
    code, out, _ = command(*draw)
    assert code == 0 and all(line.endswith(", which was there already") for line in out.splitlines())
    assert {name: Path(name).stat().st_mtime_ns for name in names()} == before


def test_another_picture_of_the_same_name_gets_a_number(command: Command, pristine: Path):
    """Its strip, too; and who draws it once more finds it under that number."""
    draw = ("generate", "--model", pristine / "bundle", "--class", 1, "--show-scales")
    command(*draw)
    first = {name: Path(name).read_bytes() for name in names()}
    for _ in range(2):
        code, out, _ = command(*draw, "--cfg", 9)
        assert code == 0
    assert out.startswith("bundle-001-seed0-0-2.png: class 1, picture 0 of seed 0, which was there already\n")
    _, out, _ = command(*draw, "--cfg", 3)
    assert out.splitlines() == [
        "bundle-001-seed0-0-3.png: class 1, picture 0 of seed 0, beside another of that name",
        "bundle-001-seed0-0-3-scales.png: its 4 scales, beside another of that name",
    ]
    assert len(names()) == 6 and {name: Path(name).read_bytes() for name in first} == first


@pytest.mark.parametrize("options", [(), ("--grid",)], ids=["a picture", "a sheet"])
def test_a_file_that_is_named_is_replaced_and_that_is_said(command: Command, pristine: Path, options: tuple):
    """Whoever names a file means this one."""
    draw = ("generate", "--model", pristine / "bundle", "--class", 1, "--out", "Mine.PNG", *options)
    command(*draw)
    before = Path("Mine.PNG").read_bytes()
    code, out, _ = command(*draw, "--seed", 1)
    assert code == 0 and out.startswith("Mine.PNG: ") and out.endswith(", in place of another\n")
    assert names() == ["Mine.PNG"] and Path("Mine.PNG").read_bytes() != before


def test_what_is_no_file_is_not_written_into(command: Command, pristine: Path):
    """A dangling link, a link to a folder, and a pipe that nobody writes into: each has a name that is taken."""
    Path("bundle-001-seed0-0.png").symlink_to("nowhere")
    Path("bundle-001-seed0-0-2.png").symlink_to("..")
    os.mkfifo("bundle-001-seed0-0-3.png")
    code, out, err = command("generate", "--model", pristine / "bundle", "--class", 1)
    assert code == 0 and out.startswith("bundle-001-seed0-0-4.png: "), err
    assert Path("bundle-001-seed0-0.png").is_symlink() and not Path("nowhere").exists()


def test_an_explanation_keeps_its_files_together(command: Command, pristine: Path):
    explain = ("explain", "--model", pristine / "small model.safetensors", "--class", 1)
    command(*explain, "--count", 1)
    first = names()
    code, _, err = command(*explain, "--count", 2)
    assert code == 0 and "small-model-001-seed0-0-2.html, beside another of that name" in err
    assert len(names()) == 2 * len(first)
    code, _, err = command(*explain, "--count", 2)
    assert code == 0 and len(names()) == 2 * len(first) and "which was there already" in err


# ---- reports


def test_a_report_that_is_replaced_is_said(command: Command):
    """And one that says the same as before is not worth a word."""
    flops = ("flops", "--json", "flops.json", "--depth")
    assert command(*flops, 16)[2] == command(*flops, 16)[2] == ""
    assert "flops.json takes the place of another file of that name." in command(*flops, 20)[2]
    assert json.loads(Path("flops.json").read_text())["name"] == "ActVAR-d20"


# ---- folders


@pytest.mark.parametrize("holds", ["nothing", "lost+found", ".gitkeep"])
@pytest.mark.parametrize(
    "words",
    [
        ("export", "--preset", "mini", "--patch-nums", "1,2", "--fp16"),
        ("build", "--preset", "mini", "--patch-nums", "1,2", "--fp16", "--engine", "tensorrt"),
        ("bind", "{bundle}", "--random"),
        ("evaluate", "--model", "{bundle}", "--count", 4, "--shard", "0/2"),
        ("encode", "--data", "glyphs", "--count", 100),
    ],
    ids=lambda words: words[0],
)
def test_a_folder_without_content_may_be_written(command: Command, pristine: Path, words: tuple, holds: str):
    """As one that is not there: a new disk has a lost+found, and a checkout keeps an empty folder by a hidden file."""
    Path("out").mkdir()
    if holds == "lost+found":
        Path("out/lost+found").mkdir()
    elif holds != "nothing":
        Path("out", holds).touch()
    _, _, err = command(*(str(word).format(bundle=pristine / "bundle") for word in words), "--out", "out")
    assert content_of(Path("out")), err
    assert holds == "nothing" or Path("out", holds).exists()


@pytest.mark.parametrize("words", [("export", "--preset", "mini"), ("build", "--preset", "mini"), ("bind", "{bundle}", "--random")])  # fmt: skip  # noqa: E501
def test_what_is_no_bundle_is_not_replaced(command: Command, pristine: Path, words: tuple):
    """Another program's manifest, too; told before the work, and nothing changes."""
    for folder, name in (("thesis", "chapter.tex"), ("extension", "manifest.json")):
        Path(folder).mkdir()
        Path(folder, name).write_text("{}")
        code, out, err = command(*(word.format(bundle=pristine / "bundle") for word in words), "--out", folder)
        assert (code, out) == (2, "") and f"{folder} is there and is not a bundle. Name " in err
        assert names(folder) == [name]
        assert "Binding" not in err and "Exporting" not in err


def test_a_bundle_that_is_replaced_is_said(command: Command, pristine: Path):
    """By export and by bind to another folder; what is bound in place is the same bundle still."""
    export = ("export", "--preset", "mini", "--patch-nums", "1,2", "--out", "made")
    said = "It replaces the bundle that was there before, in made."
    assert said not in command(*export)[2]
    assert said in command(*export, "--fp16")[2]
    assert read_manifest(Path("made")).precision == "fp16"
    assert said not in command("bind", "made", "--random")[2]
    assert said not in command("bind", "made", "--random", "--out", "made")[2]
    assert said in command("bind", pristine / "bundle", "--random", "--out", "made")[2]
    assert read_manifest(Path("made")).precision == "fp32"
