"""What stands before the app: no body is long or slow, and nobody without the key comes in where one is set.

A body is read whole, within its limits, before anything else sees the request.
"""

import asyncio
import hmac
from base64 import b64decode
from binascii import Error
from contextlib import nullcontext
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actvar.serve.metrics import Metrics
from actvar.serve.refusals import Refusal

MAX_BODY = 64 * 1024
"""Bytes."""
LONG_BODIES = {"/v1/images/edits": 16 << 20}
"""Bytes, where pictures are sent."""
ALL_BODIES = 256 << 20
"""Bytes, of all requests that are being answered."""
BODY_SECONDS = 10.0
"""In which a body must have arrived."""
OPEN_TO_ALL = ("/healthz", "/readyz")
"""What whoever watches the server may ask without a key: it says nothing but yes or no."""


class BodyLimits:
    """Answers 413 for a body that is too long, 408 for one that does not come, and 429 for one too many at a time.

    Args:
        app: what is given the others.
        metrics: are told of errors.
        max_body: bytes.
        seconds: for the whole body.
        all_bodies: bytes that the bodies of all requests may have that are being answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_body: int = MAX_BODY,
        seconds: float = BODY_SECONDS,
        all_bodies: int = ALL_BODIES,
    ) -> None:
        self._app, self._metrics, self._max_body, self._seconds = app, metrics, max_body, seconds
        self._room = all_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body()
        try:
            await self._answered(scope, receive, send, body)
        finally:
            self._room += len(body.read)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, body: "_Body") -> None:
        """Read the body, and have the app answer."""
        try:
            is_whole = await asyncio.wait_for(self._read(scope, receive, body), self._seconds)
        except asyncio.TimeoutError:
            message = f"The body did not arrive within {self._seconds:g} s. Send it again."
            await refuse(Refusal(408, message, code="body_timeout"), self._metrics, scope, receive, send)
            return
        except Refusal as refusal:
            await refuse(refusal, self._metrics, scope, receive, send)
            return
        if not is_whole:  # the client has left
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body.read, "more_body": False}

        with self._metrics.answering() if scope["path"].startswith("/v1/") else nullcontext():
            await self._app(scope, again, send)

    async def _read(self, scope: Scope, receive: Receive, body: "_Body") -> bool:
        """Read a body; False if its client leaves meanwhile."""
        most = LONG_BODIES.get(scope["path"], self._max_body)
        too_long = Refusal(413, f"A body may have {most} bytes, and this one has more.", code="body_too_long")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > most:
            raise too_long
        read, more = bytearray(), True
        body.read = read
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            if len(read) + len(part) > most:
                raise too_long
            if len(part) > self._room:
                crowded = "Too many pictures are being sent. Ask again later."
                raise Refusal(429, crowded, code="too_many_bodies", headers={"Retry-After": "1"})
            self._room -= len(part)
            read += part
            more = message.get("more_body", False)
        body.read = bytes(read)
        return True


@dataclass
class _Body:
    """What has been read of a body, once: its room is given back when its request has been answered."""

    read: bytes | bytearray = b""


class KeyRequired:
    """Answers 401 to whoever does not name the key, as a bearer's or as a password, which browsers ask for.

    Args:
        app: what is given the others.
        metrics: are told of errors.
        key: not empty.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, key: str) -> None:
        self._app, self._metrics, self._key = app, metrics, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_TO_ALL or self._knows(scope):
            await self._app(scope, receive, send)
            return
        headers = {"WWW-Authenticate": 'Basic realm="actvar-trt", charset="UTF-8"'}
        refusal = Refusal(401, "A key is needed here. Send it as a bearer's.", code="invalid_api_key", headers=headers)
        await refuse(refusal, self._metrics, scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        """Whether the key is there; compared in a time that says nothing about it."""
        kind, _, value = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic":
            try:
                value = b64decode(value, validate=True).partition(b":")[2]
            except (Error, ValueError):
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(value.strip(), self._key)


async def refuse(refusal: Refusal, metrics: Metrics, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error; what else comes on this connection is not read."""
    metrics.error_answered(refusal.status)
    answer = refusal.answer()
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)
