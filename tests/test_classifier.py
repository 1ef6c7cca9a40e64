"""The judge that ships: it knows real pictures well, and a file that is not a judge is refused.

Letters in shapes: N pictures, 3 H W their pixels.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from actvar.data.glyphs import HELD_OUT_SEED, glyph_batch
from actvar.errors import CheckpointError
from actvar.evaluation.classifier import SHIPPED_CLASSIFIER, GlyphClassifier, load_classifier, save_classifier
from actvar.evaluation.train_classifier import held_out_accuracy, main, spoilt, train_classifier
from actvar.training.loop import RunSettings


def test_the_shipped_judge_names_held_out_pictures():
    """A measure of generators is worth no more than the judge's own accuracy on pictures it has not seen."""
    assert held_out_accuracy(load_classifier(), pictures=500, batch=250) >= 0.98


def test_the_shipped_judge_forgives_the_softness_of_a_vqvae():
    """Class accuracy is to tell wrong shapes and colours, not blur: also spoilt pictures are named."""
    pictures_N3HW, class_ids_N = glyph_batch(np.arange(300), HELD_OUT_SEED)
    soft_N3HW = spoilt(pictures_N3HW, torch.Generator().manual_seed(0))
    with torch.no_grad():
        named_N = load_classifier()(soft_N3HW).argmax(1)
    assert (named_N == class_ids_N).float().mean() >= 0.97


def test_the_shipped_file_is_small():
    assert SHIPPED_CLASSIFIER.stat().st_size < 1.2e6


def test_a_saved_judge_comes_back(tmp_path):
    """fp16 keeps ten bits of every weight; the counters of the norms stay integers."""
    torch.manual_seed(0)
    classifier = GlyphClassifier().eval()
    save_classifier(classifier, tmp_path / "new" / "judge.safetensors")
    pictures_N3HW, _ = glyph_batch(np.arange(4), seed=0)
    loaded = load_classifier(tmp_path / "new" / "judge.safetensors")
    assert not loaded.training
    assert loaded.features(pictures_N3HW).shape == (4, 128)
    torch.testing.assert_close(loaded(pictures_N3HW), classifier(pictures_N3HW), rtol=1e-2, atol=1e-3)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["judge.safetensors"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.safetensors cannot be read"):
        load_classifier(tmp_path / "absent.safetensors")


def test_a_cut_file_is_refused(tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(SHIPPED_CLASSIFIER.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors cannot be read"):
        load_classifier(cut)


def test_another_model_s_file_is_refused(tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"head.weight": torch.zeros(10, 128)}, other)
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not a Glyphs-100 classifier"):
        load_classifier(other)


def test_a_wrong_shape_is_told_with_what_was_expected(tmp_path):
    state = load_file(SHIPPED_CLASSIFIER)
    state["head.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.bias is \(7,\), expected \(100,\)"):
        load_classifier(tmp_path / "wide.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = load_file(SHIPPED_CLASSIFIER)
    state["head.bias"][3] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        load_classifier(tmp_path / "nan.safetensors")


def test_training_learns_and_ends_the_same_each_time(tmp_path):
    """The same settings give the same judge, whatever ran before in the process."""
    settings = RunSettings(tmp_path / "one", steps=12, batch=20, learning_rate=3e-3, warmup=1, log_every=1)
    one = train_classifier(settings)
    torch.rand(5)
    two = train_classifier(replace(settings, folder=tmp_path / "two"))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=0, atol=1e-4)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert min(losses[-3:]) < losses[0] - 0.1


def test_a_folder_of_another_run_is_told_and_nothing_is_written(tmp_path, capsys):
    train_classifier(RunSettings(tmp_path / "run", steps=1, batch=2, learning_rate=1e-3))
    with pytest.raises(typer.Exit) as left:
        main(out=tmp_path / "judge.safetensors", folder=tmp_path / "run", steps=2, batch=2)
    assert left.value.exit_code == 1
    assert "holds another run" in capsys.readouterr().err
    assert not (tmp_path / "judge.safetensors").exists()
