"""What our ONNX operators compute, in numpy: each takes an operator's inputs, then its attributes by name.

Written from the operators' meaning, for tests to hold bodies, plugins and kernels against.

Letters in shapes: R rows, L tokens, K kept tokens, C width, N experts, de hidden neurons of an expert.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from actvar.config import NORM_EPS


def best_first(scores: np.ndarray) -> np.ndarray:
    """Places along the last axis, the best score's first; of equal ones the lower, NaN above all, -0 equal to +0."""
    return np.lexsort((-scores, ~np.isnan(scores)), axis=-1)  # the last key counts most, and equals keep their order


def select(scores_RL: np.ndarray, keep: int) -> np.ndarray:
    """Places of the `keep` highest scores of every row, ascending: RL -> RK int64."""
    return np.sort(best_first(scores_RL)[:, :keep], axis=1)


def gather(x_RLC: np.ndarray, indices_RK: np.ndarray) -> np.ndarray:
    """The chosen tokens: RLC, RK -> RKC."""
    return np.take_along_axis(x_RLC, indices_RK[:, :, None], axis=1)


def scatter(x_RLC: np.ndarray, indices_RK: np.ndarray, updated_RKC: np.ndarray) -> np.ndarray:
    """x with the chosen tokens replaced (ActVAR, Eq. 9): RLC, RK, RKC -> RLC."""
    result = x_RLC.copy()
    np.put_along_axis(result, indices_RK[:, :, None], updated_RKC, axis=1)
    return result


def routed_ffn(
    x_RKC: np.ndarray,
    scores_RKN: np.ndarray,
    w1_NeC: np.ndarray,
    b1_Ne: np.ndarray,
    w2_NeC: np.ndarray,
    b2_C: np.ndarray,
    experts: int,
    active: int,
) -> np.ndarray:
    """The sum of each token's `active` best experts (ActVAR, Eq. 4), b2 added once: RKC -> RKC."""
    best_RKA = best_first(scores_RKN)[..., :active]
    result = np.broadcast_to(b2_C.astype(np.float32), x_RKC.shape).copy()
    for expert in range(experts):
        chosen_RK = (best_RKA == expert).any(-1)
        hidden = x_RKC[chosen_RK].astype(np.float32) @ w1_NeC[expert].T + b1_Ne[expert]
        gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        result[chosen_RK] += gelu @ w2_NeC[expert]
    return result.astype(x_RKC.dtype)


def gather_norm(
    x_RLC: np.ndarray,
    indices_RK: np.ndarray,
    scale_R1C: np.ndarray,
    shift_R1C: np.ndarray,
    to: int,
    epsilon: float = NORM_EPS,
) -> tuple[np.ndarray, np.ndarray]:
    """The chosen tokens, RKC, and LayerNorm of them, modulated (AdaLN), of the type `to`, RKC."""
    kept_RKC = gather(x_RLC, indices_RK)
    mean_RK1, variance_RK1 = kept_RKC.mean(-1, keepdims=True), kept_RKC.var(-1, keepdims=True)
    normed_RKC = (kept_RKC - mean_RK1) / np.sqrt(variance_RK1 + epsilon) * (1 + scale_R1C) + shift_R1C
    return kept_RKC, normed_RKC.astype(helper.tensor_dtype_to_np_dtype(to))


def scatter_gated(
    x_RLC: np.ndarray, indices_RK: np.ndarray, kept_RKC: np.ndarray, gamma_R1C: np.ndarray, change_RKC: np.ndarray
) -> np.ndarray:
    """x with the chosen tokens replaced by kept + gamma * change: RLC."""
    return scatter(x_RLC, indices_RK, kept_RKC + gamma_R1C * change_RKC.astype(np.float32))


REFERENCES: dict[str, Callable[..., Any]] = {
    "ActVarTokenSelect": select,
    "ActVarTokenGather": gather,
    "ActVarTokenScatter": scatter,
    "ActVarRoutedFFN": routed_ffn,
    "ActVarTokenGatherNorm": gather_norm,
    "ActVarTokenScatterGated": scatter_gated,
}
"""By operator. Each gives one array, or a tuple of all outputs."""
