"""The Hugging Face Hub as far as a download needs it: repositories in memory, served over HTTP on this machine.

Counts which files are asked for. Answers as huggingface_hub expects it of the real one: its API's fields, the headers
that name commit and hash, and its codes of errors.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class HostHub:
    """Repositories by name, each of one commit, which is the branch main and the tags that are given."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.tags = {"main", "v1"}
        self.fetched: list[str] = []
        self.endpoint = ""

    def add(self, name: str, folder: Path) -> None:
        """All files below a folder."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        self.repositories[name] = {place: path.read_bytes() for place, path in files.items()}

    def environment(self, cache: Path) -> dict[str, str]:
        """What sends huggingface_hub here."""
        where = {"HF_ENDPOINT": self.endpoint, "HF_HUB_CACHE": str(cache)}
        return {**where, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serving(hub: HostHub) -> Iterator[HostHub]:
    """While the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "models"]:
                self._tell(*self._api("/".join(parts[2:4]), parts[4:]))
                return
            name, file = "/".join(parts[:2]), parts[4:]  # behind user/repo/resolve/revision
            content = hub.repositories.get(name, {}).get("/".join(file))
            if content is None or parts[2] != "resolve" or parts[3] not in {COMMIT, *hub.tags}:
                self._tell(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            if with_body:
                hub.fetched.append("/".join(file))
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            self._send(200, content, headers, with_body)

        def _api(self, name: str, rest: list[str]) -> tuple:
            if name in hub.gated:
                return 403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"}
            if name not in hub.repositories:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            if rest and rest[1] not in {COMMIT, *hub.tags}:
                return 404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"}
            files = hub.repositories[name]
            if rest[:1] == ["tree"]:
                entries = [
                    {"type": "file", "path": place, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for place, content in files.items()
                ]
                return 200, entries, {}
            siblings = [{"rfilename": place} for place in files]
            return 200, {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}, {}

        def _tell(self, code: int, said: object, headers: dict[str, str]) -> None:
            self._send(code, json.dumps(said).encode(), {"Content-Type": "application/json", **headers}, True)

        def _send(self, code: int, content: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(code)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            if with_body and self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
