"""A queue of pictures, and the one thread that draws them: pictures of several requests share a batch.

No picture depends on its batch, so whoever waits beside whom changes no byte. Knows sources of pictures and nothing of
HTTP.

The rules:

- The picture that waits longest decides what the next batch is; those behind it with the same sampling come along.
- A batch begins when it is full, or when its first picture has waited for `max_wait` seconds.
- A picture whose client has left before its batch begins is not drawn, and its place is free at once.
- A batch that has begun is drawn to its end; but one whose partial pictures are sent ends at the next scale when all of
  its clients have left.
- When a batch fails its pictures are tried one by one, so that one that cannot be drawn fails alone. When even the
  picture that the engine has drawn at its start fails, the engine has failed: everybody is told so at once, and it is
  tried again every few seconds.

Letters in shapes: H height and W width of a picture.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from actvar.config import Sampling
from actvar.console import say
from actvar.errors import ActVARError, counted
from actvar.runtime.pictures import Order, PictureSource, ScaleEnd, SeededOrder
from actvar.runtime.pipeline import GraphSource
from actvar.serve.metrics import Metrics

RETRY_SECONDS = 5.0
"""How often an engine that has failed is tried again."""

_STARTING = "The engine is being started. Ask again later."
_FAILED = "The engine has failed, and is tried again every few seconds. Ask again later."
_ENDING = "The server is about to end. Ask another."
_FIRST_GUESS = 0.1  # seconds that a picture takes, before any was drawn
_MEMORY = 0.9  # of the seconds that a picture takes: the share that stays when a batch adds its own

OnScale = Callable[[int, int, np.ndarray], None]
"""`on_scale(scale, scales, pixels_HW3)`, called in the drawing thread: it must be quick."""


class Refused(ActVARError):
    """What was asked for is not taken on; `retry_after` is in how many seconds it may be."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Refused):
    """As many pictures wait as may."""


class NotDrawing(Refused):
    """The engine has failed, or the server is about to end."""


class CannotDraw(ActVARError):
    """A picture that was taken on could not be drawn."""


class _NobodyLeft(Exception):
    """All clients of a batch have left."""


@dataclass(eq=False)
class Ticket:
    """A picture that waits to be drawn.

    Args:
        order: what is drawn.
        sampling: how. Pictures of one sampling share a batch.
        on_scale: is given the partial pictures; pictures with and without one do not share a batch, as partial
            pictures take the decoder's time.

    Attributes:
        picture: the pixels to come, uint8 [H, W, 3].
        since: when it came, by `time.perf_counter`.
        left: whether its client has left.
        told: the last scale whose partial picture was given.
    """

    order: SeededOrder
    sampling: Sampling
    on_scale: OnScale | None = None
    picture: Future[np.ndarray] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)
    left: bool = False
    told: int = 0

    @property
    def kind(self) -> tuple[Sampling, bool]:
        """What those of one batch have in common."""
        return self.sampling, self.on_scale is not None


