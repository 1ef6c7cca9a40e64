"""The measurement of guidance distilled away: rows come one by one, and those of other settings are not mixed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import vivid_model
from small_training import TEACHER

from actvar.benchmarks.guidance_free import STRENGTH, added, kept_rows, predictions
from actvar.distill.guidance import guided_pass

HEAD = {"strength": 1.5, "pictures": 500}


def test_rows_are_added_and_sorted(tmp_path: Path):
    path = tmp_path / "rows.json"
    for name, seed in (("b", 0), ("a", 1), ("a", 0)):
        added(path, {"name": name, "seed": seed}, HEAD)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["pictures"] == 500 and [path.name for path in tmp_path.iterdir()] == ["rows.json"]
    assert [(row["name"], row["seed"]) for row in found["rows"]] == [("a", 0), ("a", 1), ("b", 0)]
    assert kept_rows(path, HEAD) == found["rows"]
    added(path, {"name": "b", "seed": 0, "kl": 1.0}, HEAD)
    assert [row.get("kl") for row in kept_rows(path, HEAD)] == [None, None, 1.0]


def test_rows_of_other_settings_are_refused(tmp_path: Path):
    added(tmp_path / "rows.json", {"name": "a", "seed": 0}, HEAD)
    with pytest.raises(SystemExit, match="was measured with other settings"):
        kept_rows(tmp_path / "rows.json", {**HEAD, "pictures": 100})


def test_a_guided_model_predicts_by_both_rows_and_a_freed_one_by_one():
    model = vivid_model(TEACHER)
    classes, inputs = torch.tensor([1]), torch.randn(1, TEACHER.schedule.total - 1, TEACHER.vqvae.z_channels)
    with torch.no_grad():
        guided = predictions(model)(classes, inputs)
        assert torch.equal(guided, guided_pass(model.var, classes, inputs, STRENGTH).logits_BTV)
        model.config = replace(TEACHER, guided_scales=0)
        assert torch.equal(predictions(model)(classes, inputs), model.var(classes, inputs)[0])
