"""From classes to pictures: condition, the scales one after another, decoder.

Knows the order of the graphs and which output is which input (`actvar.bundle.contract`). No arithmetic: tensors pass
from graph to graph in the engine's own form.

Letters in shapes: B pictures, H height and W width of a picture, L tokens of a scale, E code width, S side of f_hat.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from actvar.bundle.contract import ENCODER, scale_name
from actvar.bundle.manifest import Manifest
from actvar.config import ModelConfig, Sampling
from actvar.errors import BundleError
from actvar.image import to_bytes, to_numbers
from actvar.runtime.backends.protocol import Engine, GraphRunner, Launched, Tensor
from actvar.runtime.pictures import OnScaleEnd, Order, Picture, ScaleEnd, require_orders
from actvar.uniforms import random_input, token_randoms


@dataclass(frozen=True)
class GraphSource:
    """Draws with the graphs of a bundle, at most `batch_size` pictures at a time.

    Where the engine wants more pictures than there are, the last one fills their places, and is drawn for nobody.
    """

    engine: Engine
    batch_size: int = 1

    @property
    def model(self) -> ModelConfig:
        """What draws."""
        return self.engine.manifest.model

    def draw(
        self,
        orders: Iterable[Order],
        sampling: Sampling,
        seed: int = 0,
        with_partials: bool = False,
        on_scale_end: OnScaleEnd | None = None,
    ) -> Iterator[Picture]:
        """See `PictureSource`. With `on_scale_end` one batch is drawn at a time, and no chain is replayed.

        Raises:
            UsageError: an order or the seed is not for this model.
            BundleError: a graph cannot be run.
            EngineError: the library that runs it failed.
            ActVARError: the model gave values that are not numbers.
        """
        under_way: deque[tuple[list[Order], Launched]] = deque()
        waiting, lanes = iter(orders), 1 if on_scale_end else self.engine.lanes
        while batch := list(islice(waiting, self.batch_size)):
            require_orders(self.model, batch, seed)
            filled = batch + batch[-1:] * (self.engine.fewest - len(batch))
            chain = _PictureChain(self.engine.manifest, tuple(batch), len(filled), with_partials, on_scale_end)
            inputs, replayable = self._inputs(filled, sampling, seed), on_scale_end is None
            under_way.append((batch, self.engine.launch(chain.name, chain.run, inputs, len(filled), replayable)))
            if len(under_way) == lanes:
                yield from self._pictures(*under_way.popleft())
        while under_way:
            yield from self._pictures(*under_way.popleft())

    def encode(self, pixels_HW3: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `PictureSource`."""
        if ENCODER not in self.engine.manifest.graphs:
            raise BundleError(
                "This bundle has no encoder, so it can edit no picture. Export it again, and without --no-encoder."
            )
        pictures = self.engine.fewest
        given = {"picture": to_numbers(pixels_HW3[None]).repeat(pictures, axis=0)}
        made = self.engine.launch(ENCODER, lambda graphs, given: graphs.run(ENCODER, given), given, pictures).result()
        return tuple(np.split(made["token_ids"][0], self.model.schedule.starts[1:]))

    def _inputs(self, orders: Sequence[Order], sampling: Sampling, seed: int) -> dict[str, np.ndarray]:
        """What a chain is given, in the types in which the graphs read it."""
        schedule, side = self.model.schedule, self.model.schedule.side
        f_hat_BESS = np.zeros((len(orders), self.model.vqvae.z_channels, side, side))
        arrays = {
            "class_ids": np.array([order.class_id for order in orders]),
            "f_hat": f_hat_BESS,
            **{name: np.asarray(getattr(sampling, name)) for name in ("cfg", "top_k", "top_p")},
        }
        dtypes = {t.name: t.dtype for graph in self.engine.manifest.graphs.values() for t in graph.inputs}
        typed = {name: array.astype(dtypes[name]) for name, array in arrays.items() if name in dtypes}  # cfg may not be
        for si, tokens in enumerate(schedule.tokens):
            typed[_random(si)] = np.stack([token_randoms(self.model, o.seed_in(seed), o.number, si) for o in orders])
            typed[_given(si)] = np.array([order.given_at(si, tokens) for order in orders], np.int64)
        return typed

    def _pictures(self, orders: Sequence[Order], launched: Launched) -> Iterator[Picture]:
        """The pictures of a chain, waited for; made one by one, as a large batch of them takes much memory."""
        made, scales = launched.result(), range(len(self.model.schedule))
        images_B3HW = [made[name] for name in (_image(si) for si in scales) if name in made]
        for i, order in enumerate(orders):
            token_ids = tuple(made[_tokens(si)][i] for si in scales)
            shown = tuple(to_bytes(image_B3HW[i : i + 1])[0] for image_B3HW in images_B3HW)
            yield Picture(order, shown[-1], token_ids, shown if len(shown) > 1 else ())


@dataclass(frozen=True)
class _PictureChain:
    """A batch of pictures, from classes to pixels; with the pictures that each scale's f_hat makes, if asked for.

    `on_scale_end` is given them in the middle of the run. Of the B pictures the first are those that are ordered.
    """

    manifest: Manifest
    orders: tuple[Order, ...]
    pictures: int
    with_partials: bool
    on_scale_end: OnScaleEnd | None

    @property
    def name(self) -> str:
        """What makes it another chain."""
        return "pictures with partials" if self.with_partials else "pictures"

    def run(self, graphs: GraphRunner, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `actvar.runtime.backends.protocol.Chain`."""
        last, random = len(self.manifest.model.schedule) - 1, random_input(self.manifest.model)
        held = {**given, **self._run(graphs, "condition", given)}
        cache = graphs.kv_cache(self.pictures)
        results = {}
        for si in range(last + 1):
            if si:
                held["past_kv"] = cache.past
            made = self._run(graphs, scale_name(si), {**held, random: given[_random(si)], "given": given[_given(si)]})
            results[_tokens(si)] = made["token_ids"]
            held["f_hat"] = made["next_f_hat"]
            if si < last:
                held["tokens_in"] = made["next_tokens_in"]
                cache.append(made["new_kv"])
            if si == last or self.with_partials or self.on_scale_end:
                image = self._run(graphs, "decoder", held)["image"]
                if si == last or self.with_partials:
                    results[_image(si)] = image
                if self.on_scale_end:
                    shown = to_bytes(graphs.download(image)[: len(self.orders)])
                    self.on_scale_end(ScaleEnd(si + 1, last + 1, self.orders, shown))
        return results

    def _run(self, graphs: GraphRunner, graph: str, held: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Run a graph on those of the tensors at hand that it reads."""
        inputs = self.manifest.graphs[graph].inputs
        return graphs.run(graph, {tensor.name: held[tensor.name] for tensor in inputs})


def _random(si: int) -> str:
    return f"{scale_name(si)}/random"


def _given(si: int) -> str:
    return f"{scale_name(si)}/given"


def _tokens(si: int) -> str:
    return f"{scale_name(si)}/token_ids"


def _image(si: int) -> str:
    return f"{scale_name(si)}/image"
