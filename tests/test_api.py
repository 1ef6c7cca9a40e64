"""The runtime's own Pipeline: what a program in Python asks for, what it gets, and what it is told."""

import gc
import io
import itertools
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import in_process
from PIL import Image
from rich.console import Console
from small_models import small_config, vivid_model

from actvar import console
from actvar.config import Activation
from actvar.errors import ArgumentError, BundleError, UsageError
from actvar.export.onnx_export import export_bundle
from actvar.runtime.api import PartialPictures, Pipeline, PipelineOutput
from actvar.runtime.pictures import Order

NAMES = ("red-disc", "green-disc", "red-star", "green-star", "brown-crescent")
CONFIG = replace(small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))), class_names=NAMES)
SCALES = len(CONFIG.schedule)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    export_bundle(vivid_model(CONFIG), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    return Pipeline.from_bundle(bundle, batch_size=2, threads=1)


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


# ---- what is drawn


def test_a_call_returns_pil_pictures_and_what_they_are(pipe: Pipeline):
    """In the order of the labels, those of one label side by side, as diffusers has it."""
    made = pipe(class_labels=["brown-crescent", 1], num_images_per_label=2, seed=7)
    assert isinstance(made, PipelineOutput)
    assert [image.size for image in made.images] == [(10, 10)] * 4
    assert made.class_ids == (4, 4, 1, 1)
    assert made.labels == ("4 (brown-crescent)",) * 2 + ("1 (green-disc)",) * 2
    assert (made.numbers, made.seed) == ((0, 1, 0, 1), 7)
    assert len(set(pixels(made.images))) == 4


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_command_line_writes_the_same_pixels(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], batch_size: int
):
    """Classes, numbers, seed, sampling: the same words mean the same picture through both doors."""
    generate = in_process(monkeypatch, capsys, "generate", "--model", bundle, "--out", tmp_path / "out")
    drawing = ("--cfg", 2, "--top-k", 30, "--top-p", 0.9, "--seed", 7)
    code, _, said = generate("--class", 4, "--class", "red-star", "--count", 3, *drawing)
    assert code == 0, said
    with Pipeline.from_bundle(bundle, batch_size=batch_size) as pipe:
        made = pipe([4, "red-star"], 2.0, top_k=30, top_p=0.9, num_images_per_label=3, seed=7)
    written = [
        np.asarray(Image.open(next((tmp_path / "out").glob(f"*-{class_id:03d}-*-seed7-{number}.png"))))
        for class_id, number in zip(made.class_ids, made.numbers, strict=True)
    ]
    for image, png_HW3 in zip(made.images, written, strict=True):
        np.testing.assert_array_equal(np.asarray(image), png_HW3)


@pytest.mark.parametrize(
    "labels",
    [4, "brown-crescent", "Brown Crescent", [4], (4,), {4}, np.int64(4), np.array(4), np.array([4]), torch.tensor([4])],
)
def test_a_class_may_be_given_in_many_ways(pipe: Pipeline, labels):
    """Also alone, and as an array's element."""
    made = pipe(labels)
    assert made.class_ids == (4,)
    assert pixels(made.images) == pixels(pipe([4]).images)


def test_a_class_that_comes_again_goes_on_with_its_numbers(pipe: Pipeline):
    """As many pictures as labels, and none twice: those of `--count` of the class."""
    again, counted = pipe([3, 1, 3]), pipe(3, num_images_per_label=2)
    assert (again.class_ids, again.numbers) == ((3, 1, 3), (0, 0, 1))
    assert [pixels(again.images)[i] for i in (0, 2)] == pixels(counted.images)


def test_a_call_without_a_seed_can_be_repeated(pipe: Pipeline):
    assert pipe(2).seed == 0
    assert pixels(pipe(2).images) == pixels(pipe(2, seed=0).images) != pixels(pipe(2, seed=1).images)


