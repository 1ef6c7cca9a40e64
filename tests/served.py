"""A server for tests: in a thread of this process, where its parts can be reached, or as the command in its own."""

import base64
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from actvar.runtime.api import Pipeline
from actvar.serve import create_app
from actvar.serve.server import configured, listen

MAIN = "import sys; from actvar.cli.main import main; sys.argv[0] = 'actvar-trt'; main()"
DRAW = "/v1/images/generations"


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    app: FastAPI

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(self, timeout: float = 60, **fields: Any) -> httpx.Response:
        """Ask for pictures."""
        return httpx.post(self.url + DRAW, json=fields, timeout=timeout)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **more)

    def figures(self) -> dict[str, float]:
        """What /metrics says, by name and labels."""
        lines = self.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}


def files(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(picture["b64_json"]) for picture in answer.json()["data"]]


def refused(answer: httpx.Response, status: int, param: str | None, code: str | None) -> str:
    """The message of an error in OpenAI's form."""
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    return error["message"]


@contextmanager
def serving(bundle: Path, ready: bool = True, **options: Any) -> Iterator[Served]:
    """A server of a bundle in a thread, with options of `create_app`."""
    with Pipeline.from_bundle(bundle, threads=1, progress_bar=False) as pipeline:
        app, listening = create_app(pipeline, **options), listen("127.0.0.1", 0)
        server = uvicorn.Server(configured(app, grace=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        served = Served(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
        try:
            until(lambda: server.started)
            if ready:
                until(lambda: served.get("/readyz").status_code == 200)
            yield served
        finally:
            server.should_exit = True
            thread.join(60)


@contextmanager
def command(
    *arguments: object, code: str = MAIN, environment: dict[str, str] | None = None, page: bool = False
) -> Iterator[Any]:
    """`actvar-trt serve` on a free port, as soon as it draws: the process, and its address as `url`."""
    words = [sys.executable, "-c", code, "serve", "--port", "0", "--threads", "1", *map(str, arguments)]
    words += [] if page else ["--no-page"]
    env = {**os.environ, **(environment or {}), "COLUMNS": "300"}
    process: Any = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    process.said = []
    try:
        for line in process.stderr:
            process.said.append(line)
            if found := re.search(r"http://\S+:\d+", line):
                process.url = found[0]
            if "The engine draws" in line:
                break
        else:
            raise AssertionError("".join(process.said))
        reader = threading.Thread(target=lambda: process.said.extend(process.stderr), daemon=True)
        reader.start()
        yield process
        reader.join(5)
    finally:
        process.kill()
        process.wait(60)
        process.stderr.close()


def until(holds: Any, seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)
