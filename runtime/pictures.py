"""What is asked for and what comes of it: orders, pictures, and whatever draws them.

Letters in shapes: H height and W width of a picture, L tokens of a scale.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import RLock
from typing import Protocol

import numpy as np

from actvar.config import ModelConfig, Sampling
from actvar.errors import UsageError


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
        self, orders: Iterable[Order], sampling: Sampling, seed: int = 0, with_partials: bool = False
    ) -> Iterator[Picture]:
        """Draw pictures, in order, each as soon as it is there.

        A picture does not depend on which others are drawn with it. Orders are taken as they are drawn, and nothing is
        kept of a picture that was given: there may be any number of them.

        Several threads may draw with one source, each with a call of its own: they take turns, a batch at a time. What
        is drawn and not yet taken keeps nobody waiting.
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
