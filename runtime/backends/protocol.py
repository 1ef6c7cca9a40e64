"""What the pipeline asks of an engine library: to hold tensors, to run a graph, and to keep a KV cache.

The pipeline never looks into a tensor between two graphs. An engine may therefore leave it on its device, hand out a
view of a buffer that the next run overwrites at the same place, or record the whole chain and replay it.

Letters in shapes: D depth, R rows, h heads, T tokens that the cache has room for, K new tokens, d = 64.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np

from actvar.bundle import Manifest

Tensor: TypeAlias = Any
"""A tensor in the engine's own form: given by one method of an engine, good for the others."""


class KVCache(Protocol):
    """Keys and values of the scales so far, of one batch of pictures."""

    @property
    def past(self) -> Tensor:
        """What every scale reads as `past_kv`: [D, 2, R, h, T, d]. `append` writes into it."""

    def append(self, new_kv: Tensor) -> None:
        """Add what a scale gave as `new_kv`: [D, 2, R, h, K, d]."""


class Engine(Protocol):
    """A loaded bundle."""

    @property
    def manifest(self) -> Manifest:
        """What was loaded."""

    def upload(self, array: np.ndarray) -> Tensor:
        """Bring an array to where the graphs run."""

    def download(self, tensor: Tensor) -> np.ndarray:
        """Bring a tensor back; waits for the runs that make it."""

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Run one graph: exactly the inputs that its `GraphSpec` names, to all its outputs by name.

        Raises:
            BundleError: the graph cannot be run.
        """

    def kv_cache(self, pictures: int) -> KVCache:
        """An empty cache for a batch."""
