"""Stored statistics: the Gaussian fitted to a set of pictures' features, as an .npz that other suites read too.

`mu` [F] and `sigma` [F, F], as the reference files of the ADM suite and of pytorch-fid have them. Ours also say which
feature extractor they are of, and of how many pictures; theirs are told by F alone.

Letters in shapes: F features.
"""

from pathlib import Path

import numpy as np

from actvar.errors import ActVARError
from actvar.evaluation.frechet import FeatureStatistics
from actvar.evaluation.picture_sets import npz_names
from actvar.files import written_whole

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
    try:
        with np.load(path, allow_pickle=False) as stored:
            mu_F, sigma_FF = (np.asarray(stored[name], np.float64) for name in ("mu", "sigma"))
            found = str(stored["extractor"]) if "extractor" in stored else None
            count = int(stored["count"]) if "count" in stored else 0
    except Exception as error:  # of a broken file, numpy may raise anything
        raise ActVARError(f"{path} cannot be read as statistics ({error}). {ADVICE}") from None
    if found not in (None, extractor):
        raise ActVARError(f"{path} holds statistics of the extractor {found}, expected {extractor}. {ADVICE}")
    if mu_F.shape != (features,) or sigma_FF.shape != (features, features):
        raise ActVARError(
            f"{path} holds statistics of another feature extractor: mu {list(mu_F.shape)} and sigma "
            f"{list(sigma_FF.shape)}, expected {features} features of {extractor}. {ADVICE}"
        )
    if not (np.isfinite(mu_F).all() and np.isfinite(sigma_FF).all()):
        raise ActVARError(f"{path} holds statistics that are not finite. {ADVICE}")
    return FeatureStatistics(mu_F, sigma_FF, count)
