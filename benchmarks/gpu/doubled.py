"""An engine in which every graph runs twice: what that adds to a chain's time is the time inside the graphs.

So recorded chains can be looked into without taking them apart. The second run finds in the caches what the first has
left there, so the share of small models is a little too low; engines of hundreds of megabytes leave nothing.

No engine knows of it: it stands in front of one (`actvar.runtime.backends.protocol`).
"""

from collections.abc import Mapping

import numpy as np

from actvar.bundle.manifest import Manifest
from actvar.runtime.backends.protocol import Chain, Engine, GraphRunner, KVCache, Launched, Tensor


class DoubledEngine:
    """See `Engine`."""

    def __init__(self, engine: Engine):
        self._engine = engine

    @property
    def manifest(self) -> Manifest:
        """See `Engine`."""
        return self._engine.manifest

    @property
    def lanes(self) -> int:
        """See `Engine`."""
        return self._engine.lanes

    @property
    def fewest(self) -> int:
        """See `Engine`."""
        return self._engine.fewest

    def upload(self, array: np.ndarray, dtype: str = "") -> Tensor:
        """See `Engine`."""
        return self._engine.upload(array, dtype)

    def download(self, tensor: Tensor) -> np.ndarray:
        """See `Engine`."""
        return self._engine.download(tensor)

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Engine`."""
        return self._engine.run(graph, inputs)

    def kv_cache(self, pictures: int) -> KVCache:
        """See `Engine`."""
        return self._engine.kv_cache(pictures)

    def launch(
        self, name: str, chain: Chain, inputs: Mapping[str, np.ndarray], pictures: int, replayable: bool = True
    ) -> Launched:
        """See `Engine`; a chain of another name, as its steps are others."""

        def twice(graphs: GraphRunner, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return chain(_Doubled(graphs), given)

        return self._engine.launch(f"{name}, every graph twice", twice, inputs, pictures, replayable)


class _Doubled:
    """What the chain sees."""

    def __init__(self, graphs: GraphRunner):
        self._graphs = graphs

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self._graphs.run(graph, inputs)
        return self._graphs.run(graph, inputs)

    def kv_cache(self, pictures: int) -> KVCache:
        return self._graphs.kv_cache(pictures)

    def download(self, tensor: Tensor) -> np.ndarray:
        return self._graphs.download(tensor)
