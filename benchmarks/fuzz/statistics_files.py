"""Stored statistics: an .npz of a mean and a covariance, of ours and of other suites."""

import random
from pathlib import Path

import numpy as np

from actvar.benchmarks.fuzz.archives import change_archive, undate
from actvar.benchmarks.fuzz.references import FEATURES, judge, look
from actvar.evaluation.frechet import FeatureStatistics
from actvar.evaluation.statistics_file import write_statistics

FOLLOWS_LINKS = True  # of the file itself, which a user names
_SIDE = 8


def samples(folder: Path) -> list[Path]:
    """Ours, one of mean and covariance alone, and one that holds pictures, too."""
    features_NF = np.random.default_rng(0).normal(size=(40, FEATURES))
    found = FeatureStatistics.of(features_NF)
    files = [folder / name for name in ("ours.npz", "theirs.npz", "with-pictures.npz")]
    write_statistics(files[0], found, judge().name)
    np.savez_compressed(files[1], mu=found.mean, sigma=found.covariance)
    pictures_NHW3 = np.random.default_rng(1).integers(0, 256, (5, _SIDE, _SIDE, 3), np.uint8)
    np.savez(files[2], arr_0=pictures_NHW3, mu=found.mean, sigma=found.covariance.astype(np.float32))
    for file in files:
        undate(file)
    return files


def mutate(path: Path, rng: random.Random) -> None:
    """Change the file."""
    change_archive(path, rng)


def read(path: Path) -> None:
    """Hold others against them."""
    look(path, _SIDE)
