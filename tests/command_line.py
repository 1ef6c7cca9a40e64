"""`actvar-trt` in the process of a test."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from actvar.cli.main import main


class Run(NamedTuple):
    """What a command left: its exit code, what it printed, and what it said."""

    code: int
    out: str
    err: str


Command = Callable[..., Run]
"""Runs a command with the arguments that it is given."""


def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *first: object) -> Command:
    """A command whose first arguments are given; none of its runs may show a traceback."""

    def run(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["actvar-trt", *map(str, (*first, *arguments))])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Run(int(left.value.code or 0), said.out, said.err)

    return run
