"""The Fréchet distance, against closed forms and a matrix root by Newton's iteration.

Letters in shapes: N pictures, F features.
"""

import numpy as np
import pytest

from actvar.evaluation.frechet import FeatureStatistics, frechet_distance


def random_statistics(seed: int, features: int = 6, count: int = 50) -> FeatureStatistics:
    rng = np.random.default_rng(seed)
    mixing_FF = rng.normal(size=(features, features))
    return FeatureStatistics.of(rng.normal(size=(count, features)) @ mixing_FF + rng.normal(size=features))


def root_by_newton(matrix_FF: np.ndarray) -> np.ndarray:
    """The principal square root, by the iteration of Denman and Beavers (1976)."""
    root_FF, inverse_FF = matrix_FF, np.eye(len(matrix_FF))
    for _ in range(60):
        root_FF, inverse_FF = (
            (root_FF + np.linalg.inv(inverse_FF)) / 2,
            (inverse_FF + np.linalg.inv(root_FF)) / 2,
        )
    np.testing.assert_allclose(root_FF @ root_FF, matrix_FF, atol=1e-8)
    return root_FF


def test_statistics_are_the_mean_and_the_unbiased_covariance():
    features_NF = np.array([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0]])
    statistics = FeatureStatistics.of(features_NF)
    np.testing.assert_allclose(statistics.mean, [2, 3])
    np.testing.assert_allclose(statistics.covariance, [[4, 2], [2, 4]])
    assert statistics.count == 3


def test_one_feature_has_the_closed_form():
    """In one dimension the distance is (m_a - m_b)^2 + (s_a - s_b)^2."""
    a = FeatureStatistics(np.array([1.0]), np.array([[9.0]]), 10)
    b = FeatureStatistics(np.array([3.0]), np.array([[25.0]]), 10)
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (3 - 5) ** 2)


def test_a_set_is_at_distance_zero_from_itself():
    a = random_statistics(seed=0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_it_agrees_with_the_formula_and_newton_s_root():
    """Covariances that do not commute: the root of the product is neither the product of roots nor symmetric."""
    a, b = random_statistics(seed=1), random_statistics(seed=2)
    root_FF = root_by_newton(a.covariance @ b.covariance)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root_FF)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_fewer_pictures_than_features_still_give_a_real_number():
    """The covariances are singular then; a root of their plain product may turn complex."""
    a, b = random_statistics(seed=3, features=20, count=5), random_statistics(seed=4, features=20, count=5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(a, b) > 1


def test_features_that_cannot_be_fitted_are_refused():
    with pytest.raises(ValueError, match="two rows"):
        FeatureStatistics.of(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="finite"):
        FeatureStatistics.of(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="same features"):
        frechet_distance(random_statistics(0, features=3), random_statistics(0, features=4))
