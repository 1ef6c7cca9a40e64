"""`actvar-trt` in the process of a test."""

import sys
from collections.abc import Callable

import pytest

from actvar.cli.main import main

Command = Callable[..., tuple[int, str, str]]
"""Given arguments: the exit code, what was printed, and what was said."""


def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *first: object) -> Command:
    """A command whose first arguments are given; none of its runs may show a traceback."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["actvar-trt", *map(str, (*first, *arguments))])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(left.value.code or 0), said.out, said.err

    return run
