"""Clients of a server that hold every picture to what it must be. Nothing is kept of pictures but their digests."""

import asyncio
import hashlib
import json
import random
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from actvar.image import png
from actvar.runtime.pictures import PictureSource, SeededOrder

DRAW = "/v1/images/generations"
_REQUEST_SECONDS = 300.0


@dataclass(frozen=True)
class Wanted:
    """A picture to ask for, and the SHA-256 of the file that must come."""

    order: SeededOrder
    digest: str

    @property
    def body(self) -> dict[str, int]:
        """What is asked."""
        return {"prompt": self.order.class_id, "seed": self.order.seed, "number": self.order.number}


def wanted(source: PictureSource, count: int) -> list[Wanted]:
    """Pictures of all sorts of classes, seeds and numbers, drawn here."""
    classes = source.model.num_classes
    orders = [SeededOrder(i * 7 % classes, i % 3, 1_000_003 * i) for i in range(count)]
    drawn = source.draw(orders, source.model.sampling)
    return [
        Wanted(order, hashlib.sha256(png(picture.pixels_HW3)).hexdigest())
        for order, picture in zip(orders, drawn, strict=True)
    ]


@dataclass
class Seen:
    """What clients have seen: seconds of each answer with a picture, statuses, wrong pictures, broken connections."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    broken: int = 0
    elapsed: float = 0.0

    def percentile(self, share: float) -> float:
        """Of the seconds."""
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    def figures(self) -> dict[str, object]:
        """As JSON."""
        return {
            "answers": {str(status): count for status, count in sorted(self.statuses.items())},
            "wrong_pictures": self.wrong,
            "broken_connections": self.broken,
            "seconds": self.elapsed,
            "pictures_per_second": len(self.seconds) / self.elapsed if self.elapsed else 0.0,
            "p50": self.percentile(0.50),
            "p95": self.percentile(0.95),
            "p99": self.percentile(0.99),
        }


async def ask(url: str, one: Wanted, seen: Seen) -> int:
    """Ask for a picture and look at it; returns the status, or 0 if there was no answer."""
    started = time.perf_counter()
    try:
        status, body = await asyncio.wait_for(_post(url, json.dumps(one.body).encode()), _REQUEST_SECONDS)
    except (OSError, asyncio.TimeoutError, ValueError, IndexError):
        seen.broken += 1
        return 0
    seen.statuses[status] += 1
    if status == 200:
        seen.seconds.append(time.perf_counter() - started)
        file = b64decode(json.loads(body)["data"][0]["b64_json"])
        seen.wrong += hashlib.sha256(file).hexdigest() != one.digest
    return status


async def _post(url: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of an answer, by a connection of its own: as little work as can be beside the server's."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        fields = ("Host: here", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
        writer.write("\r\n".join([f"POST {DRAW} HTTP/1.1", *fields, "", ""]).encode() + body)
        answer = await reader.read()
    finally:
        writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    if f"content-length: {len(rest)}".encode() not in head.lower().split(b"\r\n"):
        raise ValueError("The answer was cut off.")
    return int(head.split()[1]), rest


async def load(url: str, pictures: Sequence[Wanted], clients: int, seconds: float) -> Seen:
    """So many clients, each of which asks for its next picture when it has the last."""
    seen, started = Seen(), time.perf_counter()

    async def one_client(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() - started < seconds:
            await ask(url, rng.choice(pictures), seen)

    await asyncio.gather(*(one_client(number) for number in range(clients)))
    seen.elapsed = time.perf_counter() - started
    return seen


async def rush(url: str, pictures: Sequence[Wanted], per_second: float, total: int) -> Seen:
    """So many requests at a steady rate, whether the ones before are answered or not."""
    seen, started, rng = Seen(), time.perf_counter(), random.Random(0)

    async def one(number: int) -> None:
        await asyncio.sleep(max(0.0, started + number / per_second - time.perf_counter()))
        await ask(url, rng.choice(pictures), seen)

    await asyncio.gather(*(one(number) for number in range(total)))
    seen.elapsed = time.perf_counter() - started
    return seen


async def persistent(url: str, pictures: Sequence[Wanted], clients: int, each: int, seen: Seen) -> None:
    """Clients that ask again until they have their pictures, however often the server is gone."""

    async def one_client(number: int) -> None:
        for i in range(each):
            while await ask(url, pictures[(number * each + i) % len(pictures)], seen) != 200:
                await asyncio.sleep(0.2)

    started = time.perf_counter()
    await asyncio.gather(*(one_client(number) for number in range(clients)))
    seen.elapsed = time.perf_counter() - started
