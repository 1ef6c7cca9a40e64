"""What a case is given, what it leaves, and the two ways in which it may end before its end."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actvar.bundle.plans import Gpu
from actvar.errors import ActVARError
from actvar.files import written_whole
from actvar.runtime.machine import first_gpu


class Skipped(Exception):
    """A case cannot be run here; the text says what is missing."""


class Departure(ActVARError):
    """A result is not what it must be."""


SUMMARY_FILE = "summary.json"


def records_in(out: Path) -> list[dict[str, Any]]:
    """Of each step that has run with this folder its name and its cases; none where there is no file yet."""
    try:
        return list(json.loads((out / SUMMARY_FILE).read_bytes())["steps"])
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Args:
        bundles: those that the steps need.
        scratch: for what nobody needs afterwards.
        out: for the JSON of all steps so far.
        official_var: a checkout of official VAR, if there is one.
    """

    bundles: Path
    scratch: Path
    out: Path
    official_var: Path | None = None

    def bundle(self, name: str) -> Path:
        """A bundle of this name, which the step `bundles` makes."""
        return self.bundles / name

    def findings(self, step: str) -> dict[str, dict[str, Any]]:
        """What the cases of an earlier step found, by case."""
        cases = [case for record in records_in(self.out) if record["step"] == step for case in record["cases"]]
        return {case["case"]: case.get("findings", {}) for case in cases}


class Report:
    """The answer of a case; every addition is on disk before the next thing is tried."""

    def __init__(self, path: Path):
        self._path, self._findings = path, dict[str, Any]()

    def add(self, **findings: Any) -> None:
        """Write down what was found."""
        self._findings |= findings
        self.end("under way")

    def end(self, state: str, **why: str) -> None:
        """Write down how it ended."""
        with written_whole(self._path) as file:
            file.write((json.dumps({"state": state, **why, "findings": self._findings}, indent=1) + "\n").encode())


def the_gpu() -> Gpu:
    """The GPU at hand.

    Raises:
        Skipped: there is none.
    """
    gpu = first_gpu()
    if gpu is None:
        raise Skipped("There is no NVIDIA GPU.")
    return gpu
