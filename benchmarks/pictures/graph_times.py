"""When the graphs of a chain run: an engine that looks at the clock, and what draws with one.

No engine knows of it: it stands in front of one, and speaks as one (`actvar.runtime.backends.protocol`).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from actvar.bundle.contract import TensorSpec
from actvar.bundle.manifest import Manifest
from actvar.runtime.backends.protocol import Chain, Engine, KVCache, Tensor
from actvar.runtime.pictures import Order
from actvar.runtime.pipeline import GraphSource


class Lap(NamedTuple):
    """One run of a graph, or of what does its work elsewhere, from when to when (`time.perf_counter`)."""

    graph: str
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class Drawer(Protocol):
    """What draws pictures that nobody looks at."""

    def draw(self, first: int, pictures: int, looked_into: bool) -> list[Lap]:
        """Draw a batch, up to bytes in the host's memory.

        Args:
            first: the first picture's number; another number is another picture.
            pictures: B.
            looked_into: note when what ran. It may cost time where graphs could run one behind the other unwatched.

        Returns: what was noted.
        """

    def multiply(self) -> float | None:
        """See `actvar.benchmarks.pictures.measure.Worker`."""


@dataclass(frozen=True)
class GraphDrawer:
    """Draws with the graphs of a bundle; see `Drawer`. Without a `product` there is none beside."""

    source: GraphSource
    product: Callable[[], float | None] | None = None

    def multiply(self) -> float | None:
        """See `Drawer`."""
        return self.product() if self.product else None

    def draw(self, first: int, pictures: int, looked_into: bool) -> list[Lap]:
        """See `Drawer`."""
        engine = TimedEngine(self.source.engine) if looked_into else self.source.engine
        source = replace(self.source, engine=engine, batch_size=pictures)
        classes = self.source.model.num_classes
        orders = [Order(number % classes, number) for number in range(first, first + pictures)]
        for _ in source.draw(orders, self.source.model.sampling):
            pass
        return engine.laps if isinstance(engine, TimedEngine) else []


class TimedEngine:
    """Another engine, with a look at the clock before and after every run of a graph; see `Engine`.

    Each run is waited for, so nothing overlaps, and chains are run anew rather than replayed.
    """

    lanes = 1

    def __init__(self, engine: Engine):
        self._engine = engine
        self.laps: list[Lap] = []

    @property
    def manifest(self) -> Manifest:
        """See `Engine`."""
        return self._engine.manifest

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
        spec = self.manifest.graphs[graph]
        self._wait(spec.inputs, inputs)
        began = time.perf_counter()
        outputs = self._engine.run(graph, inputs)
        self._wait(spec.outputs, outputs)
        self.laps.append(Lap(graph, began, time.perf_counter()))
        return outputs

    def kv_cache(self, pictures: int) -> KVCache:
        """See `Engine`."""
        return self._engine.kv_cache(pictures)

    def launch(
        self, name: str, chain: Chain, inputs: Mapping[str, np.ndarray], pictures: int, replayable: bool = True
    ) -> "_Done":
        """See `Engine`. The chain is over when this returns."""
        made = chain(self, {input_name: self.upload(array) for input_name, array in inputs.items()})
        return _Done({output_name: self.download(tensor) for output_name, tensor in made.items()})

    def _wait(self, specs: Sequence[TensorSpec], tensors: Mapping[str, Tensor]) -> None:
        """Until all work so far is done: to fetch a tensor is to wait, and the smallest costs next to nothing."""
        smallest = min(specs, key=lambda spec: math.prod(spec.sized(1)))
        self.download(tensors[smallest.name])


@dataclass(frozen=True)
class _Done:
    """See `Launched`."""

    outputs: Mapping[str, np.ndarray]

    def result(self) -> Mapping[str, Any]:
        """See `Launched`."""
        return self.outputs
