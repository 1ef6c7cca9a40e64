"""Ten classes of one's own, from a folder of pictures to an engine: the commands of docs/your-own-data.md, small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, in_process
from PIL import Image

from actvar.checkpoint.model import load_model, load_vqvae
from actvar.data import shuffled
from actvar.data.imagenet import list_pictures
from actvar.data.shuffled import ShuffledPictures
from actvar.training.loop import learning_rate_at
from actvar.training.var import VARSettings

NAMES = tuple(f"{colour}-{kind}" for colour in ("blue", "green", "red", "white", "yellow") for kind in ("dots", "bars"))
CLASSES = tuple(sorted(NAMES))
TINY = ("--patch-nums", "1,2,3,4")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of each class, of several sizes and kinds of file."""
    folder = tmp_path_factory.mktemp("mine")
    random = np.random.default_rng(0)
    for name in NAMES:
        (folder / "train" / name).mkdir(parents=True)
        for i, (size, end) in enumerate((((20, 30), "png"), ((18, 18), "jpg"), ((40, 20), "webp"))):
            pixels_HW3 = random.integers(0, 256, (*size, 3)).astype(np.uint8)
            Image.fromarray(pixels_HW3).save(folder / "train" / name / f"{i}.{end}")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt`, in an empty folder with a cache of its own."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys)


@pytest.mark.slow
def test_ten_classes_of_ones_own_become_an_engine(run: Command, pictures: Path):
    """VQVAE, tokens, VAR, both stages, graphs, a picture by the name of its folder; each command names the next."""

    def done(*words: object) -> str:
        code, out, err = run(*words)
        assert code == 0, err
        return out

    out = done("train", "vqvae", "--data", pictures, *TINY, "--steps", 3, "--batch-size", 4, "--out", "vqvae")
    assert f"Next: actvar-trt encode --data {pictures} --vqvae vqvae/vqvae.safetensors" in out
    assert load_vqvae(Path("vqvae/vqvae.safetensors")).num_classes == 10
    done("encode", "--data", pictures, "--vqvae", "vqvae/vqvae.safetensors", "--out", "tokens")
    own = ("--tokens-dir", "tokens", "--batch-size", 10)
    train_var = ("train", "var", *own, "--vqvae", "vqvae/vqvae.safetensors", "--steps", 3, "--out", "var")
    out = done(*train_var, "--depth", 1)
    assert "Wrote var/var.safetensors. Next: actvar-trt export --model var/var.safetensors" in out
    dense = load_model(Path("var/var.safetensors")).config
    assert (dense.depth, dense.num_classes, dense.class_names) == (1, 10, CLASSES)
    code, _, err = run(*train_var, "--depth", 2)
    assert code == 1 and "var holds another run (" in err and "depth 1 -> 2" in err
    teacher = ("--teacher", "var/var.safetensors", *own, "--steps", 1)
    done("train", "stage1", *teacher, "--active-scales", 4, "--experts", 4, "--out", "stage1")
    done("train", "stage2", *teacher, "--student", "stage1", "--out", "stage2")
    done("export", "--model", "stage2/actvar.safetensors", "--out", "bundle")
    drawn = done("generate", "--class", "red-bars", "--model", "bundle")
    assert (
        drawn
        == f"bundle-{CLASSES.index('red-bars'):03d}-red-bars-seed0-0.png: class 4 (red-bars), picture 0 of seed 0\n"
    )
    with Image.open("bundle-004-red-bars-seed0-0.png") as picture:
        assert picture.size == (16, 16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("vqvae", "--preset", "d16"), "--preset is for a folder of pictures, and Glyphs-100 have their own. Leave it"),
        (("vqvae", "--data", "nowhere"), "nowhere: expected train/<class>/*.JPEG, found no such folder"),
        (("var", "--depth", 1), "--depth is for tokens of your own, and there is no --tokens-dir. Leave it out."),
        (("var", "--lr", 1e-3), "--lr is for tokens of your own, and there is no --tokens-dir. Leave it out."),
        (
            ("var", "--tokens-dir", "x", "--count", 200),
            "--count is of Glyphs-100, and --tokens-dir names other pictures",
        ),
        (("var", "--tokens-dir", "x"), "--tokens-dir holds codes of a VQVAE, and there is none. Name its file with"),
    ],
)
def test_options_of_the_other_use_are_refused(run: Command, words: tuple[object, ...], said: str):
    """Nothing is begun: the mini models would take hours."""
    code, out, err = run("train", *words)
    assert code in (1, 2) and out == "" and said in err
    assert not list(Path().iterdir())


def test_every_round_shows_all_pictures_once_and_a_broken_one_is_named(pictures: Path, tmp_path: Path, capsys):
    """A picture's place follows from the seed and the round; what cannot be read has the next one in its place."""
    listed = list_pictures(pictures, "train")
    first, second = (ShuffledPictures(listed, 16, seed)(range(0, 60)) for seed in (0, 0))
    assert torch.equal(first, second) and first.shape == (60, 3, 16, 16) and first.abs().max() <= 1
    assert not torch.equal(ShuffledPictures(listed, 16, 1)(range(0, 4)), first[:4])
    assert torch.equal(ShuffledPictures(listed, 16, 0)(range(7, 9)), first[7:9])
    assert all(len({tuple(each.flatten().tolist()) for each in turn}) == 30 for turn in first.split(30))
    (tmp_path / "train" / "one").mkdir(parents=True)
    (tmp_path / "train" / "one" / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "train" / "one" / "b.png")
    shown = ShuffledPictures(list_pictures(tmp_path, "train"), 16)(range(0, 6))
    assert torch.equal(shown, shown[:1].expand(6, -1, -1, -1))
    assert capsys.readouterr().err.count("Skipped one/a.png: ") == 1


def test_the_order_of_a_round_is_made_once(pictures: Path):
    """Of 1.28 million pictures it takes 62 ms and 10 MB, and was made for each of them."""
    shuffled._order.cache_clear()
    shown = ShuffledPictures(list_pictures(pictures, "train"), 16)
    for first in range(0, 60, 4):
        shown(range(first, first + 4))
    assert shuffled._order.cache_info().misses == 2


def test_the_learning_rate_of_the_official_recipe():
    """Up in a fiftieth of the run, at the peak for a twentieth of the rest, then in a line to a tenth."""
    settings = VARSettings(Path(), steps=1020, batch=256, learning_rate=1.0, warmup=20, recipe="official")
    rates = [learning_rate_at(step, settings) for step in range(1020)]
    assert rates[19] == rates[20] == rates[69] == 1.0 and rates[0] == pytest.approx(0.05)
    for step in (70, 500, 1019):
        left = 1 - (step - 20) / 1000
        assert rates[step] == pytest.approx(0.1 + 0.9 * left / 0.95), json.dumps(step)
    mini = VARSettings(Path(), steps=1020, batch=256, learning_rate=1.0, warmup=20)
    assert learning_rate_at(1019, mini) < 0.03
