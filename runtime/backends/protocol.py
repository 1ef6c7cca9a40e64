"""What the pipeline asks of a backend: to hold tensors, to run graphs, to keep a KV cache, and to launch whole chains.

The pipeline never looks into a tensor between two graphs. An engine may therefore leave it on its device, put the
outputs of a graph where the next run of it will put them again, or record a chain and replay it.

Letters in shapes: D depth, G groups of rows, B pictures, h heads, T tokens that the cache has room for, K new tokens,
d = 64.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from actvar.bundle.manifest import Manifest

Device: TypeAlias = Literal["cpu", "cuda"]

Scales: TypeAlias = Literal["fastest", "scales", "scales_masked", "each"]
"""What runs the scales on a CPU: a graph of all scales by its name, the one of them that this processor is faster with,
or each scale's own graph."""

Tensor: TypeAlias = Any
"""A tensor in the engine's own form: given by one method of an engine, good for the others."""


class KVCache(Protocol):
    """Keys and values of the scales so far, of one batch of pictures."""

    @property
    def past(self) -> Tensor:
        """What the next scale reads as `past_kv`, when one has been appended: [D, 2, G, B, h, T, d]."""

    def append(self, new_kv: Tensor) -> None:
        """Take what a scale gave as `new_kv`: [D, 2, G, B, h, K, d], or all so far where an engine's scales give that.

        G may be less than the cache has, from some scale on; the other groups are not read from then on.
        """


class GraphRunner(Protocol):
    """What runs graphs one after another."""

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Run one graph: exactly the inputs that its `GraphSpec` names, to all its outputs by name.

        Raises:
            BundleError: the graph cannot be run.
            EngineError: the library that runs it failed.
        """

    def kv_cache(self, pictures: int) -> KVCache:
        """An empty cache for a batch; the one that was given before is not to be used any more."""

    def download(self, tensor: Tensor) -> np.ndarray:
        """Bring a tensor back, as an array of its own; waits for the runs that make it."""


Chain: TypeAlias = Callable[[GraphRunner, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Steps that make outputs of inputs by running graphs. What may be replayed does nothing else, nor does it download."""


class Launched(Protocol):
    """A chain that is under way."""

    def result(self) -> Mapping[str, np.ndarray]:
        """Its outputs, waited for; arrays of their own."""


class Engine(GraphRunner, Protocol):
    """A loaded bundle.

    Several threads may launch chains and ask for results. Everything else is for one thread alone, as it uses the
    places of the first lane.
    """

    @property
    def manifest(self) -> Manifest:
        """What was loaded."""

    @property
    def lanes(self) -> int:
        """Chains that may be under way at a time; the launch of one more waits for the oldest."""

    @property
    def fewest(self) -> int:
        """The least that B may be."""

    def upload(self, array: np.ndarray, dtype: str = "") -> Tensor:
        """Bring an array to where the graphs run, as this type of a bundle if it is named."""

    def launch(
        self, name: str, chain: Chain, inputs: Mapping[str, np.ndarray], pictures: int, replayable: bool = True
    ) -> Launched:
        """Start a chain.

        Args:
            name: of the chain: under one name an engine is always given the same steps.
            chain: the steps.
            inputs: what they are given.
            pictures: B; with the name it decides all shapes.
            replayable: whether the engine may record the steps and replay them; else they are run, at once.

        Raises:
            BundleError: a graph cannot be run.
            EngineError: the library that runs it failed.
        """
