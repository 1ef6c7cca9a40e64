"""A server under load: every picture must be right, memory flat, overload answered, a killed server no loss.

    python benchmarks/serving.py --minutes 10 --json benchmarks/results/serving-mini.json

One after another, all on this machine's loopback: `actvar-trt generate`, for its speed; 64 clients, each of which asks
for its next picture when it has the last; `generate` once more; 1,000 requests that are none; requests at four times
the speed that was measured; and clients that ask again until they have their pictures, while the server is killed with
SIGKILL and started again. Every picture's file is held against the one that this process has drawn by itself.

Exit code 1 if a picture differs, a request for one fails, memory or open files grow by more than is allowed after the
first fifth of the load, a broken request is answered with a 5xx, or the server does not recover. Linux only.

Before the load every client has two pictures: what a model was read into when it was loaded lies free in the heap,
without memory behind it, until a batch happens to be given a part of it. So resident memory takes steps at first, while
what is in use does not grow.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actvar import Pipeline
from actvar.benchmarks.command import end_with
from actvar.benchmarks.load.clients import Seen, Wanted, load, persistent, rush, wanted
from actvar.benchmarks.load.malformed import malformed
from actvar.benchmarks.load.process import ServerProcess, pictures_per_second, server
from actvar.console import say
from actvar.errors import UsageError
from actvar.provenance import commit, typed
from actvar.reports import check_json_option, write_report
from actvar.runtime.machine import this_machine, usable_cores

FORMAT, VERSION = "actvar-serving", 1
MEGABYTE = 1e6
WARMING = 2  # pictures of each client, before the load
SETTLED = 0.2  # share of the load after which memory and handles may not grow
TIMES = 4  # of the capacity, in the overload
QUEUE = 64


@dataclass
class Watch:
    """Memory and open files of a server, looked at again and again."""

    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)

    def look(self, process: ServerProcess, at: float) -> None:
        """Once more."""
        self.seconds.append(at)
        self.resident.append(process.memory.resident)
        self.handles.append(process.handles)

    def grown(self) -> tuple[int, int]:
        """Bytes and handles by which the greatest figure of the end lies above that of the settled beginning."""
        first = max(2, round(SETTLED * len(self.seconds)))
        resident, handles = (max(x[first:], default=0) - max(x[:first]) for x in (self.resident, self.handles))
        return resident, handles


@dataclass(frozen=True)
class Bench:
    """What is run."""

    model: str
    threads: int
    max_batch: int
    clients: int
    seconds: float
    broken: int
    allowed_bytes: int
    pictures: list[Wanted]

    @property
    def allowed_handles(self) -> int:
        """By how many more the sockets of clients may happen to be open at a time."""
        return max(4, self.clients // 4)

    @property
    def options(self) -> list[object]:
        """Of the server."""
        return [
            *("--model", self.model, "--threads", self.threads),
            *("--max-batch", self.max_batch, "--max-queue", QUEUE),
        ]

    def speed(self) -> float:
        """Pictures per second of `generate`."""
        with tempfile.TemporaryDirectory() as folder:
            return pictures_per_second(
                self.model, self.threads, self.max_batch, max(2.0, self.seconds / 10), Path(folder)
            )

    def load(self, process: ServerProcess) -> tuple[Seen, Watch]:
        """All clients at once, and what becomes of the process meanwhile."""
        watch, over, started = Watch(), threading.Event(), time.perf_counter()

        def look() -> None:
            while not over.wait(max(0.1, self.seconds / 100)):
                watch.look(process, time.perf_counter() - started)

        watching = threading.Thread(target=look)
        watching.start()
        try:
            return asyncio.run(load(process.url, self.pictures, self.clients, self.seconds)), watch
        finally:
            over.set()
            watching.join()

    def survive(self, process: ServerProcess, again: Callable[[int], Any]) -> tuple[Seen, int]:
        """Kill the server among clients that ask again, start it at the same port; returns its last exit code."""
        seen, each = Seen(), max(2, round(self.seconds / 60))

        def clients() -> None:
            asyncio.run(persistent(process.url, self.pictures, 16, each, seen))

        asking = threading.Thread(target=clients)
        asking.start()
        while len(seen.seconds) < 4:
            time.sleep(0.01)
        process.kill()
        with again(int(process.url.rpartition(":")[2])) as second:
            asking.join()
            return seen, second.end()


def measure(bench: Bench) -> tuple[dict[str, Any], list[str]]:
    """Everything, and what must not be, in words."""
    failures: list[str] = []
    before = bench.speed()
    say(f"generate: {before:.2f} pictures per second.")
    with server(bench.options) as process:
        asyncio.run(persistent(process.url, bench.pictures, bench.clients, WARMING, Seen()))
        seen, watch = bench.load(process)
        alone = bench.speed()
        grown = watch.grown()
        speed = len(seen.seconds) / seen.elapsed
        say(f"{bench.clients} clients: {speed:.2f} pictures per second, p95 {seen.percentile(0.95):.2f} s.")
        if seen.wrong or seen.broken or set(seen.statuses) != {200}:
            failures.append(f"Under load: {seen.wrong} wrong pictures, {seen.broken} broken, {dict(seen.statuses)}.")
        if grown[0] > bench.allowed_bytes or grown[1] > bench.allowed_handles:
            failures.append(f"Under load the server grew by {grown[0] / MEGABYTE:.1f} MB and {grown[1]} open files.")

        statuses = malformed(process.url, bench.broken)
        say(f"{bench.broken} requests that are none: {dict(statuses)}.")
        if bad := {status: count for status, count in statuses.items() if not (status == 0 or 400 <= status < 500)}:
            failures.append(f"Requests that are none were answered with {bad}.")

        total = round(TIMES * speed * max(2.0, bench.seconds / 10)) + 2 * QUEUE
        over = asyncio.run(rush(process.url, bench.pictures, TIMES * speed, total))
        bound = 2 * (QUEUE + 2 * bench.max_batch) / speed
        say(f"{TIMES} times as much: {dict(over.statuses)}, p95 {over.percentile(0.95):.2f} s, bound {bound:.2f} s.")
        if over.wrong or over.broken or set(over.statuses) - {200, 429} or over.percentile(0.95) > bound:
            failures.append(f"Overloaded: {over.figures()}.")
        if not over.statuses[429]:
            failures.append("The overload was none: nothing was refused.")
        after = asyncio.run(rush(process.url, bench.pictures, 1.0, 1))
        if set(after.statuses) != {200} or after.percentile(1.0) > bound / 2:
            failures.append(f"After the overload a request was answered so: {after.figures()}.")

        told = "".join(process.said)
        killed, code = bench.survive(process, lambda port: server(bench.options, port))
        say(f"Killed and started again: {dict(killed.statuses)}, {killed.broken} connections broken.")
        if killed.wrong or not killed.broken or code:
            failures.append(f"Killed: {killed.wrong} wrong pictures, {killed.broken} broken, exit code {code}.")
        if "Traceback" in told:
            failures.append("The server's log has a traceback.")
    figures = {
        "generate_pictures_per_second": [before, alone],
        "share_of_generate": speed / max(before, alone),
        "load": seen.figures(),
        "memory": {"resident": watch.resident, "handles": watch.handles, "seconds": watch.seconds, "grown": grown},
        "malformed": {str(status): count for status, count in sorted(statuses.items())},
        "overload": {**over.figures(), "bound": bound, "first_after": after.percentile(1.0)},
        "killed": killed.figures(),
        "failures": failures,
    }
    return figures, failures


def parsed() -> argparse.Namespace:
    """The options.

    Raises:
        UsageError: a number makes no sense.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="actvar-mini")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the load; all else takes about as long again")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 is one for each core")
    parser.add_argument("--pictures", type=int, default=200, help="different ones, which are asked for in turn")
    parser.add_argument("--broken", type=int, default=1000, help="requests that are none")
    parser.add_argument("--allowed-mb", type=float, default=16.0, help="what memory may grow by")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    if min(given.clients, given.max_batch, given.pictures, given.broken) < 1 or not 0 < given.minutes < 10_000:
        raise UsageError("All numbers must be 1 or more, and --minutes above 0.")
    if given.clients > QUEUE:
        raise UsageError(f"The server's queue has room for {QUEUE}. Take no more --clients.")
    check_json_option(given.json)
    return given


