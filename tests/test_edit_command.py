"""`actvar-trt edit` and `Pipeline.edit`: the same pictures, what is said of them, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, in_process
from PIL import Image

from actvar import Pipeline
from actvar.bundle.contract import DRAWN
from actvar.class_names import CLASS_NAMES
from actvar.data.glyphs import HELD_OUT_SEED, render_glyphs
from actvar.editing.area import Keep, Replace
from actvar.editing.edit import Edit
from actvar.errors import ArgumentError, BundleError
from actvar.evaluation.classifier import load_classifier
from actvar.runtime.pictures import Order

HEART, CRESCENT = CLASS_NAMES.index("red-heart"), CLASS_NAMES.index("brown-crescent")
MIDDLE = "0.125,0.125,0.875,0.875"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """ActVAR-mini."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTVAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Pipeline.from_pretrained("actvar-mini", batch_size=4, threads=1, progress_bar=False)


@pytest.fixture(scope="module")
def crescents() -> np.ndarray:
    """Held-out pictures, uint8 [N, H, W, 3]."""
    pictures_N3HW = render_glyphs(np.full(6, CRESCENT), np.arange(6), HELD_OUT_SEED).numpy()
    return np.rint((pictures_N3HW.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, pipe, crescents) -> Command:
    """`actvar-trt edit` in this process, with a picture beside it."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(crescents[0]).save("crescent.png")

    return in_process(monkeypatch, capsys, "edit", "--model", pipe.bundle, "--threads", 1)


def judged(images: list[Image.Image]) -> list[int]:
    """The classes that the classifier sees."""
    import torch

    pixels_NHW3 = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 127.5 - 1
    return load_classifier()(torch.from_numpy(pixels_NHW3.transpose(0, 3, 1, 2))).argmax(1).tolist()


def test_crescents_become_hearts(pipe: Pipeline, crescents: np.ndarray):
    """Class editing of the middle; benchmarks/results/editing-mini.json has it of more pictures."""
    edited = [pipe.edit(picture, Replace(0.125, 0.125, 0.875, 0.875), "red-heart") for picture in crescents]
    assert judged([one.images[0] for one in edited]) == [HEART] * len(crescents)


def test_what_is_filled_in_fits_to_the_rest(pipe: Pipeline, crescents: np.ndarray):
    """Without a class: what is kept decides."""
    edited = [pipe.edit(picture, Replace(0.5, 0.5, 0.75, 0.75)) for picture in crescents]
    assert judged([one.images[0] for one in edited]) == [CRESCENT] * len(crescents)
    assert edited[0].labels == ("none",)


def test_kept_codes_stay_in_every_picture(pipe: Pipeline, crescents: np.ndarray):
    """Exactly, at every scale."""
    edit = Edit.of(pipe.model, crescents[0], Keep(0.25, 0.25, 0.75, 0.75))
    given = edit.given(pipe.source.encode(crescents[0]))
    (drawn,) = pipe.source.draw([Order(HEART, 0, given=given)], pipe.model.sampling)
    for given_L, ids_L in zip(given, drawn.token_ids, strict=True):
        assert (ids_L == given_L)[given_L != DRAWN].all()


def test_the_command_writes_what_python_draws(command, pipe: Pipeline, crescents: np.ndarray):
    """Of all numbers, in any batch; one line for each picture."""
    run = command("crescent.png", "--replace", MIDDLE, "--class", "red-heart", "--count", 3, "--seed", 5, "--out", "o")
    assert run.code == 0, run.err
    assert len(run.out.splitlines()) == 3 and "crescent-060-red-heart-seed5-1.png: class 60 (red-heart)" in run.out
    area = Replace(0.125, 0.125, 0.875, 0.875)
    images = pipe.edit(crescents[0], area, HEART, seed=5, num_images_per_label=3).images
    for number, image in enumerate(images):
        written = Image.open(f"o/crescent-060-red-heart-seed5-{number}.png")
        assert (np.asarray(written) == np.asarray(image)).all()


def test_paste_puts_the_kept_pixels_back(command, crescents: np.ndarray):
    """Far from the seam they are the picture's own; without --paste the VQVAE has made them."""
    for more in ([], ["--paste"]):
        assert command("crescent.png", "--keep", "0,0,0.5,1", "--out", f"{len(more)}.png", *more).code == 0
    own, plain, pasted = crescents[0][:, :24], *(np.asarray(Image.open(f"{n}.png"))[:, :24] for n in (0, 1))
    assert (pasted == own).all() and (plain != own).any()


def test_a_mask_does_what_its_rectangle_does(command, crescents: np.ndarray):
    """And a picture of another size is said to have been cut."""
    mask = np.zeros((64, 64), np.uint8)
    mask[8:56, 8:56] = 255
    Image.fromarray(mask).save("mask.png")
    command("crescent.png", "--replace", MIDDLE, "--out", "a.png")
    command("crescent.png", "--mask", "mask.png", "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    Image.fromarray(crescents[0]).resize((300, 200)).save("wide.jpg")
    run = command("wide.jpg", "--replace", MIDDLE, "--out", "c.png")
    assert "wide.jpg: resized from 300x200, and its middle cut out: 64x64." in run.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "What is drawn anew is said by one of --replace, --keep and --mask. Give one of them."),
        (("--keep", MIDDLE, "--replace", MIDDLE), "one of --replace, --keep and --mask"),
        (("--keep", "0,0,1"), "A rectangle is four numbers"),
        (("--keep", "0,0,1,1"), "would be kept, and nothing drawn"),
        (("--mask", "crescent.jpg"), "The mask crescent.jpg cannot be used: No such file"),
        (("--keep", MIDDLE, "--class", "red-hart"), "Did you mean red-heart"),
        (("--keep", MIDDLE, "--count", 2, "--out", "x.png"), "--out names one file"),
    ],
)
def test_what_cannot_be_edited_is_refused_and_nothing_is_written(command, words: tuple[object, ...], message: str):
    """A usage error each."""
    run = command("crescent.png", *words)
    assert run.code == 2 and message in run.err
    assert [path.name for path in Path().iterdir()] == ["crescent.png"]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_picture_that_is_none_is_refused(command, content: bytes):
    """By its name; and so is a folder."""
    Path("broken.png").write_bytes(content)
    run = command("broken.png", "--keep", MIDDLE)
    assert run.code == 2 and "The picture broken.png cannot be used: " in run.err
    assert command(".", "--keep", MIDDLE).code == 2


def test_python_refuses_in_its_own_words(pipe: Pipeline, crescents: np.ndarray):
    """They are ValueErrors."""
    with pytest.raises(ArgumentError, match="num_images_per_label must be a whole number"):
        pipe.edit(crescents[0], Keep(0, 0, 0.5, 1), num_images_per_label=0)
    with pytest.raises(ArgumentError, match="red-hart"):
        pipe.edit(crescents[0], Keep(0, 0, 0.5, 1), "red-hart")


def test_a_bundle_without_an_encoder_is_refused(pipe: Pipeline, crescents: np.ndarray, monkeypatch):
    """Before anything is drawn."""
    manifest = pipe.source.engine.manifest
    graphs = {name: spec for name, spec in manifest.graphs.items() if name != "encoder"}
    monkeypatch.setattr(pipe.source.engine, "manifest", replace(manifest, graphs=graphs))
    with pytest.raises(BundleError, match="no encoder"):
        pipe.edit(crescents[0], Keep(0, 0, 0.5, 1))
