"""How a class is named: by number, range, name or part of a name; ImageNet's thousand names, and their order."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import Command, in_process
from official_layout import var_shapes
from small_models import small_config, vivid_model

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.own import save_model
from actvar.class_names import IMAGENET_CLASSES, imagenet_names, normal
from actvar.classes import choose_classes, class_label, class_names
from actvar.config import MINI, ModelConfig
from actvar.data.imagenet import list_pictures
from actvar.errors import UsageError
from actvar.export.onnx_export import export_bundle
from actvar.naming import NamedModel
from actvar.told_model import told_config

OFFICIAL = ModelConfig(16)
FOUR = replace(small_config(), num_classes=4, class_names=("a cat", "Dog, small", "dog", "0-9"))


# ---- ImageNet's names


def test_the_names_are_in_the_order_of_class_folders(tmp_path: Path):
    """A data set's folders bear WordNet's ids, and the place of one among the sorted names is its class."""
    ids = [names[-1] for names in imagenet_names()]
    for name in reversed(ids):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "1.JPEG").touch()
    listed = list_pictures(tmp_path, "val", IMAGENET_CLASSES)
    assert [Path(name).parent.name for name in listed.names] == ids
    assert list(listed.class_ids) == list(range(IMAGENET_CLASSES))


def test_every_class_is_found_by_its_first_name_and_by_its_id():
    """No two share the first name: crane, maillot and cardigan are two classes each."""
    firsts = [normal(names[0]) for names in imagenet_names()]
    assert len(set(firsts)) == IMAGENET_CLASSES
    for number, names in enumerate(imagenet_names()):
        assert choose_classes(OFFICIAL, [names[0]]) == choose_classes(OFFICIAL, [names[-1]]) == [number]
        assert "," not in names[0] and len(names) >= 2


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "tench"),
        (1, "goldfish"),
        (22, "bald eagle"),
        (88, "macaw"),
        (207, "golden retriever"),
        (388, "giant panda"),
        (417, "balloon"),
        (970, "alp"),
        (980, "volcano"),
        (999, "toilet tissue"),
    ],
)
def test_classes_that_people_know_by_heart(number: int, name: str):
    """A list that is shifted by one would fit itself."""
    assert imagenet_names()[number][0] == name


# ---- what a person may write


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["7"], [7]),
        (["brown-crescent"], [88]),
        (["Brown Crescent", "BROWN_crescent", "88"], [88]),
        (["0-3", "2-5"], [0, 1, 2, 3, 4, 5]),
        (["9,1, brown crescent"], [9, 1, 88]),
        (["3", "1,3", "red-disc", "0-1"], [3, 1, 0]),
        (["all"], list(range(100))),
        (["99", "all"], [99, *range(99)]),
        (["none"], [100]),
        (["0-1, none", "none"], [0, 1, 100]),
    ],
)
def test_numbers_ranges_and_names_may_be_mixed(wanted: list[str], chosen: list[int]):
    """Each class once, where it was first asked for."""
    assert choose_classes(MINI, wanted) == chosen


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("goldfish", 1),
        ("Golden Retriever", 207),
        ("n02099601", 207),
        ("Carassius auratus", 1),  # another of its names
        ("labrador", 208),  # a word of one
        ("chihua", 151),  # how one begins
        ("tub", 876),  # a first name, and another name of the bathtub
        ("cardigan", 474),
        ("cardigan welsh", 264),
        ("crane bird", 134),
    ],
)
def test_official_var_knows_imagenet(text: str, number: int):
    """The whole first name before any other name, that before a part."""
    assert choose_classes(OFFICIAL, [text]) == [number]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("crane", r"could be 134 \(crane bird\), 517 \(crane machine\)\. Name one of them"),
        ("panda", r"could be 387 \(lesser panda\), 388 \(giant panda\)"),
        ("retriever", r"could be 205 \(flat-coated retriever\), .* 209 \(Chesapeake Bay retriever\)\. Name"),
        ("terrier", r"and \d+ more\. Name one of them"),
        ("goldfsh", r"is unknown.*Did you mean goldfish"),
        ("n02099602", r"Did you mean golden retriever"),
        ("1000", r"must lie in 0\.\.999"),
        ("998-1000", r"must lie in 0\.\.999 for this model, got 1000"),
        ("9-3", r"runs backwards\. Write 3-9"),
        ("1,,2", r"'' is unknown"),
        ("--", r"is unknown"),
    ],
)
def test_what_means_several_or_none_is_answered_with_what_it_could_mean(text: str, said: str):
    with pytest.raises(UsageError, match=said):
        choose_classes(OFFICIAL, [text])


def test_a_guidance_free_model_has_never_seen_pictures_without_a_class():
    """Guidance is distilled with every picture's class."""
    with pytest.raises(UsageError, match=r"this guidance-free one did not\. Name a class"):
        choose_classes(replace(MINI, guided_scales=0), ["1, none"])


def test_no_class_has_a_word_of_its_own():
    assert class_label(MINI, 100) == class_label(OFFICIAL, 1000) == class_label(small_config(), 5) == "none"


