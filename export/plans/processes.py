"""Workers that build plans (see worker.py), some at a time, and what becomes of them when one fails.

Knows processes, pipes and logs; what a job means is the worker's.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from actvar.errors import ActVARError, BundleError, EngineError
from actvar.export.plans.worker import BuildJob, BuildResult

# The parent's own search path and nothing else: with -m, a file of the current folder could hide a module.
_START = "import sys; sys.path[:] = sys.argv[1:]; from actvar.export.plans.worker import main; main()"
_LOG_LINES, _LOG_BYTES = 8, 4096


@dataclass(frozen=True)
class Task:
    """A job, the graph's name, and the files that the plan and the log go to, which must not be there."""

    graph: str
    job: BuildJob
    plan: Path
    log: Path


def run_tasks(
    tasks: Sequence[Task],
    at_once: int,
    environment: Mapping[str, str],
    progress: Callable[[str, float], None],
    finished: Callable[[Task, BuildResult | ActVARError], None],
) -> None:
    """Run a worker for every task. Where anything is raised, the others are stopped.

    Workers die with this process, however it ends.

    Args:
        tasks: in the order in which they start.
        at_once: workers that run at the same time.
        environment: of the workers.
        progress: told a graph and the share of its work that is done.
        finished: told a task, and its result or its failure, as soon as it has ended; what it raises ends the rest.
            An EngineError is half a sentence, and the task's log holds the other half.

    Raises:
        ActVARError: no worker can be started.
        OSError: no log can be written.
    """
    waiting, running = deque(tasks), set[_Worker]()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    worker = _Worker(waiting.popleft(), environment)
                    running.add(worker)
                    selector.register(worker.pipe, selectors.EVENT_READ, worker)
                for key, _ in selector.select():
                    worker = key.data
                    if worker.read(progress):
                        continue
                    selector.unregister(worker.pipe)
                    running.discard(worker)
                    finished(worker.task, worker.end())
                    progress(worker.task.graph, 1.0)
        finally:
            for worker in running:
                worker.stop()


class _Worker:
    """A process that was started for a task."""

    def __init__(self, task: Task, environment: Mapping[str, str]) -> None:
        self.task = task
        self.message: dict[str, Any] = {}
        self.rest = b""
        self.pipe, theirs = os.pipe()
        try:
            with task.log.open("xb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", _START, *sys.path],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs,),
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the parent, which stops its workers
                )
        except BaseException as error:
            os.close(self.pipe)
            if isinstance(error, OSError) and error.filename == sys.executable:
                raise ActVARError(f"{sys.executable} cannot be started to build a plan: {error.strerror}.") from None
            raise
        finally:
            os.close(theirs)
        assert self.process.stdin
        with suppress(BrokenPipeError), self.process.stdin as stdin:  # of one that has died: `end` says of what
            stdin.write(json.dumps(asdict(replace(task.job, pipe=theirs, parent=os.getpid()))).encode())

    def read(self, progress: Callable[[str, float], None]) -> bool:
        """Take what the worker has to say; False when it has closed its end."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.message = json.loads(line)
            if "share" in self.message:
                progress(self.task.graph, self.message["share"])
        return bool(data)

    def end(self) -> BuildResult | ActVARError:
        """The result of a worker that is done, or its failure."""
        code = self.process.wait()
        os.close(self.pipe)
        if "result" in self.message:
            return BuildResult(**self.message["result"])
        if "failure" in self.message and not self.message["of_engine"]:
            return BundleError(self.message["failure"])
        died = (
            f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process ended with code {code}"
        )
        return EngineError(self.message.get("failure", died).rstrip("."))

    def stop(self) -> None:
        """Kill a worker whose result nobody waits for."""
        self.process.kill()
        self.process.wait()
        os.close(self.pipe)


def last_lines(log: Path) -> str:
    """What a log ends with."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])
