"""The server: uvicorn, on one address, from its start to a quiet end.

SIGTERM and Ctrl-C stop it: no connection is taken any more, what was taken on is drawn and sent, and the process may
leave with 0. After `grace` seconds it leaves whatever is not done.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from actvar.console import say
from actvar.errors import ActVARError
from actvar.serve.batching import Drawer
from actvar.serve.metrics import Metrics

HEAD_SECONDS = 10.0
"""In which the head of a request must arrive."""

_BACKLOG = 512
_LOOK_SECONDS = 0.2


class _Protocol(H11Protocol):
    """Hangs up where the head of a request does not come; its body has `actvar.serve.limits`."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()
        elif self._patience is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._patience:
            self._patience.cancel()
        self._patience = None


class _Server(uvicorn.Server):
    """Leaves the end of the process to whoever started it: uvicorn's own would raise the signal once more."""

    def __init__(self, config: uvicorn.Config, drawer: Drawer, metrics: Metrics, grace: float) -> None:
        super().__init__(config)
        self._drawer, self._metrics, self._grace = drawer, metrics, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own, but for connections on which nothing is under way: an open page has one for ever."""
        ending = asyncio.ensure_future(self._end_when_idle())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_when_idle(self) -> None:
        while self._metrics.under_way or not self._drawer.idle:
            await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.sleep(_LOOK_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # whoever asks again gets it at once
        say("Stopping: what was taken on is drawn first.")
        self._drawer.end_within(self._grace)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections, before a model is opened for nothing.

    Raises:
        ActVARError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ActVARError(f"{host}:{port} cannot be listened on: {reason}. Name another --host or --port.") from None


def configured(app: FastAPI, grace: float) -> uvicorn.Config:
    """How an app is served."""
    return uvicorn.Config(
        app,
        loop="asyncio",  # uvicorn would take another one where it happens to be installed
        http=_Protocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(grace)),
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=32 * 1024,
    )


def run(app: FastAPI, listening: socket.socket, grace: float) -> None:
    """Serve until a signal comes. When the engine does not end within its time, the process is left here, with 0."""
    drawer: Drawer = app.state.drawer
    _Server(configured(app, grace), drawer, app.state.metrics, grace).run(sockets=[listening])
    if not drawer.close(grace):  # which counts from the signal
        say("The engine is still drawing; its batch is left.")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a thread in the middle of an engine's library would end the process with a crash
