"""The KV cache of engines that work in the host's memory.

It is allocated once, with room for every scale; a scale's graph reads the part that is filled.

Letters in shapes: D depth, R rows, h heads, T tokens that there is room for, K new tokens, d = 64.
"""

import numpy as np

from actvar.config import HEAD_WIDTH, ModelConfig


class HostKVCache:
    """Keys and values of the tokens that the scales so far have computed.

    Args:
        model: its depth, heads and the tokens that it caches.
        rows: R.
        dtype: of the keys and values.
    """

    def __init__(self, model: ModelConfig, rows: int, dtype: np.dtype):
        self.past_D2RhTd = np.empty((model.depth, 2, rows, model.heads, model.cached_tokens[-1], HEAD_WIDTH), dtype)
        self._filled = 0

    def append(self, new_kv_D2RhKd: np.ndarray) -> None:
        """Add a scale's keys and values."""
        end = self._filled + new_kv_D2RhKd.shape[-2]
        self.past_D2RhTd[..., self._filled : end, :] = new_kv_D2RhKd
        self._filled = end