def test_a_models_own_names_win():
    """Also those that look like something else; and over ImageNet's, where there are a thousand."""
    assert choose_classes(FOUR, ["Dog, Small", "a_cat", "dog"]) == [1, 0, 2]
    own = replace(OFFICIAL, class_names=tuple(f"thing {i}" for i in range(IMAGENET_CLASSES)))
    assert choose_classes(own, ["thing-207"]) == [207] and class_label(own, 207) == "207 (thing 207)"
    with pytest.raises(UsageError, match="unknown"):
        choose_classes(own, ["goldfish"])
    assert class_label(OFFICIAL, 207) == "207 (golden retriever)"
    assert class_names(small_config()) == () and class_label(small_config(), 3) == "3"


def test_a_name_out_of_a_file_cannot_speak_to_the_terminal(command: Command):
    """Escape sequences are obeyed where they are printed."""
    hostile = replace(FOUR, class_names=("\x1b[2Ja", "b", "c", "d"))
    assert class_label(hostile, 0) == "0 (\\x1b[2Ja)"
    save_model(vivid_model(hostile), Path("hostile.safetensors"))
    for arguments in (("classes",), ("generate", "--class", "e", "--backend", "torch")):
        _, out, err = command(*arguments, "--model", "hostile.safetensors")
        assert "\\x1b[2Ja" in out + err and "\x1b[2J" not in out + err


# ---- what a model tells of itself


def test_a_model_tells_its_configuration_without_being_opened(tmp_path: Path):
    """A bundle, and a checkpoint of ours; other files tell nothing."""
    save_model(vivid_model(FOUR), tmp_path / "own.safetensors")
    export_bundle(vivid_model(FOUR), tmp_path / "bundle", "fp32", "a test")
    (tmp_path / "other.safetensors").write_bytes(b"no checkpoint")
    assert told_config(NamedModel("own", checkpoint=Checkpoint(tmp_path / "own.safetensors"))) == FOUR
    assert told_config(NamedModel("bundle", bundle=tmp_path / "bundle")) == FOUR
    assert told_config(NamedModel("other", checkpoint=Checkpoint(tmp_path / "other.safetensors"))) is None


# ---- the command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt` in this process, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys)


def test_the_shipped_models_classes_are_listed(command: Command):
    code, out, _ = command("classes")
    assert code == 0 and len(out.splitlines()) == 100
    assert out.splitlines()[88].split() == ["88", "brown-crescent"]


def test_imagenets_classes_are_listed_with_their_ids(command: Command):
    """Of an official checkpoint without its VQVAE, too: it has all that is asked for."""
    torch.save({name: torch.zeros(shape) for name, shape in var_shapes(1, V=8, E=4).items()}, "var_d1.pth")
    code, out, _ = command("classes", "--model", "var_d1.pth")
    assert code == 0 and len(out.splitlines()) == 1000
    assert out.splitlines()[207].split() == ["207", "golden", "retriever", "n02099601"]
    listed = json.loads(command("classes", "--model", "var_d1.pth", "--json", "-")[1])["classes"]
    assert listed[1] == {"number": 1, "names": ["goldfish", "Carassius auratus", "n01443537"]}


def test_classes_without_names_are_numbers(command: Command):
    save_model(vivid_model(small_config()), Path("nameless.safetensors"))
    code, out, _ = command("classes", "--model", "nameless.safetensors")
    assert (code, out) == (0, "5 classes without names: their numbers are 0 to 4.\n")


def test_a_file_without_a_model_has_no_classes(command: Command):
    torch.save({"quantize.embedding.weight": torch.zeros(8, 4)}, "vae.pth")
    code, out, err = command("classes", "--model", "vae.pth")
    assert (code, out) == (1, "") and "vae.pth holds no VAR" in err


def test_pictures_of_imagenets_classes_bear_their_names(command: Command):
    """On the line that says where a picture is, and in its file's name."""
    save_model(vivid_model(replace(small_config(), num_classes=1000)), Path("thousand.safetensors"))
    code, out, err = command(
        "generate", "--model", "thousand.safetensors", "--backend", "torch", "--class", "potter's wheel, n02099601"
    )
    assert code == 0, err
    assert out.splitlines() == [
        "thousand-739-potter_s-wheel-seed0-0.png: class 739 (potter's wheel), picture 0 of seed 0",
        "thousand-207-golden-retriever-seed0-0.png: class 207 (golden retriever), picture 0 of seed 0",
    ]
    assert all(Path(line.partition(":")[0]).is_file() for line in out.splitlines())


def test_one_file_holds_the_picture_of_one_class(command: Command):
    """Told before a model is exported, when `all` turns out to be several."""
    save_model(vivid_model(FOUR), Path("four.safetensors"))
    code, _, err = command("generate", "--model", "four.safetensors", "--class", "all", "--out", "one.png")
    assert code == 2 and "--out names one file, one.png, for 4 pictures. Name a folder, or add --grid" in err
    assert not list(Path("cache").rglob("manifest.json"))