@pytest.mark.parametrize("made_of", [np.random.default_rng, lambda seed: torch.Generator().manual_seed(seed)])
def test_a_generator_gives_the_seed(pipe: Pipeline, made_of):
    """The same one anew gives the same pictures, and moves on with each call; the seed that it gave is told."""
    generator = made_of(5)
    first, second = pipe(2, generator=generator), pipe(2, generator=generator)
    again = pipe(2, generator=made_of(5))
    assert first.seed == again.seed != second.seed
    assert pixels(first.images) == pixels(again.images) == pixels(pipe(2, seed=first.seed).images)
    assert pixels(first.images) != pixels(second.images)


def test_the_drawing_is_the_model_s_own_unless_it_is_said(pipe: Pipeline):
    """Each of the three reaches the graphs."""
    own = pipe.model.sampling
    said = pipe(2, own.cfg, top_k=own.top_k, top_p=own.top_p)
    assert pixels(pipe(2).images) == pixels(said.images)
    changed = [pipe(2, **change) for change in ({"guidance_scale": 4}, {"top_k": 2}, {"top_p": 0.3})]
    assert len({pixels(made.images)[0] for made in (said, *changed)}) == 4


def test_arrays_hold_the_bytes_of_the_pictures(pipe: Pipeline):
    """diffusers' form: float32 in [0, 1], one array for all."""
    images_NHW3 = pipe([1, 2], output_type="np").images
    assert (images_NHW3.shape, images_NHW3.dtype) == ((2, 10, 10, 3), np.float32)
    for found_HW3, image in zip(images_NHW3, pipe([1, 2]).images, strict=True):
        np.testing.assert_array_equal((found_HW3 * 255).round().astype(np.uint8), np.asarray(image))


# ---- streams


def test_a_stream_gives_the_pictures_of_a_call_one_by_one(pipe: Pipeline):
    made = pipe(range(5), num_images_per_label=2, seed=3)
    for batch_size in (None, 1, 4):
        drawn = list(pipe.stream(range(5), num_images_per_label=2, seed=3, batch_size=batch_size))
        assert pixels([picture.image for picture in drawn]) == pixels(made.images)
        assert tuple(picture.class_id for picture in drawn) == made.class_ids
        assert tuple(picture.label for picture in drawn) == made.labels
        assert tuple(picture.number for picture in drawn) == made.numbers
        assert {picture.seed for picture in drawn} == {3}


def test_labels_without_an_end_are_taken_batch_by_batch(pipe: Pipeline):
    """Nothing is asked for that is not drawn now."""
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number % 5

    pictures = pipe.stream(endless(), batch_size=3)
    assert taken == []
    for number in range(7):
        assert next(pictures).number == number // 5
        assert len(taken) == 3 * (number // 3 + 1)


def test_a_stream_keeps_nothing_of_what_was_taken(pipe: Pipeline):
    """Pictures that nobody holds are gone: there may be any number of them."""
    pictures = pipe.stream(itertools.cycle([2, 3]), batch_size=2)
    given = [weakref.ref(next(pictures).image) for _ in range(20)]
    assert [image() for image in given] == [None] * 20


def test_a_label_of_an_iterator_is_looked_at_when_its_turn_comes(pipe: Pipeline):
    """What stands before it is drawn."""
    pictures = pipe.stream(iter([1, 2, 3, 500]), batch_size=2)
    assert [next(pictures).class_id, next(pictures).class_id] == [1, 2]
    with pytest.raises(UsageError, match=r"class_labels must lie in 0\.\.4 for this model, got 500"):
        next(pictures)


# ---- looking on


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_the_callback_sees_every_scale_of_every_batch(pipe: Pipeline, output_type: str):
    """Its number, and the pictures so far in the form that was asked for; the last are those of the call."""
    seen: list[tuple[int, PartialPictures]] = []
    made = pipe(
        [4, 1, 2],
        seed=7,
        output_type=output_type,
        callback_on_scale_end=lambda scale, partial: seen.append((scale, partial)),
    )
    assert [scale for scale, _ in seen] == [partial.scale for _, partial in seen] == [1, 2, 3, 4, 1, 2, 3, 4]
    for first, of_batch in ((0, seen[:SCALES]), (2, seen[SCALES:])):
        for _, partial in of_batch:
            count = len(partial.images)
            assert (partial.scales, partial.seed) == (SCALES, 7)
            assert partial.class_ids == made.class_ids[first : first + count]
            assert partial.labels == made.labels[first : first + count]
            assert partial.numbers == made.numbers[first : first + count]
        last = of_batch[-1][1].images
        for found, wanted in zip(last, made.images[first : first + len(last)], strict=True):
            np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    without = pipe([4, 1, 2], seed=7, output_type=output_type)
    np.testing.assert_array_equal(np.stack(without.images), np.stack(made.images))


# ---- threads


def test_four_threads_share_a_pipeline(pipe: Pipeline):
    """Twelve pictures each, with seeds and settings of their own: what each gets where it is alone."""
    wanted = [pixels(pipe(range(4), num_images_per_label=3, seed=seed).images) for seed in range(4)]

    def draw(seed: int) -> list[bytes]:
        return pixels([picture.image for picture in pipe.stream(range(4), num_images_per_label=3, seed=seed)])

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, range(4))) == wanted


