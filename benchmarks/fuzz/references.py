"""How `actvar-trt evaluate` reads what pictures are held against, with a judge of six features."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from actvar.evaluation.frechet import FeatureStatistics, frechet_distance
from actvar.evaluation.judges import Judge
from actvar.evaluation.reference import open_reference

FEATURES = 6


class _Means(nn.Module):
    """The means and deviations of the three colours."""

    def __init__(self) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros(1))

    def forward(self, pictures_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        values = pictures_N3HW.float().flatten(2)
        features_NF = torch.cat([values.mean(2), values.std(2)], dim=1)
        return features_NF, features_NF


@cache
def judge() -> Judge:
    """The judge."""
    return Judge("six", _Means(), FEATURES, False, "", "not at all")


def look(path: Path, side: int) -> None:
    """Open a reference, look at its pictures, and hold its statistics against others."""
    reference = open_reference(str(path), 10, judge(), side)
    if reference.pictures:
        judge().look(reference.pictures)
    if reference.statistics:
        ours = FeatureStatistics(np.zeros(FEATURES), np.eye(FEATURES), 10)
        frechet_distance(reference.statistics, ours)
        frechet_distance(ours, reference.statistics)
