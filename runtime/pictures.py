"""What is asked for and what comes of it: orders, pictures, and whatever draws them.

Letters in shapes: B pictures, H height and W width of a picture, L tokens of a scale.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from threading import RLock
from typing import Protocol, TypeAlias

import numpy as np

from actvar.bundle.contract import DRAWN
from actvar.config import ModelConfig, Sampling
from actvar.errors import UsageError


@dataclass(frozen=True)
class Order:
    """A picture to draw: its class, and its number, which with the seed decides all its random numbers.

    The class after a model's last is none. `given` are codes of every scale that are not drawn (`given_at`), if any.
    """

    class_id: int
    number: int
    given: tuple[np.ndarray, ...] = field(default=(), kw_only=True, compare=False, repr=False)

    def given_at(self, si: int, tokens: int) -> np.ndarray:
        """The codes of scale index si that are given, [L] int64, with `DRAWN` where one is to be drawn."""
        return self.given[si] if self.given else np.full(tokens, DRAWN)

    def seed_in(self, drawn_with: int) -> int:
        """The seed that its random numbers come from: that of all that is drawn with it."""
        return drawn_with


@dataclass(frozen=True)
class SeededOrder(Order):
    """An order with a seed of its own, so that pictures of several seeds share a batch."""

    seed: int

    def seed_in(self, drawn_with: int) -> int:
        """Its own."""
        return self.seed


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


@dataclass(frozen=True)
class ScaleEnd:
    """A batch of pictures as they are after one of their scales, while the next is still to come.

    Args:
        scale: its number, from 1.
        scales: how many there are.
        orders: what is being drawn.
        pixels_BHW3: what each picture's f_hat makes so far, uint8 [B, H, W, 3]; an array of its own.
    """

    scale: int
    scales: int
    orders: tuple[Order, ...]
    pixels_BHW3: np.ndarray


OnScaleEnd: TypeAlias = Callable[[ScaleEnd], object]
"""Is called in the middle of a batch. Everybody else waits for it, so it should be quick; it may not draw."""


def require_orders(model: ModelConfig, orders: Iterable[Order], seed: int) -> None:
    """Hold orders and a seed to what a model can draw.

    Raises:
        UsageError: a class is not the model's, or a number or the seed is negative or has more than 64 bits.
    """
    classes = model.num_classes + model.is_guided  # a guidance-free model never learned to do without one
    for order in orders:
        if not 0 <= order.class_id < classes:
            raise UsageError(f"A class must lie in 0..{model.num_classes - 1} for this model, got {order.class_id}.")
        if not 0 <= order.number < 2**64:
            raise UsageError(f"A picture's number must lie in 0..2^64-1, got {order.number}.")
        if not 0 <= order.seed_in(seed) < 2**64:
            raise UsageError(f"The seed must lie in 0..2^64-1, got {order.seed_in(seed)}.")
        shapes, codes = [codes_L.shape for codes_L in order.given], model.vqvae.vocab_size
        if order.given and shapes != [(tokens,) for tokens in model.schedule.tokens]:
            raise UsageError(f"Codes must be given for every scale, {model.schedule.tokens} of them, got {shapes}.")
        if any((codes_L < DRAWN).any() or (codes_L >= codes).any() for codes_L in order.given):
            raise UsageError(f"A given code must lie in 0..{codes - 1} for this model, or be {DRAWN} to be drawn.")


class PictureSource(Protocol):
    """What draws pictures: the graphs, or the eager model that they were made from."""

    @property
    def model(self) -> ModelConfig:
        """What draws."""

    def draw(
        self,
        orders: Iterable[Order],
        sampling: Sampling,
        seed: int = 0,
        with_partials: bool = False,
        on_scale_end: OnScaleEnd | None = None,
    ) -> Iterator[Picture]:
        """Draw pictures, in order, each as soon as it is there.

        A picture does not depend on which others are drawn with it. Orders are taken as they are drawn, and nothing is
        kept of a picture that was given: there may be any number of them.

        Several threads may draw with one source, each with a call of its own: they take turns, a batch at a time. What
        is drawn and not yet taken keeps nobody waiting.

        With `on_scale_end` every scale's partial pictures are made as with `with_partials`, and given to it before the
        next scale begins. What it raises ends the drawing.

        Raises:
            UsageError: an order or the seed is not for this model; nothing of its batch is drawn then.
        """

    def encode(self, pixels_HW3: np.ndarray) -> tuple[np.ndarray, ...]:
        """The codes of a picture of the model's own size, uint8 [H, W, 3]: of every scale, [L] int64.

        Raises:
            BundleError: there is no encoder, or it cannot be run.
        """


class Turn:
    """A lock around what one thread does at a time, and does not begin again from within: `with turn:`.

    Raises:
        UsageError: this very thread holds it, so it would wait for itself.
    """

    def __init__(self) -> None:
        self._lock, self._taken = RLock(), False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._taken:
            self._lock.release()
            raise UsageError("What is drawing was asked to draw again, from within. Draw when the callback is over.")
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False
        self._lock.release()
