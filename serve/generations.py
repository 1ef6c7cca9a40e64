"""A request for pictures on its way: held to the model, put into the queue, and answered whole or as a stream.

Letters in shapes: H height and W width of a picture.
"""

import asyncio
import json
import secrets
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from starlette.concurrency import run_in_threadpool

from actvar.arguments import chosen_sampling
from actvar.classes import choose_classes, class_label
from actvar.config import ModelConfig, Sampling
from actvar.errors import ArgumentError, UsageError, counted
from actvar.image import png
from actvar.runtime.pictures import SeededOrder
from actvar.serve.batching import CannotDraw, Drawer, Refused, Ticket
from actvar.serve.bodies import CompletedEvent, GenerationAnswer, GenerationRequest, PartialEvent, PictureAnswer
from actvar.serve.refusals import Refusal, refusal_of

_T = TypeVar("_T")
_RANDOM_SEEDS = 2**32  # short enough to be typed


@dataclass(frozen=True)
class Generation:
    """What a request comes to for a model: `count` pictures of a class, from `number` on."""

    class_id: int
    label: str
    sampling: Sampling
    seed: int
    number: int
    count: int
    given: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)

    @property
    def orders(self) -> list[SeededOrder]:
        """Its pictures."""
        return [SeededOrder(self.class_id, self.number + i, self.seed, given=self.given) for i in range(self.count)]


