"""The KV cache of engines that work in the host's memory.

A graph reads its past in one piece, so the cache is one contiguous array that is made anew when a scale is added.

Letters in shapes: D depth, R rows, h heads, P tokens so far, K new tokens, d = 64.
"""

import numpy as np

from actvar.config import HEAD_WIDTH, ModelConfig


class HostKVCache:
    """Keys and values of the tokens that the scales so far have computed.

    Args:
        model: its depth and heads.
        rows: R.
        dtype: of the keys and values.
    """

    def __init__(self, model: ModelConfig, rows: int, dtype: np.dtype):
        self._past_D2RhPd = np.empty((model.depth, 2, rows, model.heads, 0, HEAD_WIDTH), dtype)

    @property
    def past(self) -> np.ndarray:
        """What is cached, [D, 2, R, h, P, d], contiguous."""
        return self._past_D2RhPd

    def append(self, new_kv_D2RhKd: np.ndarray) -> None:
        """Add a scale's keys and values."""
        self._past_D2RhPd = np.concatenate((self._past_D2RhPd, new_kv_D2RhKd), axis=-2)
