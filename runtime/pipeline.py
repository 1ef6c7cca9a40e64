"""From classes to pictures: condition, the scales one after another, decoder.

Knows the order of the graphs and which output is which input (`actvar.bundle.contract`). No arithmetic: tensors pass
from graph to graph in the engine's own form.

Letters in shapes: B pictures, H height and W width of a picture, L tokens of a scale, E code width, S side of f_hat.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from actvar.bundle import scale_name
from actvar.config import ModelConfig, Sampling
from actvar.runtime.backends.protocol import Engine, Tensor
from actvar.runtime.image import to_bytes
from actvar.uniforms import token_uniforms


@dataclass(frozen=True)
class Order:
    """A picture to draw: its class, and its number, which with the seed decides all its random numbers."""

    class_id: int
    number: int


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn: uint8 [H, W, 3], and the tokens of every scale, int64 [L].

    `partials` are the pictures that each scale's f_hat makes, the last of them the picture itself; empty unless asked
    for.
    """

    order: Order
    pixels_HW3: np.ndarray
    token_ids: tuple[np.ndarray, ...]
    partials: tuple[np.ndarray, ...]


class PictureSource(Protocol):
    """What draws pictures: the graphs, or the eager model that they were made from."""

    @property
    def model(self) -> ModelConfig:
        """What draws."""

    def draw(
        self, orders: Sequence[Order], sampling: Sampling, seed: int = 0, with_partials: bool = False
    ) -> Iterator[Picture]:
        """Draw pictures, in order, each as soon as it is there.

        A picture does not depend on which others are drawn with it.
        """


@dataclass(frozen=True)
class Pipeline:
    """Draws with the graphs of a bundle, at most `batch_size` pictures at a time."""

    engine: Engine
    batch_size: int = 1

    @property
    def model(self) -> ModelConfig:
        """What draws."""
        return self.engine.manifest.model

    def draw(
        self, orders: Sequence[Order], sampling: Sampling, seed: int = 0, with_partials: bool = False
    ) -> Iterator[Picture]:
        """See `PictureSource`.

        Raises:
            BundleError: a graph cannot be run.
            ActVARError: the model gave values that are not numbers.
        """
        waiting = iter(orders)
        while batch := list(islice(waiting, self.batch_size)):
            ids, f_hats = self._scales(batch, sampling, seed)
            shown = [self._decode(f_hat) for f_hat in (f_hats if with_partials else f_hats[-1:])]
            token_ids = [self.engine.download(tensor) for tensor in ids]
            for i, order in enumerate(batch):
                partials = tuple(pixels_BHW3[i] for pixels_BHW3 in shown) if with_partials else ()
                yield Picture(order, shown[-1][i], tuple(ids_BL[i] for ids_BL in token_ids), partials)

    def _scales(self, orders: Sequence[Order], sampling: Sampling, seed: int) -> tuple[list[Tensor], list[Tensor]]:
        """Token ids [B, L] and f_hat [B, E, S, S] of every scale."""
        schedule, side = self.model.schedule, self.model.schedule.side
        class_ids_B = np.array([order.class_id for order in orders])
        held = self._run("condition", {"class_ids": self._upload("class_ids", class_ids_B)})
        f_hat_BESS = np.zeros((len(orders), self.model.vqvae.z_channels, side, side))
        first = {"f_hat": f_hat_BESS, "cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
        held |= {name: self._upload(name, np.asarray(value)) for name, value in first.items()}
        uniforms = [
            np.stack([token_uniforms(seed, order.number, si, tokens) for order in orders])
            for si, tokens in enumerate(schedule.tokens)
        ]
        cache = self.engine.kv_cache(len(orders))
        ids, f_hats = [], []
        for si, uniform_BL in enumerate(uniforms):
            uniform = self._upload("uniform", uniform_BL)
            made = self._run(scale_name(si), {**held, "uniform": uniform, "past_kv": cache.past})
            ids.append(made["token_ids"])
            f_hats.append(made["next_f_hat"])
            if si + 1 < len(schedule):
                held |= {"f_hat": made["next_f_hat"], "tokens_in": made["next_tokens_in"]}
                cache.append(made.pop("new_kv"))  # it is not to outlive this: it may be large
        return ids, f_hats

    def _decode(self, f_hat_BESS: Tensor) -> np.ndarray:
        """Pixels of a batch, uint8 [B, H, W, 3]."""
        return to_bytes(self.engine.download(self._run("decoder", {"f_hat": f_hat_BESS})["image"]))

    def _run(self, graph: str, held: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run a graph on those of the tensors at hand that it reads."""
        inputs = self.engine.manifest.graphs[graph].inputs
        return dict(self.engine.run(graph, {tensor.name: held[tensor.name] for tensor in inputs}))

    def _upload(self, name: str, array: np.ndarray) -> Tensor:
        """An array in the type in which the graphs read an input of this name."""
        graphs = self.engine.manifest.graphs.values()
        dtype = next(tensor.dtype for graph in graphs for tensor in graph.inputs if tensor.name == name)
        return self.engine.upload(array.astype(dtype))
