"""What the judge says of sets of Glyphs-100 pictures: accuracies and the Fréchet distance to real pictures.

Knows the judge and the figures; the pictures come in as functions of their numbers and classes (`draws`).

Letters in shapes: N pictures, F features.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from actvar.class_names import COLOURS
from actvar.data.glyphs import TRAIN_SEED, balanced_classes
from actvar.evaluation.classifier import GlyphClassifier
from actvar.evaluation.draws import Draw, real_pictures
from actvar.evaluation.frechet import FeatureStatistics, frechet_distance

Advance = Callable[[int], None]
"""Told how many more pictures are done."""


@dataclass(frozen=True)
class Score:
    """How one set of pictures did. Accuracies are shares of pictures whose class, shape or colour the judge names."""

    name: str
    pictures: int
    class_accuracy: float
    shape_accuracy: float
    colour_accuracy: float
    frechet_distance: float


@dataclass(frozen=True)
class Report:
    """Scores of several sets against the same `reference_pictures` real ones, all of them of the training stream."""

    reference_pictures: int
    scores: tuple[Score, ...]

    def write(self, file: Path) -> None:
        """Write as JSON."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def table(self) -> Table:
        """The scores for a terminal, a row each."""
        table = Table("pictures", "count", "class", "shape", "colour", "Fréchet distance")
        for column in table.columns[1:]:
            column.justify = "right"
        for score in self.scores:
            shares = (score.class_accuracy, score.shape_accuracy, score.colour_accuracy)
            table.add_row(
                score.name,
                f"{score.pictures:,}",
                *(f"{share:.1%}" for share in shares),
                f"{score.frechet_distance:.3f}",
            )
        return table


def make_report(
    draws: Mapping[str, Draw],
    classifier: GlyphClassifier,
    pictures: int,
    batch: int,
    reference_pictures: int = 10_000,
    advance: Advance = lambda _: None,
) -> Report:
    """Draw `pictures` by every function, as many of each class, and judge them.

    `advance` is told of (len(draws) * pictures + reference_pictures) pictures in all.
    """
    _, real_NF = judge(classifier, real_pictures(TRAIN_SEED), reference_pictures, batch, advance)
    reference = FeatureStatistics.of(real_NF)
    scores = []
    for name, draw in draws.items():
        named_N, features_NF = judge(classifier, draw, pictures, batch, advance)
        scores.append(_score(name, named_N, features_NF, reference))
    return Report(reference_pictures, tuple(scores))


@torch.no_grad()
def judge(
    classifier: GlyphClassifier, draw: Draw, pictures: int, batch: int, advance: Advance = lambda _: None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the pictures 0, 1, ..., of all classes in turn, and show them to the classifier.

    Returns:
        The classes that the judge named, named_N, and what it saw, features_NF.
    """
    named, features = [], []
    for first in range(0, pictures, batch):
        numbers_N = np.arange(first, min(first + batch, pictures))
        features_NF = classifier.features(draw(numbers_N, balanced_classes(numbers_N)).float())
        named.append(classifier.head(features_NF).argmax(1).numpy())
        features.append(features_NF.numpy())
        advance(len(numbers_N))
    return np.concatenate(named), np.concatenate(features)


def _score(name: str, named_N: np.ndarray, features_NF: np.ndarray, reference: FeatureStatistics) -> Score:
    asked_N = balanced_classes(np.arange(len(named_N)))
    return Score(
        name=name,
        pictures=len(named_N),
        class_accuracy=float(np.mean(named_N == asked_N)),
        shape_accuracy=float(np.mean(named_N // len(COLOURS) == asked_N // len(COLOURS))),
        colour_accuracy=float(np.mean(named_N % len(COLOURS) == asked_N % len(COLOURS))),
        frechet_distance=frechet_distance(FeatureStatistics.of(features_NF), reference),
    )
