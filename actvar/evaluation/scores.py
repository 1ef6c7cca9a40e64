"""How good pictures are: Fréchet distance, Inception score, precision and recall, by torch-fidelity, as the ADM suite.

Knows what a judge saw; not the pictures. The settings are those of guided-diffusion's evaluator.py: Inception score
over stretches of 5,000 pictures in their order, precision and recall by the third neighbour in the features of FID.

Letters in shapes: N pictures, F features, K classes.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from actvar.evaluation.fidelity import (
    fid_features_to_statistics,
    fid_statistics_to_metric,
    isc_features_to_metric,
    prc_features_to_metric,
)
from actvar.evaluation.frechet import FeatureStatistics
from actvar.evaluation.judges import Seen
from actvar.evaluation.reference import NEIGHBOURS

STRETCH = 5000
_ROWS = 1000  # of a block of distances: 200 MB against 50,000 pictures


@dataclass(frozen=True)
class Scores:
    """In the features of Inception, `frechet_distance` is FID. None: no pictures to hold against, no classes.

    Attributes:
        inception_score: mean over stretches, and their spread.
        precision: share of the pictures that lie among the reference's.
        recall: share of the reference's that lie among the pictures.
        class_accuracy: share of the pictures in which the judge sees the class that was asked for.
    """

    pictures: int
    frechet_distance: float
    inception_score: float
    inception_score_spread: float
    precision: float | None
    recall: float | None
    class_accuracy: float | None


def score(
    seen: Seen, statistics: FeatureStatistics, reference: Seen | None = None, asked_N: np.ndarray | None = None
) -> Scores:
    """Hold pictures against a reference.

    Args:
        seen: of the pictures.
        statistics: of the reference.
        reference: what was seen of the reference's pictures, if it has any.
        asked_N: the class that each picture was drawn for, where the judge knows classes.
    """
    stretches = math.ceil(len(seen) / STRETCH)
    spread = isc_features_to_metric(seen.logits_NK, splits=stretches, shuffle=False)
    near = _near(seen.features_NF, reference.features_NF) if reference else {}
    return Scores(
        pictures=len(seen),
        frechet_distance=_frechet(fitted(seen.features_NF), statistics),
        inception_score=spread["inception_score_mean"],
        inception_score_spread=spread["inception_score_std"],
        precision=near.get("precision"),
        recall=near.get("recall"),
        class_accuracy=None if asked_N is None else float(np.mean(seen.logits_NK.argmax(1).numpy() == asked_N)),
    )


def fitted(features_NF: Tensor) -> FeatureStatistics:
    """Mean and covariance of features, summed in float64."""
    statistics = fid_features_to_statistics(features_NF.double())
    return FeatureStatistics(statistics["mu"], statistics["sigma"], len(features_NF))


def _frechet(a: FeatureStatistics, b: FeatureStatistics) -> float:
    stored_a, stored_b = ({"mu": each.mean, "sigma": each.covariance} for each in (a, b))
    return float(fid_statistics_to_metric(stored_a, stored_b, verbose=False)["frechet_inception_distance"])


def _near(features_NF: Tensor, reference_NF: Tensor) -> dict[str, float]:
    return prc_features_to_metric(
        features_NF,
        reference_NF,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=_ROWS,
        save_cpu_ram=True,  # blocks of rows, and never all distances
        verbose=False,
    )
