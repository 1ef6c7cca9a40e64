"""The protocol of a score: told in full, and where papers do otherwise, told too."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, in_process
from small_models import small_config
from torch import nn

from actvar.config import MINI, Activation, ModelConfig
from actvar.data.glyphs import TRAIN_SEED
from actvar.evaluation import reference as references
from actvar.evaluation.classifier import SHIPPED_CLASSIFIER
from actvar.evaluation.judges import Judge
from actvar.evaluation.picture_run import RunSpec
from actvar.evaluation.protocol import Extractor, HeldAgainst, Protocol, released_fid
from actvar.evaluation.reference import GlyphStream, open_reference
from actvar.evaluation.score_report import _table
from actvar.evaluation.scores import Scores
from actvar.files import hash_file
from actvar.reports import show
from actvar.scales import LARGE_PATCH_NUMS, ScaleSchedule

INCEPTION = Extractor("inception-v3-compat", "67" * 32, "to 299×299, bilinear, as TensorFlow 1 does")
ADM = HeldAgainst("VIRTUAL_imagenet256_labeled.npz", "ab" * 32, 10_000, 0, "not at all", is_adm=True)
RUN = RunSpec("", "dense", "fp32", "torch", "cpu", 1000, 256, 50_000, 0, 1.5, 900, 0.96)
PAPERS = Protocol(RUN, ADM, INCEPTION, "torch-fidelity 0.3.0")


def test_nothing_is_unlike_papers_where_nothing_is():
    assert PAPERS.departures == () and PAPERS.record["unlike_papers"] == []
    assert PAPERS.record["pictures_per_class"] == {"least": 50, "most": 50}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 5000}, ["5,000 pictures, not 50,000; FID grows as they get fewer"]),
        (
            {"count": 300},
            ["300 pictures, not 50,000; FID grows as they get fewer", "0 pictures of some classes and 1 of others"],
        ),
        ({"count": 100_000}, ["100,000 pictures, not 50,000"]),
        ({"cfg": 4.0, "top_k": 1, "top_p": 1.0}, ["cfg 4, not 1.5", "top-k 1, not 900", "top-p 1, not 0.96"]),
        ({"side": 512}, ["pictures of 512×512, not 256×256"]),
        ({"class_ids": (1000,)}, ["pictures without a class"]),
        (
            {"class_ids": (3, 1000, 7)},
            ["pictures of 3 classes, of which one is none", "16666 pictures of some classes and 16667 of others"],
        ),
        ({"classes": 10}, ["10 classes, where ImageNet has 1,000"]),
    ],
)
def test_each_difference_to_papers_is_named(change: dict, said: list[str]):
    protocol = replace(PAPERS, run=replace(RUN, **change))
    assert list(protocol.departures) == protocol.record["unlike_papers"] == said
    assert [words for label, words in protocol.rows if label == "unlike papers"] == said


def test_another_reference_is_named():
    [said] = replace(PAPERS, reference=replace(ADM, is_adm=False)).departures
    assert "without the arrays of the ADM suite's VIRTUAL_imagenet256_labeled.npz" in said


def test_scores_of_another_extractor_are_not_held_to_papers():
    """Nobody has published Fréchet distances of Glyphs-100's classifier."""
    assert replace(PAPERS, run=replace(RUN, count=4), extractor=replace(INCEPTION, name="glyphs")).departures == ()


@pytest.mark.parametrize(("depth", "fid"), [(16, 3.55), (20, 2.95), (24, 2.33), (30, 1.97)])
def test_the_fid_of_a_released_checkpoint_stands_beside_models_of_its_size(depth: int, fid: float):
    """Of the VAR, also beside the ActVAR; not beside models of other classes, scales or pictures."""
    model = ModelConfig(depth)
    assert released_fid(model) == released_fid(replace(model, activation=Activation())) == (f"VAR-d{depth}", fid)
    others = (
        replace(model, depth=depth - 1),
        replace(model, num_classes=999),
        replace(model, schedule=ScaleSchedule(LARGE_PATCH_NUMS)),
        replace(model, schedule=ScaleSchedule((1, 2, 4, 16))),
        MINI,
        small_config(),
    )
    assert [released_fid(other) for other in others] == [None] * len(others)


