"""What comes to a server's port that is long, slow, cut off or a stranger's; and how the process ends."""

import asyncio
import base64
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from command_line import in_process
from small_models import small_config, vivid_model

pytest.importorskip("fastapi", reason="needs the extra serve")

from served import DRAW, MAIN, Served, command, serving, until
from starlette.types import Message, Receive, Scope, Send

from actvar.export.onnx_export import export_bundle
from actvar.serve import server
from actvar.serve.limits import MAX_BODY, BodyLimits
from actvar.serve.metrics import Metrics

KEY = "a key of ours"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Served]:
    """With little patience."""
    with serving(bundle, body_seconds=0.5) as served:
        yield served


def raw(served: Served, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes, and read until the server closes, or for a second longer than it has patience."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=3) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        answer = b""
        try:
            while piece := connection.recv(1 << 16):
                answer += piece
        except OSError:
            pass
        return answer


def head(*fields: str) -> bytes:
    lines = [f"POST {DRAW} HTTP/1.1", "Host: here", "Content-Type: application/json", *fields, "", ""]
    return "\r\n".join(lines).encode()


def error_of(answer: bytes) -> tuple[int, dict[str, str]]:
    first, _, rest = answer.partition(b"\r\n")
    return int(first.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])["error"]


# ---- bodies


def test_a_long_body_is_a_413(served: Served):
    """By what its head says, and by what comes; the server does not read it to its end."""
    long = b'{"prompt": "' + b"a" * MAX_BODY + b'"}'
    answer = httpx.post(served.url + DRAW, content=long, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_long")
    status, error = error_of(raw(served, head(f"Content-Length: {10**12}")))
    assert (status, error["code"]) == (413, "body_too_long")
    chunk = b"1000\r\n" + b"a" * 0x1000 + b"\r\n"
    status, error = error_of(raw(served, head("Transfer-Encoding: chunked"), *[chunk] * 20))
    assert (status, error["code"]) == (413, "body_too_long")


def test_a_body_of_chunks_is_read(served: Served):
    body = b'{"prompt": "1"}'
    chunks = b"".join(b"1\r\n%c\r\n" % sign for sign in body) + b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(head("Transfer-Encoding: chunked", "Connection: close") + chunks)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_slow_body_is_a_408(served: Served):
    """However steadily it drips."""
    started = time.monotonic()
    status, error = error_of(raw(served, head("Content-Length: 100"), *[b"a"] * 9, pause=0.1))
    assert (status, error["code"]) == (408, "body_timeout")
    assert time.monotonic() - started < 3


def test_bodies_have_a_bound_together():
    """Each may be long enough for a picture, and whoever sends many at a time would have the memory of them all."""
    answers: list[int] = []

    async def scenario() -> None:
        go = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            assert len((await receive())["body"]) == 40
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def answered() -> None:
            parts = iter((b"x" * 20, b"x" * 20))

            async def receive() -> Message:
                return {"type": "http.request", "body": next(parts), "more_body": parts.__length_hint__() > 0}

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    answers.append(message["status"])

            await limits({"type": "http", "path": "/v1/images/edits", "headers": []}, receive, send)

        limits = BodyLimits(app, Metrics(), all_bodies=70)
        first = asyncio.create_task(answered())
        await asyncio.sleep(0)
        while limits._room != 30:
            await asyncio.sleep(0.001)
        await answered()
        assert answers == [429] and limits._room == 30
        go.set()
        await first
        await answered()
        assert limits._room == 70

    asyncio.run(scenario())
    assert answers == [429, 200, 200]


def test_a_head_that_does_not_come_is_hung_up_on(served: Served, monkeypatch: pytest.MonkeyPatch):
    """On a new connection, and on one that has had an answer; what takes long to draw is waited for."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.4)
    for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"):
        started = time.monotonic()
        answer = raw(served, first + b"GET /healthz HTTP/1.1\r\n", *[b"X: y\r\n"] * 9, pause=0.1)
        assert answer.count(b"HTTP/1.1 200") == bool(first)
        assert time.monotonic() - started < 2.5
    connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
    for pause in (0.8, 0):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        connection.auto_open = False  # the same connection, or none
        time.sleep(pause)
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00\xff" * 100,
        b"GET",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST " + DRAW.encode() + b" HTTP/1.1\r\nHost: here\r\nContent-Length: x\r\n\r\n",
        b"POST " + DRAW.encode() + b" HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: here\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",  # more than one read brings
        head("Content-Length: 100") + b'{"pro',
    ],
    ids=lambda sent: str(sent[:30]),
)
def test_what_is_no_request_leaves_the_server_as_it_was(served: Served, sent: bytes, capfd):
    """A client's fault or a closed socket: no traceback, nothing of the 5xx."""
    answer = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        connection.sendall(sent)  # which the server may end, or not take
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1 << 16) if sent else b""
    assert answer == b"" or answer.split()[1].startswith(b"4")
    assert served.get("/readyz").status_code == 200
    assert "Traceback" not in capfd.readouterr().err


# ---- the key