def main() -> int:
    """Measure, tell, write; returns the exit code."""
    given = parsed()
    machine = this_machine()
    with Pipeline.from_pretrained(given.model, threads=given.threads, batch_size=given.max_batch) as pipe:
        pictures = wanted(pipe.source, given.pictures)
    bench = Bench(
        given.model,
        given.threads,
        given.max_batch,
        given.clients,
        given.minutes * 60,
        given.broken,
        round(given.allowed_mb * MEGABYTE),
        pictures,
    )
    figures, failures = measure(bench)
    print(f"share of generate's speed: {figures['share_of_generate']:.3f}")
    for failure in failures:
        print(f"FAILED: {failure}")
    if given.json:
        content = {
            **{"format": FORMAT, "version": VERSION, "command": typed(["python", *sys.argv])},
            **commit(),
            **{"machine": asdict(machine), "threads": given.threads or usable_cores()},
            **{"clients": given.clients, "max_batch": given.max_batch, "max_queue": QUEUE},
            **{"different_pictures": given.pictures, "allowed_bytes": bench.allowed_bytes},
            **{"warmed_with": WARMING * given.clients},
            **figures,
        }
        write_report(given.json, json.dumps(content, indent=1, allow_nan=False) + "\n", "--json")
    return 1 if failures else 0


if __name__ == "__main__":
    end_with(main)
