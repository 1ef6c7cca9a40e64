"""Stored statistics: the Gaussian fitted to a set of pictures' features, as an .npz that other suites read too.

`mu` [F] and `sigma` [F, F], as the reference files of the ADM suite and of pytorch-fid have them. Ours also say which
feature extractor they are of, and of how many pictures; theirs are told by F alone.

Letters in shapes: F features.
"""

from pathlib import Path

import numpy as np

from actvar.errors import ActVARError, counted, shown
from actvar.evaluation.frechet import FeatureStatistics
from actvar.evaluation.npz_file import NpzFile, opened_npz
from actvar.evaluation.picture_sets import npz_names
from actvar.files import written_whole

_LARGEST = 1e100  # whose products are still finite
_LONGEST = 4000  # bytes of an extractor's name
ADVICE = "Name statistics of this extractor, or the pictures themselves."


def write_statistics(path: Path, statistics: FeatureStatistics, extractor: str) -> None:
    """Write the statistics of one extractor's features.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    with written_whole(path) as file:
        np.savez(file, mu=statistics.mean, sigma=statistics.covariance, count=statistics.count, extractor=extractor)


def has_statistics(path: Path) -> bool:
    """Whether an .npz holds statistics, be it with pictures or without.

    Raises:
        ActVARError: it cannot be read.
    """
    return {"mu", "sigma"} <= set(npz_names(path))


def read_statistics(path: Path, extractor: str, features: int) -> FeatureStatistics:
    """Read what `write_statistics`, or another suite, wrote.

    Args:
        path: an .npz.
        extractor: whose features they must be.
        features: F.

    Raises:
        ActVARError: it cannot be read, or the statistics are of another extractor, or no numbers.
    """
    with opened_npz(path, "statistics", ADVICE) as npz:
        found = _text(npz, "extractor") if "extractor" in npz.names else extractor
        if found != extractor:
            raise ActVARError(
                f"{path} holds statistics of the extractor {shown(found)}, expected {extractor}. {ADVICE}"
            )
        mu, sigma = npz.header("mu"), npz.header("sigma")
        if mu.shape != (features,) or sigma.shape != (features, features):
            raise ActVARError(
                f"{path} holds statistics of another feature extractor: mu {list(mu.shape)} and sigma "
                f"{list(sigma.shape)}, expected {counted(features, 'feature')} of {extractor}. {ADVICE}"
            )
        mu_F, sigma_FF = _numbers(npz, "mu"), _numbers(npz, "sigma")
        count = _count(npz) if "count" in npz.names else 0
    if not (_are_usable(mu_F) and _are_usable(sigma_FF)):
        raise ActVARError(f"{path} holds statistics that are not finite, or above {_LARGEST:g}. {ADVICE}")
    return FeatureStatistics(mu_F, sigma_FF, count)


def _numbers(npz: NpzFile, name: str) -> np.ndarray:
    header = npz.header(name)
    if header.dtype.kind not in "fiu" or header.dtype.itemsize > 8:
        raise ValueError(f"{name} is {header.dtype}")
    return npz.read(name).astype(np.float64)


def _are_usable(values: np.ndarray) -> bool:
    return bool((np.abs(values) <= _LARGEST).all())  # not of NaN


def _text(npz: NpzFile, name: str) -> str:
    header = npz.header(name)
    if header.shape or header.dtype.kind != "U" or header.bytes > _LONGEST:
        raise ValueError(f"{name} is {header}")
    return str(npz.read(name))


def _count(npz: NpzFile) -> int:
    header = npz.header("count")
    count = int(npz.read("count")) if header.shape == () and header.dtype.kind in "iu" else -1
    if count < 0:
        raise ValueError("count is no number of pictures")
    return count