def test_the_table_says_all_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    protocol = replace(PAPERS, run=replace(RUN, count=5000))
    held = references.Reference(ADM.name, GlyphStream(TRAIN_SEED, 10_000), None)
    scores = Scores(5000, 8.0, 250.0, 3.0, 0.8, 0.5, None)
    show([_table(scores, "d16", protocol, held, released_fid(ModelConfig(16)))])
    lines = {
        tuple(part.strip() for part in line.split("│")[1:3])
        for line in capsys.readouterr().out.splitlines()
        if "│" in line
    }
    assert {
        ("drawn with", "cfg 1.5, top-k 900, top-p 0.96, seed 0"),
        ("pictures of each class", "5"),
        ("pictures resized", INCEPTION.resizing),
        ("reference resized", "not at all"),
        ("weights of the extractor", "SHA-256 676767676767…"),
        ("unlike papers", "5,000 pictures, not 50,000; FID grows as they get fewer"),
        ("FID", "8.000"),
        ("FID of the released VAR-d16", "3.55"),
    } <= lines


# ---- references


def test_a_reference_is_told_by_its_hash_and_the_adm_suites_by_its_arrays(tmp_path: Path, monkeypatch):
    """All five, and 10,000 pictures of 256×256: here a dozen of 8×8."""
    monkeypatch.setattr(references, "_ADM_SHAPE", (12, 8, 8, 3))
    judge = Judge("six", nn.Identity(), 6, False, "", "not at all")
    arrays = {"arr_0": np.zeros((12, 8, 8, 3), np.uint8), "mu": np.zeros(6), "sigma": np.eye(6)}
    spatial = {"mu_s": np.zeros(5), "sigma_s": np.eye(5)}
    np.savez(tmp_path / "adm.npz", **arrays, **spatial)
    np.savez(tmp_path / "own.npz", **arrays)
    np.savez(tmp_path / "fewer.npz", **{**arrays, **spatial, "arr_0": arrays["arr_0"][:8]})
    np.savez(tmp_path / "pictures.npz", arr_0=arrays["arr_0"])
    (tmp_path / "link.npz").symlink_to(tmp_path / "adm.npz")
    for name, is_adm in (("adm", True), ("link", True), ("own", False), ("fewer", False), ("pictures", False)):
        described = open_reference(str(tmp_path / f"{name}.npz"), 0, judge, 8).described
        assert described.is_adm == is_adm, name
        assert described.sha256 == hash_file((tmp_path / f"{name}.npz").resolve()).sha256
    assert described.pictures == described.fitted == 12


# ---- the command


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """In an empty folder."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys, "evaluate")


def test_a_report_says_which_protocol_it_followed(evaluate: Command):
    """Of Glyphs-100, where there is nothing to be unlike."""
    options = (
        "--model",
        "var-mini",
        "--backend",
        "torch",
        "--count",
        6,
        "--seed",
        3,
        "--cfg",
        2,
        "--json",
        "made.json",
    )
    code, out, err = evaluate(*options, "--reference", "glyphs-held-out", "--reference-count", 8)
    assert code == 0, err
    report = json.loads(Path("made.json").read_text())
    protocol = report["protocol"]
    assert protocol["sampling"] == {
        **{name: report["run"][name] for name in ("cfg", "top_k", "top_p")},
        "seed": 3,
        "smoothed": False,
    }
    assert (protocol["pictures"], protocol["pictures_per_class"]) == (6, {"least": 0, "most": 1})
    assert protocol["reference"]["name"] == "glyphs-held-out" and protocol["reference"]["sha256"] is None
    assert (protocol["reference"]["pictures"], protocol["reference"]["fitted"]) == (8, 8)
    assert protocol["extractor"]["name"] == "glyphs"
    assert protocol["extractor"]["weights"] == hash_file(SHIPPED_CLASSIFIER).sha256
    assert protocol["evaluator"].startswith("torch-fidelity 0.")
    assert protocol["class_ids"] is None and report["scores"]["class_accuracy"] is not None
    assert report["released"] is None and protocol["unlike_papers"] == []
    assert "cfg 2, top-k" in out and "unlike papers" not in out and "papers" not in err

    code, out, err = evaluate(*options, "--reference", "glyphs-held-out", "--reference-count", 8, "--class", "none")
    assert code == 0 and "6 of 6 pictures are in evaluation-var-mini-class-none-6." in err, err
    report = json.loads(Path("made.json").read_text())
    assert report["run"]["class_ids"] == report["protocol"]["class_ids"] == [100]
    assert "pictures without a class" in out
    assert report["scores"]["class_accuracy"] is None, "nobody asked for a class"
