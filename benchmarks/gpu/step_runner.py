"""Steps one after another, each case of a step in a process of its own, whatever becomes of the others.

Knows order, time limits and what is written when; what a case does is `child.py`'s and its module's. One JSON holds all
that was found, and is rewritten after each case, so that a machine that is taken away takes only what was under way.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from actvar.benchmarks.gpu.case import SUMMARY_FILE, records_in
from actvar.files import written_whole
from actvar.provenance import typed

DONE, SKIPPED, FAILED, OUT_OF_TIME = "done", "skipped", "failed", "out of time"
_TAIL_LINES = 15
_LEAST = 1.0  # seconds that a case is worth being started for


@dataclass(frozen=True)
class Case:
    """One process of a step, the seconds that it may take, and what it needs."""

    name: str
    limit: float
    packages: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    gpu: bool = True


@dataclass(frozen=True)
class Step:
    """A question, answered by one or more cases.

    `code` is module:function of what answers it, NAME:run if left out; `counts` says whether against the deadline.
    """

    name: str
    cases: tuple[Case, ...]
    code: str = ""
    counts: bool = True


@dataclass(frozen=True)
class Run:
    """All that the steps share.

    Args:
        command: of a case: it is given the step, the case, and the file that the case leaves its answer in.
        environment: of the processes.
        folder: where the processes start.
        scratch: for logs and answers.
        out: for the JSON; what steps of other calls have left in it stays.
        header: what it begins with.
        deadline: of all steps that count, on `time.monotonic`; it moves by what the others take.
        tell: is given a line for each case.
    """

    command: Callable[[Step, Case, Path], Sequence[str]]
    environment: Mapping[str, str]
    folder: Path
    scratch: Path
    out: Path
    header: Mapping[str, Any]
    deadline: float
    tell: Callable[[str], None]


def run_steps(steps: Iterable[Step], run: Run) -> list[dict[str, Any]]:
    """Run all cases of all steps, in order.

    Returns: what the summary says of each step: its name and its cases.

    Raises:
        OSError: nothing can be written.
    """
    records: list[dict[str, Any]] = []
    deadline, steps = run.deadline, list(steps)
    names = {step.name for step in steps}
    earlier = [record for record in records_in(run.out) if record["step"] not in names]
    for step in steps:
        began, cases = time.monotonic(), list[dict[str, Any]]()
        records.append({"step": step.name, "cases": cases})
        for case in step.cases:
            cases.append(_run_case(step, case, run, deadline if step.counts else inf))
            _write(run.out / SUMMARY_FILE, {**run.header, "steps": [*earlier, *records]})
            run.tell(line(step.name, cases[-1]))
        deadline += 0.0 if step.counts else time.monotonic() - began
    return records


def line(step: str, case: Mapping[str, Any]) -> str:
    """What became of a case, in one line."""
    why = case.get("reason") or case.get("error") or ""
    text = f"{step}/{case['case']}: {case['state']} after {case['seconds']:.1f} s"
    return f"{text}: {why.strip().splitlines()[-1][:300]}" if why.strip() else text


def exit_code(records: Iterable[Mapping[str, Any]]) -> int:
    """0 if everything was done, 1 if a case failed or ran out of time, 3 if none did but some were skipped."""
    states = {case["state"] for record in records for case in record["cases"]}
    if states & {FAILED, OUT_OF_TIME}:
        return 1
    return 3 if SKIPPED in states else 0


def _run_case(step: Step, case: Case, run: Run, deadline: float) -> dict[str, Any]:
    left = deadline - time.monotonic()
    limit = round(min(case.limit, left), 1)
    record: dict[str, Any] = {"case": case.name, "state": SKIPPED, "seconds": 0.0, "limit": limit}
    if limit < _LEAST:
        return {**record, "reason": f"{max(left, 0):.0f} seconds were left before the deadline."}
    answer_file = run.scratch / f"{step.name}-{case.name}.json"
    log = run.scratch / f"{step.name}-{case.name}.log"
    answer_file.unlink(missing_ok=True)
    command = list(run.command(step, case, answer_file))
    began = time.monotonic()
    code = _wait(command, log, limit, run)
    record |= {"seconds": round(time.monotonic() - began, 3), "command": typed(command, run.folder)}
    answer = _answer(answer_file)
    if answer.get("state") in (DONE, SKIPPED):
        return {**record, **answer}
    said = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    if answer.get("state") == FAILED:
        return {**record, **answer, "said": said}
    if code is None:
        ended = {"state": OUT_OF_TIME, "error": f"It was ended after {limit} seconds."}
    else:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with the code {code}"
        ended = {"state": FAILED, "error": f"Its process ended {how} before it was done."}
    return {**record, **answer, **ended, "said": said}


def _wait(command: Sequence[str], log: Path, limit: float, run: Run) -> int | None:
    """Run a process, and end it and all that it started. None: it had to be ended."""
    with log.open("wb") as said:  # a file: a pipe would stay open as long as any grandchild does
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=run.folder,
            env=dict(run.environment),
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answer(path: Path) -> dict[str, Any]:
    """What a case has written so far."""
    try:
        answer = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
