"""A server as a process of its own: started, watched from outside, killed. Linux."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actvar.errors import ActVARError
from actvar.process_memory import ProcessMemory

MAIN = "import sys; from actvar.cli.main import main; sys.argv[0] = 'actvar-trt'; main()"
_START_SECONDS = 300.0
_END_SECONDS = 60.0


@dataclass
class ServerProcess:
    """A server that draws; `said` is what it has written to stderr."""

    process: Any
    url: str
    said: list[str]

    @property
    def memory(self) -> ProcessMemory:
        """Bytes, now and at most."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}
        return ProcessMemory(found["VmRSS"], found["VmHWM"])

    @property
    def handles(self) -> int:
        """Open files and sockets."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def kill(self) -> None:
        """With SIGKILL, which nothing cleans up after."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(_END_SECONDS)

    def end(self) -> int:
        """With SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return int(self.process.wait(_END_SECONDS))


def words(command: str, *arguments: object) -> list[str]:
    """A command of ours for `subprocess`."""
    return [sys.executable, "-c", MAIN, command, *map(str, arguments)]


@contextmanager
def server(options: Sequence[object], port: int = 0) -> Iterator[ServerProcess]:
    """`actvar-trt serve` without its page, from its first picture on; it is gone after the block.

    Raises:
        ActVARError: it does not start.
    """
    command = words("serve", "--no-page", "--port", port, *options)
    process: Any = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"})
    said: list[str] = []
    drawing = threading.Event()

    def read() -> None:
        for line in process.stderr:
            said.append(line)
            if "The engine draws" in line:
                drawing.set()
        drawing.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        drawing.wait(_START_SECONDS)
        found = re.search(r"http://\S+:\d+", "".join(said))
        if process.poll() is not None or not found:
            raise ActVARError(f"The server does not start: {''.join(said).strip()}")
        yield ServerProcess(process, found[0], said)
    finally:
        process.kill()
        process.wait(_END_SECONDS)
        reader.join(5)
        process.stderr.close()


def pictures_per_second(model: str, threads: int, batch: int, seconds: float, folder: Path) -> float:
    """What `actvar-trt generate` says of itself on these cores, over about so many seconds."""
    count, started = batch, 0.0
    while True:
        started = time.perf_counter()
        options = ("--model", model, "--threads", threads, "--batch-size", batch, "--class", 0, "--count", count)
        done = subprocess.run(words("generate", *options, "--out", folder), capture_output=True, text=True, check=True)
        speed = re.search(r"([0-9.]+) pictures per second", done.stderr)
        assert speed
        spent = count / float(speed[1])
        if spent >= seconds / 2 or time.perf_counter() - started > seconds:
            return float(speed[1])
        count = max(count + batch, round(count * min(seconds / spent, 50) / batch) * batch)
