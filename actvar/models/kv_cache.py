"""The KV cache of the eager model: one buffer for all scales, filled from the left.

Letters in shapes: D depth, R rows, h heads, P tokens so far, K new tokens, d = 64.
"""

from torch import Tensor

from actvar.config import HEAD_WIDTH, ModelConfig


class KVCache:
    """Keys and values of the tokens that the scales so far have computed.

    Args:
        config: decides how many tokens each scale leaves.
        rows: R.
        like: gives device and dtype.
    """

    def __init__(self, config: ModelConfig, rows: int, like: Tensor):
        total = sum(config.kept_tokens(si) for si in range(len(config.schedule)))
        self._buffer = like.new_empty(config.depth, 2, rows, config.heads, total, HEAD_WIDTH)
        self._length = 0

    @property
    def past(self) -> Tensor:
        """A view of what is cached, [D, 2, R, h, P, d]."""
        return self._buffer[..., : self._length, :]

    def append(self, new_kv_D2RhKd: Tensor) -> None:
        """Add a scale's keys and values, of all rows, or of the first ones: then nobody may read the others again."""
        end = self._length + new_kv_D2RhKd.shape[-2]
        self._buffer[:, :, : new_kv_D2RhKd.shape[2], :, self._length : end] = new_kv_D2RhKd
        self._length = end