class Drawer:
    """The queue and its thread.

    Args:
        source: what draws; nobody else should, as he would be waited for.
        metrics: are told what happens.
        max_batch: pictures that are drawn at a time.
        max_wait: seconds that a picture waits for others.
        max_queue: pictures that may wait.
    """

    def __init__(
        self, source: PictureSource, metrics: Metrics, *, max_batch: int, max_wait: float, max_queue: int
    ) -> None:
        self._source = replace(source, batch_size=max_batch) if isinstance(source, GraphSource) else source
        self._metrics, self._max_batch, self._max_wait, self._max_queue = metrics, max_batch, max_wait, max_queue
        self._waiting: deque[Ticket] = deque()
        self._drawing: Sequence[Ticket] = ()
        self._changed = threading.Condition()
        self._closed, self._end = False, math.inf
        self._trouble = _STARTING
        self._picture_seconds = _FIRST_GUESS
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        metrics.watch_queue(lambda: len(self._waiting))

    # ---- for everybody

    @property
    def trouble(self) -> str:
        """Why nothing is drawn; empty if all is well."""
        return _ENDING if self._closed else self._trouble

    @property
    def has_failed(self) -> bool:
        """Whether the engine has failed, and draws nothing yet."""
        return self._trouble == _FAILED

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is drawn."""
        with self._changed:
            return not self._waiting and not self._drawing

    def start(self) -> None:
        """Start the thread, which draws a picture at first to see that the engine works."""
        self._thread.start()

    def encode(self, pixels_HW3: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `PictureSource`. It takes its turn with what is drawn."""
        return self._source.encode(pixels_HW3)

    def require_room(self, count: int) -> None:
        """Make sure that a request of so many pictures would be taken on now.

        Raises:
            QueueFull: there is no room for them.
            NotDrawing: nothing is drawn at present.
        """
        with self._changed:
            if self.trouble:
                raise NotDrawing(self.trouble, math.ceil(RETRY_SECONDS))
            room = self._max_queue - len(self._waiting)
            if count > room:
                seconds = math.ceil((count - room) * self._picture_seconds)
                waiting = counted(len(self._waiting), "picture")
                raise QueueFull(
                    f"{waiting} in the queue, and at most {self._max_queue} may wait. Ask again later.",
                    max(1, seconds),
                )

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Take on the pictures of a request, all or none; errors are those of `require_room`."""
        with self._changed:
            self.require_room(len(tickets))
            self._waiting.extend(tickets)
            self._changed.notify_all()

    def leave(self, tickets: Sequence[Ticket]) -> None:
        """The client of these has left, or has what it wants: those that wait are not drawn."""
        with self._changed:
            for ticket in tickets:
                ticket.left = True
                with suppress(ValueError):
                    self._waiting.remove(ticket)

    def end_within(self, seconds: float) -> None:
        """However long `close` may wait, it is to be over in this time from now."""
        self._end = time.monotonic() + seconds

    def close(self, seconds: float) -> bool:
        """Take nothing more, and draw what was taken on; returns whether that came to its end in this time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(max(0.0, min(seconds, self._end - time.monotonic())))
        with self._changed:
            self._give_up(self._waiting, NotDrawing(_ENDING, 1))
            self._waiting.clear()
        return not self._thread.is_alive()

    # ---- the thread

    def _work(self) -> None:
        self._try_engine()
        while batch := self._next_batch():
            self._draw(batch)
            with self._changed:
                self._drawing = ()

    def _next_batch(self) -> list[Ticket]:
        """The next batch, waited for; none when the server ends. An engine that has failed is tried meanwhile."""
        while True:
            with self._changed:
                batch = self._taken()
                if batch or (self._closed and not self._waiting):
                    self._drawing = batch
                    return batch
            if self._trouble:  # and nothing waits; whoever looks at the queue is not to wait for this
                self._try_engine()

    def _taken(self) -> list[Ticket]:
        """Take a batch out of the queue; none if the time has come to look for something else."""
        if not self._waiting:
            self._changed.wait(RETRY_SECONDS if self._trouble else None)
            return []
        first = self._waiting[0]
        alike = [ticket for ticket in self._waiting if ticket.kind == first.kind][: self._max_batch]
        patience = first.since + self._max_wait - time.perf_counter()
        if len(alike) < self._max_batch and patience > 0 and not self._closed:
            self._changed.wait(patience)
            return []
        for ticket in alike:
            self._waiting.remove(ticket)
        return [ticket for ticket in alike if ticket.picture.set_running_or_notify_cancel()]

    def _draw(self, batch: Sequence[Ticket]) -> None:
        """Draw a batch, and say of each picture what came of it."""
        sampling, streamed = batch[0].kind
        by_order: dict[int, Ticket] = {id(ticket.order): ticket for ticket in batch}
        started = ended = time.perf_counter()

        def tell(end: ScaleEnd) -> None:
            nonlocal ended
            now = time.perf_counter()
            self._metrics.scale_drawn(end.scale, now - ended)
            ended = now
            if all(ticket.left for ticket in batch):
                raise _NobodyLeft
            for order, pixels_HW3 in zip(end.orders, end.pixels_BHW3, strict=True):
                ticket = by_order[id(order)]
                if ticket.on_scale and end.scale > ticket.told and not ticket.left:
                    ticket.on_scale(end.scale, end.scales, pixels_HW3)
                    ticket.told = end.scale

        try:
            drawn = self._source.draw([t.order for t in batch], sampling, on_scale_end=tell if streamed else None)
            for picture in drawn:
                by_order[id(picture.order)].picture.set_result(picture.pixels_HW3)
        except _NobodyLeft:
            return
        except Exception as error:
            self._recover([ticket for ticket in batch if not ticket.picture.done()], error)
            return
        seconds = time.perf_counter() - started
        self._picture_seconds = _MEMORY * self._picture_seconds + (1 - _MEMORY) * seconds / len(batch)
        self._metrics.batch_drawn(len(batch), seconds)

    def _recover(self, batch: Sequence[Ticket], error: Exception) -> None:
        """A batch has failed: find out whether one of its pictures is the reason, or the engine."""
        if len(batch) > 1:
            for ticket in batch:
                if not self._trouble:
                    self._draw([ticket])
            batch = [ticket for ticket in batch if not ticket.picture.done() and self._trouble]
        else:
            say(f"A picture could not be drawn: {batch[0].order}: {_in_words(error)}")
            self._try_engine()
        self._give_up(batch, CannotDraw(self._trouble or "This picture cannot be drawn. Ask for another."))

    def _try_engine(self) -> None:
        """Draw one picture of the model's own, to learn whether the engine works, and say so where that changes."""
        try:
            for _ in self._source.draw([Order(0, 0)], self._source.model.sampling):
                pass
        except Exception as error:
            if self._trouble != _FAILED:
                say(f"The engine has failed: {_in_words(error)}")
            self._trouble = _FAILED
            with self._changed:
                self._give_up(self._waiting, NotDrawing(self._trouble, math.ceil(RETRY_SECONDS)))
                self._waiting.clear()
            return
        if self._trouble:
            say("The engine draws.")
        self._trouble = ""

    def _give_up(self, tickets: Sequence[Ticket] | deque[Ticket], why: Exception) -> None:
        for ticket in tickets:
            with suppress(InvalidStateError):  # it is done, or its client has left
                ticket.picture.set_exception(why)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
