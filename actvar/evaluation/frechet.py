"""The Fréchet distance between two sets of pictures, by the Gaussians fitted to their features.

Knows numbers only: not which network made the features. FID is this distance in the features of Inception v3.

Letters in shapes: N pictures, F features.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of a set of feature vectors, in float64: mean_F, covariance_FF, and how many there were."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def of(cls, features_NF: np.ndarray) -> "FeatureStatistics":
        """Fit a Gaussian; the covariance is the unbiased one (N - 1).

        Raises:
            ValueError: not a matrix of at least two rows, or a number is not finite.
        """
        features_NF = np.asarray(features_NF, np.float64)
        if features_NF.ndim != 2 or len(features_NF) < 2:
            raise ValueError(f"features must be a matrix of at least two rows, got shape {features_NF.shape}")
        if not np.isfinite(features_NF).all():
            raise ValueError("features must be finite, got NaN or infinity")
        centred_NF = features_NF - features_NF.mean(0)
        covariance_FF = centred_NF.T @ centred_NF / (len(features_NF) - 1)
        return cls(features_NF.mean(0), covariance_FF, len(features_NF))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared 2-Wasserstein distance of the two Gaussians.

    Sources: Dowson & Landau 1982; as a measure of generated pictures, Heusel et al. 2017. The root's trace is the sum
    of the roots of the eigenvalues of C_a C_b. These are also those of the symmetric S C_b S with S = C_a^(1/2), which
    stay real and not negative, but for rounding, where a covariance is singular.

    Raises:
        ValueError: the two sets have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both sets must have the same features, got {a.mean.shape} and {b.mean.shape}")
    eigenvalues_F, vectors_FF = np.linalg.eigh(a.covariance)
    root_FF = (vectors_FF * np.sqrt(eigenvalues_F.clip(min=0))) @ vectors_FF.T
    product_F = np.linalg.eigvalsh(root_FF @ b.covariance @ root_FF)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(product_F.clip(min=0)).sum()
    return float(((a.mean - b.mean) ** 2).sum() + trace)