def test_with_a_key_nobody_else_comes_in(bundle: Path):
    """As a bearer's, or as a password, which a browser asks for; whoever watches over the server needs none."""
    with serving(bundle, api_key=KEY) as served:
        password = base64.b64encode(f"anybody:{KEY}".encode()).decode()
        for right in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {password}"):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                assert served.get(path, headers={"Authorization": right}).status_code == 200
            answer = httpx.post(served.url + DRAW, json={"prompt": "1"}, headers={"Authorization": right}, timeout=60)
            assert answer.status_code == 200
        wrong = ["", "Bearer", "Bearer a key of our", f"Bearer {KEY}s", KEY, "Basic !!", f"Basic {KEY}", "Bearer \xe4"]
        for sent in wrong:
            for path in ("/v1/models", "/v1/nothing", "/metrics", "/openapi.json"):
                answer = served.get(path, headers={"Authorization": sent.encode("latin-1")})
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
                assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert httpx.post(served.url + DRAW, json={"prompt": "1"}).status_code == 401
        assert served.get("/healthz").status_code == served.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in, so a key is needed"),
        (["--host", "::"], "a key is needed"),
        (["--host", "example.org"], "a key is needed"),
        (["--host", "0.0.0.0", "--api-key-file", "short"], "8 printable ASCII signs or more"),
        (["--api-key-file", "empty"], "8 printable ASCII signs or more"),
        (["--api-key-file", "none"], "none cannot be read"),
        (["--max-batch", "0"], "--max-batch"),
        (["--grace", "nan"], "--grace"),
        (["--port", "70000"], "--port"),
    ],
)
def test_a_server_that_lets_others_in_needs_a_key(monkeypatch, capsys, tmp_path: Path, words, message: str):
    """Nothing is opened before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACTVAR_API_KEY", raising=False)
    (tmp_path / "short").write_text("secret\n")
    (tmp_path / "empty").write_text("\n")
    code, out, err = in_process(monkeypatch, capsys)("serve", "--model", "nothing", *words)
    assert code in (1, 2) and out == "" and message in err and "secret" not in err


def test_a_port_that_is_taken_is_said_before_a_model_is_opened(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = in_process(monkeypatch, capsys)("serve", "--model", "nothing", "--port", port)
    assert code == 1 and f"127.0.0.1:{port} cannot be listened on" in err


# ---- the process

SLOW = """
import sys, time
from actvar.runtime.backends.buffered import BufferedEngine
launch, seen = BufferedEngine.launch, []
def slow(*given):
    seen.append(None)
    if len(seen) > 1:
        time.sleep(float(sys.argv[1]))
    return launch(*given)
BufferedEngine.launch = slow
"""


def slow_by(seconds: float) -> str:
    """The command with an engine that takes so long for each batch but its first."""
    return SLOW.replace("sys.argv[1]", repr(seconds)) + MAIN


def test_sigterm_lets_what_was_taken_on_be_finished(bundle: Path):
    """Pictures that are drawn, and those that wait; nobody new; and 0."""
    with (
        command("--model", bundle, "--max-batch", 1, code=slow_by(0.7)) as served,
        ThreadPoolExecutor(3) as clients,
    ):
        asked = [clients.submit(httpx.post, served.url + DRAW, json={"prompt": str(i)}, timeout=60) for i in range(3)]
        until(lambda: "actvar_queue_length 2" in httpx.get(served.url + "/metrics").text)
        served.send_signal(signal.SIGTERM)
        until(lambda: any("Stopping" in line for line in served.said))
        time.sleep(0.3)
        with pytest.raises(httpx.HTTPError):
            httpx.get(served.url + "/healthz")
        assert [answer.result(60).status_code for answer in asked] == [200] * 3
        assert served.wait(30) == 0
    assert "Stopped" in served.said[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_rests_ends_at_once(bundle: Path, number: int):
    with command("--model", bundle) as served:
        httpx.get(served.url + "/healthz")
        started = time.monotonic()
        served.send_signal(number)
        assert served.wait(30) == 0
        assert time.monotonic() - started < 10


def test_an_engine_that_does_not_end_is_left_within_the_grace(bundle: Path):
    """An orchestrator kills what is not gone in time; this one is gone before, with 0."""
    with (
        command("--model", bundle, "--grace", 2, code=slow_by(300)) as served,
        ThreadPoolExecutor(1) as clients,
    ):
        asked = clients.submit(httpx.post, served.url + DRAW, json={"prompt": "1"}, timeout=60)
        until(lambda: "actvar_queue_length 0" in httpx.get(served.url + "/metrics").text)
        time.sleep(0.3)
        started = time.monotonic()
        served.send_signal(signal.SIGTERM)
        assert served.wait(30) == 0
        assert time.monotonic() - started < 5
        with suppress(httpx.HTTPError):  # the connection was closed
            assert asked.result(60).status_code >= 500
    assert "still drawing" in "".join(served.said)


def test_the_key_comes_from_the_environment_and_is_not_shown(bundle: Path):
    with command("--model", bundle, environment={"ACTVAR_API_KEY": KEY}) as served:
        assert httpx.get(served.url + "/v1/models").status_code == 401
        assert httpx.get(served.url + "/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        shown = Path(f"/proc/{served.pid}/cmdline").read_bytes().decode() + "".join(served.said)
        assert KEY not in shown


def test_without_the_extra_the_message_names_it(bundle: Path):
    """A package is missing: a sentence, and how to install it."""
    code = (
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'fastapi':\n"
        "            raise ModuleNotFoundError(f'no {name}', name=name)\n"
        "sys.meta_path.insert(0, Refused())\n" + MAIN
    )
    words = [sys.executable, "-c", code, "serve", "--model", str(bundle)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "actvar-trt[serve]" in done.stderr and "Traceback" not in done.stderr
