"""`actvar-trt evaluate` from a model to its scores, on the mini model, and what a person may get wrong on the way.

Letters in shapes: N pictures, 3 H W their pixels, F features.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, in_process
from small_models import small_config, vivid_model

from actvar.data.glyphs import HELD_OUT_SEED, glyph_batch
from actvar.evaluation.classifier import load_classifier
from actvar.evaluation.frechet import FeatureStatistics, frechet_distance
from actvar.export.onnx_export import export_bundle


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """In an empty folder, with a cache of its own."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return in_process(monkeypatch, capsys, "evaluate")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes without names: not Glyphs-100."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


def judged(pictures_N3HW: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """features_NF and the classes that the classifier names, of pictures in bytes."""
    classifier = load_classifier()
    with torch.no_grad():
        features_NF = classifier.features(pictures_N3HW.float() / 255 * 2 - 1)
        return features_NF.numpy(), classifier.head(features_NF).argmax(1).numpy()


@pytest.mark.slow
def test_the_mini_model_is_scored(evaluate: Command):
    """300 pictures, three of each class: the scores of docs/evaluation.md, and as we compute them ourselves.

    The Fréchet distance of so few is larger than that of 5,000: a covariance of 128 features from 300 pictures.
    """
    options = "--model", "actvar-mini", "--count", 300, "--batch-size", 10, "--reference", "glyphs-held-out"
    files = "--json", "scores.json", "--npz", "pictures.npz", "--save-statistics", "held-out.npz"
    code, out, _ = evaluate(*options, "--reference-count", 1000, *files)
    assert code == 0 and "glyphs-held-out, 1,000 pictures" in out
    report = json.loads(Path("scores.json").read_text())
    scores = report["scores"]
    assert report["run"]["count"] == scores["pictures"] == 300 and report["judge"] == "glyphs"

    pictures_NHW3 = np.load("pictures.npz")["arr_0"]
    features_NF, named_N = judged(torch.from_numpy(pictures_NHW3).permute(0, 3, 1, 2))
    real_N3HW, _ = glyph_batch(np.arange(1000), HELD_OUT_SEED)
    real_NF, _ = judged(((real_N3HW + 1) * 127.5).byte())
    distance = frechet_distance(FeatureStatistics.of(features_NF), FeatureStatistics.of(real_NF))
    assert scores["frechet_distance"] == pytest.approx(distance, rel=1e-3)
    assert scores["class_accuracy"] == np.mean(named_N == np.arange(300) % 100) >= 0.97
    assert distance < 1.5 and 80 < scores["inception_score"] <= 100
    assert 0.3 < scores["precision"] < 1 and scores["recall"] > 0.5

    code, out, err = evaluate(*options[:4], "--reference", "held-out.npz", "--json", "again.json")
    again = json.loads(Path("again.json").read_text())["scores"]
    assert code == 0 and "the reference has no pictures" in out and "300 of 300 pictures are in" in err
    assert again["frechet_distance"] == pytest.approx(scores["frechet_distance"], rel=1e-9)
    assert again["precision"] is again["recall"] is None


DRAWN_WITHOUT = """
import sys
from actvar.cli.main import main
try:
    main()
finally:
    print(sorted({"torch", "onnx", "torch_fidelity"} & sys.modules.keys()))
"""


def test_drawing_needs_no_torch(bundle: Path, tmp_path: Path):
    """Of a bundle that is not to be scored here: fifty machines may draw, and one look."""
    options = ["--model", str(bundle), "--count", "4", "--npz", "all.npz", "--threads", "1"]
    command = [sys.executable, "-c", DRAWN_WITHOUT, "evaluate", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr
    assert np.load(tmp_path / "all.npz")["arr_0"].shape == (4, 10, 10, 3)


def test_inception_that_is_missing_is_told_before_drawing(evaluate: Command, bundle: Path):
    """Hours of drawing must not end with it."""
    code, out, err = evaluate("--model", bundle, "--reference", "x.npz", "--inception", "weights.pth")
    assert (code, out) == (1, "")
    assert "Error: weights.pth is missing, or no file. Fetch https://github.com/toshas/torch-fidelity/" in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--judge", "glyphs"], 2, "--judge glyphs knows Glyphs-100, and this model draws other classes"),
        (["--count", 3], 2, "Invalid value for '--count'"),
        (["--cfg", -1], 2, "--cfg must be 0 or more"),
        (["--out", "/dev/null"], 1, "cannot be written"),
        (["--backend", "torch"], 2, "is a bundle of graphs"),
    ],
)
def test_what_cannot_be_is_refused(evaluate: Command, bundle: Path, options: list[object], code: int, words: str):
    found, out, err = evaluate("--model", bundle, *options)
    assert (found, out) == (code, "") and words in err and not list(Path().iterdir())


def test_a_reference_that_is_missing_is_told_before_drawing(evaluate: Command):
    code, out, err = evaluate("--reference", "absent.npz")
    assert (code, out) == (1, "")
    assert "--reference absent.npz is not there" in err and not list(Path().iterdir())


def test_help_has_examples(evaluate: Command):
    code, out, _ = evaluate("--help")
    assert code == 0 and "actvar-trt evaluate --count 300" in out and "VIRTUAL_imagenet256_labeled.npz" in out