# ---- the bar


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would show."""
    shown = io.StringIO()
    monkeypatch.setattr(console, "_CONSOLE", Console(file=shown, force_terminal=True, width=80))
    return shown


def test_a_call_shows_a_bar_that_can_be_turned_off(bundle: Path, pipe: Pipeline, terminal: io.StringIO):
    """By an argument or at any time; a single picture needs none, and a stream has none."""
    with Pipeline.from_bundle(bundle, progress_bar=False) as silent:
        silent([1, 2])
        list(silent.stream([1, 2]))
        silent.progress_bar = True
        silent(1)
        assert terminal.getvalue() == ""
        silent([1, 2])
    assert "Drawing" in terminal.getvalue() and "2/2" in terminal.getvalue()


def test_two_threads_with_a_bar_do_not_disturb_each_other(pipe: Pipeline, terminal: io.StringIO):
    """A terminal has room for one, and who comes second draws all the same."""
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda seed: pipe(range(5), seed=seed).images, range(3)))
    assert [len(images) for images in made] == [5, 5, 5]


def test_nothing_is_printed_where_there_is_no_terminal(pipe: Pipeline, capfd: pytest.CaptureFixture[str]):
    pipe([1, 2])
    assert capfd.readouterr() == ("", "")


# ---- what is told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": iter([])}, "class_labels is empty"),
        ({"class_labels": [0, -1]}, r"class_labels must lie in 0\.\.4 for this model, got -1"),
        ({"class_labels": 500}, r"class_labels must lie in 0\.\.4 for this model, got 500"),
        ({"class_labels": "500"}, r"class_labels must lie in 0\.\.4"),
        ({"class_labels": "brown-cresent"}, "class_labels 'brown-cresent' is unknown.*Did you mean brown-crescent"),
        ({"class_labels": None}, "class_labels must be numbers and names of classes, got None"),
        ({"class_labels": [1.5]}, r"class_labels must be numbers and names of classes, got 1\.5"),
        ({"class_labels": [True]}, "class_labels must be numbers and names of classes, got True"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be 0 or more, got nan"),
        ({"guidance_scale": -1}, "guidance_scale must be 0 or more, got -1"),
        ({"guidance_scale": "strong"}, "guidance_scale must be a number, got 'strong'"),
        ({"top_k": 0}, "top_k must be a whole number, 1 or more, got 0"),
        ({"top_k": 901}, r"top_k must lie in 1\.\.900, got 901"),
        ({"top_k": 2.5}, r"top_k must be a whole number, got 2\.5"),
        ({"top_p": 0}, "top_p must lie in"),
        ({"top_p": float("nan")}, "top_p must lie in"),
        ({"num_images_per_label": 0}, "num_images_per_label must be a whole number, 1 or more, got 0"),
        ({"seed": -1}, r"seed must be a whole number, in 0\.\.18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed must be a whole number, in"),
        ({"seed": 1.0}, "seed must be a whole number, got 1.0"),
        ({"seed": 1, "generator": np.random.default_rng()}, "seed and generator both decide"),
        ({"generator": 7}, "generator must be numpy's or PyTorch's Generator, got a int"),
        ({"output_type": "latent"}, "output_type must be one of pil, np, got 'latent'"),
        ({"callback_on_scale_end": 3}, "callback_on_scale_end must be callable, got 3"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_drawn(pipe: Pipeline, monkeypatch, arguments: dict, message: str):
    """As a ValueError, which is what Python's programs catch, and in Python's words; by a stream at once, too."""
    monkeypatch.setattr(type(pipe.source), "draw", None)
    given = {"class_labels": 1, **arguments}
    with pytest.raises(ValueError, match=message) as told:
        pipe(**given)
    assert isinstance(told.value, UsageError) and "--" not in str(told.value)
    if not isinstance(given["class_labels"], Iterator):
        with pytest.raises(ArgumentError, match=message):
            pipe.stream(**given)


def test_a_batch_size_of_a_stream_is_held_to_its_range(pipe: Pipeline):
    with pytest.raises(UsageError, match="batch_size must be a whole number, 1 or more, got 0"):
        pipe.stream([1], batch_size=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "torch"}, "backend of a bundle must be one of onnxruntime, tensorrt, got 'torch'"),
        ({"device": "cuda:1"}, "device must be one of cpu, cuda, got 'cuda:1'"),
        ({"backend": "tensorrt", "device": "cpu"}, "TensorRT needs a GPU, and the device is cpu"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more, got 0"),
        ({"threads": -1}, "threads must be a whole number, in"),
    ],
)
def test_a_bundle_is_not_opened_in_a_way_that_there_is_not(bundle: Path, arguments: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        Pipeline.from_bundle(bundle, **arguments)


def test_what_is_no_bundle_is_told(tmp_path: Path):
    with pytest.raises(BundleError, match="nowhere is not a folder"):
        Pipeline.from_bundle(tmp_path / "nowhere")


# ---- the end


def mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


def test_a_closed_pipeline_says_so_and_has_let_go(bundle: Path, tmp_path: Path):
    """Its weights are not in memory any more: a server that opens another model needs the room."""
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    with Pipeline.from_bundle(own, threads=1) as pipe:
        pipe(1)
        resting = pipe.stream([1, 2, 3])
        next(resting)
        assert mapped(own)
    for use in (lambda: pipe(1), lambda: pipe.stream(1), lambda: pipe.model, resting.__next__):
        with pytest.raises(UsageError, match="This pipeline is closed"):
            use()
    gc.collect()
    assert not mapped(own)
    pipe.close()


def test_closing_in_the_middle_leaves_the_batch_that_is_being_drawn_alone(bundle: Path):
    """A thread closes while another draws: no crash, and no picture that is half of something else."""
    pipe = Pipeline.from_bundle(bundle, threads=1)
    wanted = pixels(pipe([1, 2]).images)

    def close(scale: int, partial: PartialPictures) -> None:
        pipe.close()

    pictures = pipe.stream([1, 2], batch_size=2, callback_on_scale_end=close)
    assert next(pictures).image.tobytes() == wanted[0]
    with pytest.raises(UsageError, match="This pipeline is closed"):
        next(pictures)


def test_a_callback_cannot_draw(pipe: Pipeline):
    with pytest.raises(UsageError, match="Draw when the callback is over"):
        pipe(1, callback_on_scale_end=lambda scale, partial: pipe(2))
    assert pipe(1).numbers == (0,)


def test_the_source_may_be_drawn_with_directly(pipe: Pipeline):
    """What the command line does: orders of any number, with partial pictures."""
    (picture,) = pipe.source.draw([Order(1, 7)], pipe.model.sampling, 3, with_partials=True)
    assert len(picture.partials) == SCALES


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "polygraphy", "huggingface_hub"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from actvar.runtime.api import Pipeline

with Pipeline.from_bundle(sys.argv[1], threads=1) as pipe:
    for picture in pipe.stream(["brown-crescent", 2], seed=7):
        sys.stdout.write(picture.image.tobytes().hex() + "\\n")
above = [name for name in sys.modules if name.startswith(("actvar.export", "actvar.benchmarks", "actvar.cli"))]
assert not above, above
"""


def test_a_bundle_is_drawn_from_without_torch_and_onnx(bundle: Path, pipe: Pipeline):
    """Where neither can be imported, and nothing of the rooms above is."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [bytes.fromhex(line) for line in done.stdout.split()] == pixels(pipe([4, 2], seed=7).images)
