"""Small models with their bundles, drawn by every engine: which pictures, and that they are the same."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import vivid_model

from actvar.bundle.manifest import Manifest
from actvar.config import ModelConfig, Sampling
from actvar.export.onnx_export import export_bundle
from actvar.models.actvar import ActVAR
from actvar.runtime.pictures import Order, Picture

SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)
ORDERS = [Order(class_id, number) for class_id, number in ((3, 0), (0, 1), (4, 7), (3, 1), (1, 2**40), (2, 5), (2, 6))]

Bundles = Callable[[str], tuple[ActVAR, Path, Manifest]]
"""A model and its bundle by name."""


def bundles_of(models: Mapping[str, ModelConfig], tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Models with random weights and their bundles, which also give what is inside; each made once."""
    made: dict[str, tuple[ActVAR, Path, Manifest]] = {}

    def get(name: str) -> tuple[ActVAR, Path, Manifest]:
        if name not in made:
            model, folder = vivid_model(models[name]), tmp_path_factory.mktemp("drawn") / "bundle"
            made[name] = model, folder, export_bundle(model, folder, "fp32", "random weights", debug=True)
        return made[name]

    return get


def draw(source: Any, orders: list[Order] = ORDERS) -> list[Picture]:
    """Pictures of seed 7."""
    return list(source.draw(orders, SAMPLING, 7))


def assert_same_pictures(found: list[Picture], wanted: list[Picture], off: int = 1) -> None:
    """All tokens; pixels are truncated, and may be off by one where another library rounds."""
    for picture, same in zip(found, wanted, strict=True):
        for tokens, same_tokens in zip(picture.token_ids, same.token_ids, strict=True):
            np.testing.assert_array_equal(tokens, same_tokens)
        assert np.abs(picture.pixels_HW3.astype(int) - same.pixels_HW3).max() <= off
