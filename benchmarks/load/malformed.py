"""Requests that are none: bad JSON, numbers that are none or too large, wrong types, slow bodies, closed sockets."""

import json
import random
import socket
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from actvar.benchmarks.load.clients import DRAW

CLOSED = 0
"""In place of a status: the connection was closed without an answer."""

_ODD: tuple[Any, ...] = (
    *(None, True, [], {}, [[]], "", "x" * 300, "\u202e\u0000", "all", "0-9", "-1", "1e5", "NaN"),
    *(-1, 2**64, 10**40, 1.5, -0.5, 1e308, float("nan"), float("inf"), float("-inf")),
)
_FIELDS = ("prompt", "n", "seed", "number", "guidance_scale", "top_k", "top_p", "size", "model", "stream", "else")
_SLOW_SECONDS = 0.2


def malformed(url: str, count: int) -> Counter[int]:
    """Send so many, and count the statuses of the answers."""
    rng, statuses = random.Random(0), Counter[int]()
    for number in range(count):
        statuses[_sent(url, number, rng)] += 1
    return statuses


def _sent(url: str, number: int, rng: random.Random) -> int:
    """The status of the answer to one of them."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port or 80), timeout=30) as connection:
        try:
            if number % 10 == 0:
                return _broken(connection, rng)
            body = _body(rng)
            connection.sendall(_head(len(body)))
            if number % 50 == 1:
                time.sleep(_SLOW_SECONDS)
            connection.sendall(body)
            return _status(connection)
        except OSError:
            return CLOSED


def _body(rng: random.Random) -> bytes:
    """A body that cannot be used."""
    fields: dict[str, Any] = {"prompt": "1", "seed": 1}
    kind = rng.randrange(4)
    if kind == 0:  # what is no JSON at all
        text = json.dumps(fields).encode()
        return rng.choice([text[: rng.randrange(len(text))], rng.randbytes(50), b"[" * 5000, b"\xff" + text])
    if kind == 1:  # too long
        return json.dumps({**fields, "user": "a" * 70_000}).encode()
    fields["unknown"] = 1  # so that it cannot be right by chance
    for name in rng.sample(_FIELDS, 3):
        fields[name] = rng.choice(_ODD)
    return json.dumps(fields).encode()


def _broken(connection: socket.socket, rng: random.Random) -> int:
    """What ends in the middle."""
    head = _head(1000)
    connection.sendall(
        rng.choice([b"", b"GET", head[: rng.randrange(1, len(head))], head + b'{"prompt"', b"\x00" * 99])
    )
    if rng.random() < 0.5:
        return CLOSED
    connection.shutdown(socket.SHUT_WR)
    return _status(connection)


def _head(length: int) -> bytes:
    lines = [f"POST {DRAW} HTTP/1.1", "Host: here", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


def _status(connection: socket.socket) -> int:
    answer = connection.recv(1 << 16)
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else CLOSED
