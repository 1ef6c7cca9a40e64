"""A small bundle that commands draw from, and its pictures as they are drawn alone."""

from pathlib import Path

import numpy as np
import pytest
from small_models import small_config, vivid_model

from actvar.export.onnx_export import export_bundle
from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_graphs


def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small VAR with random weights, in fp32."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


def drawn_alone(bundle: Path, count: int, seed: int) -> np.ndarray:
    """Pictures 0 to count - 1, of all classes in turn, each drawn alone: [count, H, W, 3]."""
    source = open_graphs(bundle, batch_size=1, threads=1)
    orders = [Order(number % source.model.num_classes, number) for number in range(count)]
    return np.stack([next(source.draw([order], source.model.sampling, seed)).pixels_HW3 for order in orders])
