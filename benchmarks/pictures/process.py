"""A contestant of a benchmark as a process of its own, seen from the one that gives the commands.

A process each, so that allocators, thread pools and whatever a library does to its process disturb nobody else. They
speak in lines of JSON: see `worker.py`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from actvar.benchmarks.pictures.graph_times import Lap
from actvar.benchmarks.pictures.measure import Contestant, Drawn, Opening
from actvar.errors import ActVARError
from actvar.runtime.backends.protocol import Device

_PAUSE_SECONDS = 0.05  # until the threads of whoever had the turn before have gone to sleep
_PATIENCE_SECONDS = 10  # with a process that is to end


@dataclass(frozen=True)
class Setting:
    """What is the same for all contestants: threads of the CPU, the device, the largest batch, and a scratch folder."""

    threads: int
    device: Device
    largest_batch: int
    scratch: Path


@contextmanager
def started(contestant: Contestant, setting: Setting) -> Iterator["Worker"]:
    """A contestant in a process of its own, which ends with the block.

    Raises:
        ActVARError: it cannot be opened.
    """
    command = [sys.executable, "-m", "actvar.benchmarks.pictures.worker", json.dumps(_order(contestant, setting))]
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=_environment(setting)
        )
        try:
            yield Worker(contestant.name, process, said, began)
        finally:
            _end(process)


def command_seconds(contestant: Contestant, setting: Setting) -> float:
    """Seconds of `actvar-trt generate` for one picture of a bundle, from the process's start to its end.

    Raises:
        ActVARError: it failed.
    """
    options = ["--class", "0", "--model", str(contestant.path), "--backend", contestant.backend]
    options += ["--device", setting.device, "--threads", str(setting.threads), "--out", str(setting.scratch / "0.png")]
    command = [sys.executable, "-c", "from actvar.cli.main import main; main()", "generate", *options]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(setting), check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise ActVARError(f"{contestant.name} cannot draw by the command line: {done.stderr.strip()}")
    return seconds


class Worker:
    """See `actvar.benchmarks.pictures.measure.Worker`.

    Args:
        name: of the contestant, for messages.
        process: reads commands and writes answers.
        said: a file with everything else that it says.
        began: when it was started (`time.perf_counter`, which all processes share).
    """

    def __init__(self, name: str, process: "subprocess.Popen[str]", said: IO[bytes], began: float):
        self._name, self._process, self._said, self._began = name, process, said, began
        self._opening: Opening | None = None
        self._drawn = 0

    @property
    def opening(self) -> Opening:
        """See `Worker`; waits for it.

        Raises:
            ActVARError: it cannot be opened.
        """
        if self._opening is None:
            answer = self._answer()
            self._opening = Opening(*(answer[name] - self._began for name in ("imported", "opened")))
        return self._opening

    def draw(self, pictures: int, looked_into: bool) -> Drawn:
        """See `Worker`."""
        if self._drawn:
            time.sleep(_PAUSE_SECONDS)
        assert self.opening
        command = {"first": self._drawn, "pictures": pictures, "looked_into": looked_into}
        self._drawn += pictures
        answer = self._asked(command)
        laps = (Lap(graph, began - self._began, ended - self._began) for graph, began, ended in answer["laps"])
        began, ended = answer["began"] - self._began, answer["ended"] - self._began
        return Drawn(began, ended, answer["peak_bytes"], tuple(laps))

    def multiply(self) -> float | None:
        """See `Worker`."""
        return self._asked({})["product"]

    def _asked(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended; the missing answer tells
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            words = self._said.read().decode(errors="replace").strip().splitlines()
            reason = words[-1] if words else f"its process ended with the code {self._process.wait()}"
            raise ActVARError(f"{self._name} cannot draw: {reason}. Leave it out, or take fewer pictures at a time.")
        answer = json.loads(line)
        if "error" in answer:
            raise ActVARError(f"{self._name} cannot draw: {answer['error']}")
        return answer


def _order(contestant: Contestant, setting: Setting) -> dict[str, Any]:
    """What a worker is to be."""
    return {
        "kind": contestant.kind,
        "path": str(contestant.path),
        "model": contestant.model.to_dict(),
        "precision": contestant.precision,
        "backend": contestant.backend,
        "threads": setting.threads,
        "device": setting.device,
        "largest_batch": setting.largest_batch,
    }


def _environment(setting: Setting) -> dict[str, str]:
    """The user's, with the threads for libraries that read them there, and no GPU where none is asked for.

    What torch.compile makes is kept for this run alone.
    """
    own = {
        "OMP_NUM_THREADS": str(setting.threads),
        "MKL_NUM_THREADS": str(setting.threads),
        "TORCHINDUCTOR_CACHE_DIR": str(setting.scratch / "inductor"),
    }
    return {**os.environ, **own, **({"CUDA_VISIBLE_DEVICES": ""} if setting.device == "cpu" else {})}


def _end(process: "subprocess.Popen[str]") -> None:
    """It ends by itself when there are no more commands; while it draws, it is ended."""
    assert process.stdin and process.stdout
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
