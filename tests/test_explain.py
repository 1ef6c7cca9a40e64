"""`actvar-trt explain`: what is recorded, counted, drawn and written of the choices of an ActVAR."""

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, in_process
from PIL import Image
from small_models import small_config, vivid_model

from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.explain.choices import NOBODY, Choices, coverage, load, updates
from actvar.explain.figures import chosen_figure, expert_colour, experts_figure, sequence_colour, tokens_figure
from actvar.explain.page import CAPTIONS, page, png
from actvar.explain.plots import _plot, batch_figure, load_colour
from actvar.explain.record import record_choices
from actvar.export.graphs.scale import EXPERTS, KEPT
from actvar.export.parity.recording import record
from actvar.generation import generate
from actvar.models.selection import Router

HOSTILE = "<script>alert('1')</script>\"&\n"
MODEL = replace(
    small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))),
    class_names=("red-disc", "green-disc", "red-star", "green-star", HOSTILE),
)


def invented(side: int = 5, blocks: int = 3, experts: int = 8, active: int = 4, seed: int = 0) -> Choices:
    """Choices of nobody's, of as many tokens and experts in every block."""
    draw, tokens = np.random.default_rng(seed), side * side
    kept, used = np.zeros((blocks, tokens), bool), np.zeros((blocks, tokens, experts), bool)
    best = np.full((blocks, tokens, 3), NOBODY)
    for block in range(blocks):
        for token in draw.permutation(tokens)[: tokens // 2]:
            ranked = draw.permutation(experts)
            kept[block, token] = used[block, token, ranked[:active]] = True
            best[block, token] = ranked[:3]
    return Choices(4, side, kept, used, best)


# ---- recording


@pytest.mark.parametrize(
    "activation",
    [
        MODEL.activation,
        Activation(16, (4,), (0.5,), (1.0,)),
        Activation(16, (3, 4), (1.0, 1.0), (0.5, 0.25)),
        Activation(8, (2, 3, 4), (0.5, 1.0, 0.75), (0.75, 0.5, 0.25)),
    ],
    ids=["both", "tokens alone", "experts alone", "mixed"],
)
def test_what_is_recorded_is_what_the_blocks_chose(activation: Activation):
    """Against the exporter's recording, which runs the blocks by another way; at every scale that chooses."""
    model = vivid_model(small_config(activation=activation))
    sampling = model.config.sampling
    recorded = dict(record(model, [2], sampling, seed=3, picture_numbers=[5]))
    for si in filter(model.config.is_active, range(4)):
        made, choices = record_choices(model, 2, sampling, si, seed=3, number=5)
        outputs, tokens = recorded[f"scale_{si + 1:02d}"].outputs, model.config.schedule.tokens[si]
        torch.testing.assert_close(made.pictures_B3HW, generate(model, [2], sampling, 3, [5]).pictures_B3HW)
        assert (choices.scale, choices.side**2) == (si + 1, tokens)
        for block in range(model.config.depth):
            kept = outputs[KEPT][block, 0, 0].tolist() if KEPT in outputs else list(range(tokens))
            assert np.flatnonzero(choices.kept_DL[block]).tolist() == kept
            for place, token in enumerate(kept):
                experts = (
                    outputs[EXPERTS][block, 0, 0, place].tolist() if EXPERTS in outputs else range(activation.experts)
                )
                assert np.flatnonzero(choices.used_DLN[block, token]).tolist() == list(experts)
            skipped = sorted(set(range(tokens)) - set(kept))
            assert not choices.used_DLN[block, skipped].any()
            assert (choices.best_DLT[block, skipped] == NOBODY).all()


def test_a_baselines_choices_are_the_same_in_every_block_or_for_every_token():
    """Which the exporter's recording cannot say: it does not know the baselines."""
    activation = replace(MODEL.activation, token_choice="fixed", expert_choice="static")
    model = vivid_model(small_config(activation=activation))
    _, choices = record_choices(model, 2, MODEL.sampling, 3)
    assert choices.kept_DL.sum(1).tolist() == [13, 13] and (choices.kept_DL == choices.kept_DL[0]).all()
    for block, used_LN in enumerate(choices.used_DLN[:, choices.kept_DL[0]]):
        best = model.var.blocks[block].ffn.router.bias.argsort(descending=True)[:4]
        assert (used_LN.sum(1) == 4).all() and used_LN[:, best].all()


def test_the_best_experts_come_in_the_order_of_their_scores(monkeypatch: pytest.MonkeyPatch):
    """By a plain sort of what the router says, for the row that knows the class."""
    said: list[torch.Tensor] = []
    forward = Router.forward

    def noted(self: Router, x: torch.Tensor) -> torch.Tensor:
        said.append(forward(self, x))
        return said[-1]

    monkeypatch.setattr(Router, "forward", noted)
    model = vivid_model(MODEL)
    _, choices = record_choices(model, 1, MODEL.sampling, 3)
    of_last_scale = said[-MODEL.depth :]
    for block in range(MODEL.depth):
        for place, token in enumerate(np.flatnonzero(choices.kept_DL[block])):
            scores = of_last_scale[block][0, place].tolist()
            ranked = sorted(range(16), key=lambda expert: -scores[expert])
            assert choices.best_DLT[block, token].tolist() == ranked[:3]


def test_the_model_is_left_as_it_was():
    """No hook stays behind, even when drawing fails."""
    model = vivid_model(MODEL)
    with pytest.raises(IndexError):
        record_choices(model, 99, MODEL.sampling, 3)
    assert not any(module._forward_hooks for module in model.modules())


# ---- counting


def test_counts_are_those_of_plain_loops():
    """Union, frequency, coverage and load, token by token."""
    batch = [invented(seed=seed) for seed in range(4)]
    blocks, tokens, experts = batch[0].used_DLN.shape
    reached_by_depth, given, times = np.zeros((4, blocks)), np.zeros((blocks, experts)), [0] * (blocks + 1)
    for picture, choices in enumerate(batch):
        for token in range(tokens):
            count = 0
            for block in range(blocks):
                count += int(choices.kept_DL[block, token])
                assert choices.covered_DL[block, token] == (count > 0)
                reached_by_depth[picture, block] += count > 0
                for expert in range(experts):
                    given[block, expert] += choices.used_DLN[block, token, expert]
            assert choices.updates_L[token] == count
            times[count] += 1
    np.testing.assert_allclose(coverage(batch), reached_by_depth / tokens)
    np.testing.assert_allclose(updates(batch), np.array(times) / (4 * tokens))
    fair = 4 * (tokens // 2) * 4 / experts  # pictures x kept tokens x active experts of each, shared evenly
    np.testing.assert_allclose(load(batch), given / fair)


def test_what_a_scale_leaves_out_is_told_apart():
    """A scale that skips tokens and rests no expert, and the other way about."""
    some = invented()
    all_experts = replace(some, used_DLN=np.repeat(some.kept_DL[:, :, None], 8, axis=2))
    assert (some.skips_tokens, some.rests_experts) == (True, True)
    assert (all_experts.skips_tokens, all_experts.rests_experts) == (True, False)
    whole = replace(some, kept_DL=np.ones_like(some.kept_DL))
    assert (whole.skips_tokens, whole.rests_experts) == (False, True)


# ---- drawing


def pixels_of(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == np.array(colour)).all(-1).sum())


def test_a_token_is_shown_wherever_it_was_updated():
    """In a picture of one strong colour: all of it, the union's tokens, and each block's."""
    red, choices = (250, 10, 10), invented()
    picture = np.full((10, 10, 3), red, np.uint8)
    cell = 256 // 5
    shown = 25 + choices.covered_DL[-1].sum() + choices.kept_DL.sum()
    assert pixels_of(tokens_figure(picture, choices, "a title"), red) == shown * cell**2


def test_how_often_a_token_was_updated_is_its_shade():
    """As many cells of each shade as there are such tokens, beside the legend's one."""
    choices = invented(blocks=3)
    image, cell = tokens_figure(np.full((5, 5, 3), (250, 10, 10), np.uint8), choices, "a title"), 256 // 5
    for times in (1, 2):
        found = pixels_of(image, sequence_colour(times / 3)) - int((choices.updates_L == times).sum()) * cell**2
        assert 0 < found < 25 * cell * 5 / 3  # the legend's


def test_an_expert_has_its_colour_where_it_was_best_and_where_it_was_used():
    """A cell for each token, in each figure, and a swatch in the legend."""
    choices, picture = invented(), np.zeros((5, 5, 3), np.uint8)
    ranked, used = experts_figure(picture, choices, "a title"), chosen_figure(choices, "a title")
    for expert in range(8):
        colour = expert_colour(expert, 8)
        assert pixels_of(ranked, colour) == (choices.best_DLT == expert).sum() * (208 // 5) ** 2 + 26**2
        assert pixels_of(used, colour) == choices.used_DLN[:, :, expert].sum() * (80 // 5) ** 2


@pytest.mark.parametrize("experts", [1, 2, 4, 16, 32, 64])
def test_experts_can_be_told_apart(experts: int):
    """No two colours are the same, and none is as pale as a token that was skipped."""
    colours = {expert_colour(n, experts) for n in range(experts)}
    assert len(colours) == experts
    assert all(max(colour) - min(colour) > 60 for colour in colours)


def test_a_load_is_red_above_its_share_and_blue_below():
    """White at 1; full colour at half and at twice the share."""
    assert load_colour(1.0) == (255, 255, 255)
    (red, _, blue), (cold_red, _, cold_blue) = load_colour(1.3), load_colour(0.7)
    assert red > blue and cold_blue > cold_red
    assert load_colour(2.0) == load_colour(9.0) and load_colour(0.5) == load_colour(0.0)


@pytest.mark.parametrize("blocks", [1, 4, 20])
def test_any_depth_can_be_drawn(blocks: int):
    """One block has no line to draw, and twenty need several rows."""
    batch = [invented(blocks=blocks, seed=seed) for seed in range(2)]
    picture = np.zeros((8, 8, 3), np.uint8)
    drawn = [batch_figure(batch, HOSTILE), tokens_figure(picture, batch[0], HOSTILE), chosen_figure(batch[0], HOSTILE)]
    for image in [*drawn, experts_figure(picture, batch[0], HOSTILE)]:
        assert 300 < image.width < 3000 and 200 < image.height < 5000


def test_the_plot_of_a_batch_shows_what_was_counted():
    """Line, band, bars and cells, each from its own count."""
    batch = [invented(seed=seed) for seed in range(4)]
    covered, often, loads = _plot(batch, "a title").axes
    [mean, fixed], [band] = covered.lines, covered.collections
    np.testing.assert_allclose(mean.get_ydata(), coverage(batch).mean(0))
    np.testing.assert_allclose(fixed.get_ydata(), coverage(batch).mean(0)[0])
    np.testing.assert_allclose(
        [band.get_datalim(covered.transData).y0, band.get_datalim(covered.transData).y1],
        [coverage(batch).min(), coverage(batch).max()],
    )
    np.testing.assert_allclose([bar.get_height() for bar in often.patches], updates(batch))
    colours = np.asarray(loads.images[0].get_array())
    shown = np.array([[load_colour(value) for value in of_block] for of_block in load(batch)])
    assert (colours == shown).all()
    assert [text.get_text() for text in loads.texts] == [f"{value:.2f}" for value in load(batch).flat]


# ---- the page


class Reader(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_self_contained(text: str) -> Reader:
    """Nothing is loaded from anywhere, no script runs, and the browser is told so."""
    reader = Reader(text)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a", "video", "audio"}
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") or name in ("href", "srcset", "style") for name in attributes)
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|https?://", text)
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return reader


def test_the_page_holds_its_pictures_and_escapes_everything():
    """Names come from a checkpoint, the command from a shell: neither may become HTML."""
    figures = {name: png(Image.new("RGB", (4, 4), "red")) for name in CAPTIONS}
    batch = [invented(seed=seed) for seed in range(2)]
    reader = assert_self_contained(page(HOSTILE, figures, batch[0], batch, f"actvar-trt explain --class {HOSTILE}"))
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == list(figures.values())
    assert reader.text.count(HOSTILE) >= 2
    cells = [attributes for tag, attributes in reader.tags if tag == "td"]
    assert len(cells) == 3 * 6  # a row for each block


# ---- the command


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ActVAR and the VAR that it was made from."""
    folder = tmp_path_factory.mktemp("explain")
    save_model(vivid_model(MODEL), folder / "active.safetensors", torch.float32)
    save_model(vivid_model(MODEL.dense()), folder / "dense.safetensors", torch.float32)
    return folder


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt` in this process, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys)


def test_a_picture_is_explained(command: Command, checkpoints: Path):
    """Four figures and a page that shows the very same; the scale is the last that leaves something out."""
    arguments = ("explain", "--class", "red-star", "--seed", 3, "--number", 5, "--count", 3, "--out", "made")
    code, out, err = command(*arguments, "--model", checkpoints / "active.safetensors")
    assert code == 0, err
    stem = "active-002-red-star-seed3-5"
    names = [f"{stem}-{name}.png" for name in ("tokens", "experts", "chosen", "batch")]
    assert sorted(path.name for path in Path("made").iterdir()) == sorted([*names, f"{stem}.html"])
    reader = assert_self_contained((Path("made") / f"{stem}.html").read_text())
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    shown = [base64.b64decode(source.partition(",")[2]) for source in sources]
    assert shown == [(Path("made") / name).read_bytes() for name in names]
    model = vivid_model(MODEL)
    _, choices = record_choices(model, 2, MODEL.sampling, 3, 3, 5)
    others = load([record_choices(model, i * 5 // 3, MODEL.sampling, 3, 3, i)[1] for i in range(3)])
    assert f"Scale 4: some block updated {choices.covered_DL[-1].sum()} of 25 tokens." in out
    assert f"experts were given {others.min():.2f} to {others.max():.2f} times their fair share" in out


def test_a_picture_of_no_class_is_explained(command: Command, checkpoints: Path):
    code, _, err = command(
        "explain", "--class", "none", "--count", 1, "--model", checkpoints / "active.safetensors", "--out", "made"
    )
    assert code == 0, err
    assert "What was activated: class none, seed 0" in Path("made/active-none-seed0-0.html").read_text()


def test_the_same_command_writes_the_same_bytes(command: Command, checkpoints: Path):
    """So that a figure in the docs can be made again; the page ends with how."""
    arguments = (
        "explain",
        "--class",
        4,
        "--scale",
        3,
        "--count",
        1,
        "--model",
        checkpoints / "active.safetensors",
    )
    written = []
    for _ in range(2):
        assert command(*arguments)[0] == 0
        written.append({path.name: path.read_bytes() for path in Path().iterdir()})
    assert written[0] == written[1] and len(written[0]) == 5
    [text] = [content.decode() for name, content in written[0].items() if name.endswith(".html")]
    assert_self_contained(text)
    assert "actvar-trt explain --class 4 --scale 3" in text


def test_without_matplotlib_all_but_the_plot_is_written(
    command: Command, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
):
    """What it takes to draw it is said once, and the page shows the three others."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = command("explain", "--class", 4, "--count", 1, "--model", checkpoints / "active.safetensors")
    assert code == 0 and err.count("No plot was drawn. The package matplotlib is needed") == 1
    assert sorted(path.name.rpartition("-")[2] for path in Path().glob("*.png")) == [
        "chosen.png",
        "experts.png",
        "tokens.png",
    ]
    [text] = [path.read_text() for path in Path().glob("*.html")]
    assert sum(tag == "img" for tag, _ in assert_self_contained(text).tags) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--class", 1, "--model", "dense"), "dense.safetensors updates every token with all its weights"),
        (("--class", 1, "--model", "active", "--scale", 2), "--scale 2 leaves nothing out .* does: 3, 4"),
        (("--class", 1, "--model", "active", "--scale", 9), "--scale 9 leaves nothing out"),
        (("--class", 5, "--model", "active"), "--class must lie in 0..4"),
        (("--class", "red-sock", "--model", "active"), "--class 'red-sock' is unknown"),
        (("--class", 1, "--vqvae", "active"), "--vqvae belongs to a checkpoint"),
        (("--class", 1, "--out", "one.png", "--model", "active"), "--out must be a folder"),
        (("--class", 1, "--count", 0, "--model", "active"), "--count"),
        (("--model", "active"), "--class"),
    ],
)
def test_what_cannot_be_explained_is_said(command: Command, checkpoints: Path, arguments: tuple, said: str):
    """And nothing is written."""
    files = {name: checkpoints / f"{name}.safetensors" for name in ("active", "dense")}
    code, out, err = command("explain", *(files.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert re.search(said, err)
    assert list(Path().iterdir()) == []


def test_a_missing_checkpoint_is_named(command: Command):
    """As by every other command."""
    code, _, err = command("explain", "--class", 1, "--model", "nowhere.safetensors")
    assert code == 2 and "nowhere.safetensors" in err