@dataclass(frozen=True)
class Studio:
    """What pictures are drawn with: the queue, what the model is called, and how many pictures a request may have."""

    drawer: Drawer
    model: ModelConfig
    name: str
    max_count: int

    @property
    def size(self) -> str:
        """Of every picture, as OpenAI writes it."""
        return f"{self.model.picture_size}x{self.model.picture_size}"

    def generation(self, asked: GenerationRequest) -> Generation:
        """Hold a request to the model.

        Raises:
            Refusal: it asks for what the model cannot draw, or for another model.
        """
        if asked.model not in (None, "", self.name):
            message = f"The model {asked.model!r} is not served here. Take {self.name}, or leave it out."
            raise Refusal(404, message, "model", "model_not_found")
        if asked.size not in (None, "auto", self.size):
            message = f"This model draws {self.size} and no other size. Take that, or leave it out."
            raise Refusal(400, message, "size", "invalid_size")
        if asked.response_format == "url":
            message = "Pictures are not kept, so there is no url. Take b64_json."
            raise Refusal(400, message, "response_format", "unsupported_value")
        if (asked.n or 1) > self.max_count:
            most = counted(self.max_count, "picture")
            message = f"At most {most} may wait here, and n is {asked.n}. Ask for fewer at a time."
            raise Refusal(400, message, "n", "invalid_value")
        class_id = self.class_id(str(asked.prompt))
        try:
            sampling = chosen_sampling(self.model, asked.guidance_scale, asked.top_k, asked.top_p)
        except ArgumentError as error:
            raise Refusal(400, str(error), str(error).partition(" ")[0], "invalid_value") from None
        seed = secrets.randbelow(_RANDOM_SEEDS) if asked.seed is None else asked.seed
        return Generation(class_id, class_label(self.model, class_id), sampling, seed, asked.number or 0, asked.n or 1)

    def class_id(self, prompt: str) -> int:
        """The class that a text names.

        Raises:
            Refusal: it names none, or several.
        """
        try:
            found = choose_classes(self.model, [prompt])
        except UsageError as error:
            words = str(error).replace("--class", "prompt").replace("`actvar-trt classes`", "/v1/classes")
            raise Refusal(400, words, "prompt", "unknown_class") from None
        if len(found) > 1:
            message = f"prompt names {counted(len(found), 'class', 'classes')}, and a request is for one. Name one."
            raise Refusal(400, message, "prompt", "several_classes")
        return found[0]

    async def answer(self, asked: GenerationRequest, left: Callable[[], Awaitable[None]]) -> GenerationAnswer | None:
        """All pictures of a request; none if its client leaves, of which `left` is the end.

        Raises:
            Refusal: there are none.
        """
        return await self.drawn(await run_in_threadpool(self.generation, asked), left)

    def require_room(self, count: int) -> None:
        """Make sure that so many pictures may wait, before any work for them.

        Raises:
            Refusal: they may not.
        """
        try:
            self.drawer.require_room(count)
        except Refused as error:
            raise refusal_of(error) from error

    async def drawn(
        self,
        wanted: Generation,
        left: Callable[[], Awaitable[None]],
        finish: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> GenerationAnswer | None:
        """See `answer`; `finish` is what the pixels of each picture go through at last."""
        tickets = [Ticket(order, wanted.sampling) for order in wanted.orders]
        async with self._taken(tickets):
            drawn = asyncio.gather(*(asyncio.wrap_future(ticket.picture) for ticket in tickets))
            pictures = await unless(left, drawn)
        if pictures is None:
            return None
        if finish:
            pictures = [await run_in_threadpool(finish, pixels_HW3) for pixels_HW3 in pictures]
        data = [
            PictureAnswer(b64_json=await encoded(pixels_HW3), **_what(wanted, ticket.order))
            for pixels_HW3, ticket in zip(pictures, tickets, strict=True)
        ]
        return GenerationAnswer(created=int(time.time()), model=self.name, size=self.size, seed=wanted.seed, data=data)

    async def events(self, wanted: Generation) -> AsyncGenerator[PartialEvent | CompletedEvent, None]:
        """The pictures of a request as they are made: after each of its scales, and when it is done.

        Raises:
            Refusal: the request is not taken on, before the first event; or a picture cannot be drawn.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

        def put(index: int, event: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(arrived.put_nowait, (index, event))

        def ticket(index: int, order: SeededOrder) -> Ticket:
            def show(scale: int, scales: int, pixels_HW3: np.ndarray) -> None:
                put(index, (scale, scales, pixels_HW3))

            made = Ticket(order, wanted.sampling, show)
            made.picture.add_done_callback(lambda picture: put(index, picture))
            return made

        tickets = [ticket(index, order) for index, order in enumerate(wanted.orders)]
        async with self._taken(tickets):
            missing = len(tickets)
            while missing:
                index, event = await arrived.get()
                common = {**_what(wanted, tickets[index].order), "created_at": int(time.time()), "size": self.size}
                if isinstance(event, tuple):
                    scale, scales, pixels_HW3 = event
                    where = {"partial_image_index": scale - 1, "scale": scale, "scales": scales}
                    yield PartialEvent(b64_json=await encoded(pixels_HW3), **where, **common)
                else:
                    yield CompletedEvent(b64_json=await encoded(event.result()), **common)
                    missing -= 1

    @asynccontextmanager
    async def _taken(self, tickets: list[Ticket]) -> AsyncIterator[None]:
        """Tickets in the queue as long as the block lasts; the queue's errors leave as refusals."""
        try:
            self.drawer.submit(tickets)
            yield
        except (Refused, CannotDraw) as error:
            raise refusal_of(error) from error
        finally:
            self.drawer.leave(tickets)


async def unless(left: Callable[[], Awaitable[None]], work: Awaitable[_T]) -> _T | None:
    """What comes of work; none if it is dropped, because its client leaves before its end."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def encoded(pixels_HW3: np.ndarray) -> str:
    """A PNG file in base 64."""
    return b64encode(await run_in_threadpool(png, pixels_HW3)).decode()


async def sent(events: AsyncGenerator[Any, None], failed: Callable[[int], None]) -> AsyncIterator[str]:
    """Events as a server sends them. An error is the last of them, and `failed` is given its status."""
    async with aclosing(events):
        try:
            async for event in events:
                fields = event.model_dump()
                yield f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n"
        except Refusal as refusal:
            failed(refusal.status)
            yield f"event: error\ndata: {json.dumps(refusal.body)}\n\n"


def _what(wanted: Generation, order: SeededOrder) -> dict[str, Any]:
    return {"class_id": order.class_id, "label": wanted.label, "seed": order.seed, "number": order.number}
