"""What a command found: tables for a person, and files, each there whole or not at all."""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from actvar.console import say
from actvar.errors import ActVARError, UsageError
from actvar.files import hash_file, written_whole

STDOUT = Path("-")
"""Named in place of a file: what is written goes to stdout, and nothing else does."""

_ENDLESS = 10_000  # characters: wide enough that no line is folded


def show(parts: Iterable[RenderableType]) -> str:
    """Print tables and lines; returns them as text.

    Lines are folded to fit a terminal, or COLUMNS where that is set. A pipe and the returned text have them whole.
    """
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if fits else _ENDLESS, highlight=False)
    page = io.StringIO()
    whole = Console(file=page, width=_ENDLESS, highlight=False)
    for part in parts:
        for column in part.columns if isinstance(part, Table) else ():
            column.overflow = "fold"  # and never cut
        console.print(part)
        whole.print(part)
    return page.getvalue()


def deliver(parts: Iterable[RenderableType], content: str, json_file: Path | None) -> None:
    """Show what was found, and write it where `--json` asks for it; with `-` nothing is printed but the JSON.

    Raises:
        ActVARError: the file cannot be written.
    """
    if json_file != STDOUT:
        show(parts)
    if json_file:
        with said_if_replaced(json_file):
            write_report(json_file, content, "--json")


def check_json_option(path: Path | None) -> None:
    """Refuse a `--json` that could not be written at the end of the work.

    Raises:
        UsageError: it is a folder, or lies in none.
    """
    if path != STDOUT:
        check_file_option(path, "--json")


def check_file_option(path: Path | None, option: str) -> None:
    """Refuse a file that could not be written at the end of the work.

    Raises:
        UsageError: it is a folder, or lies in none.
    """
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise UsageError(f"{option} must be a file in a folder that is there, got {path}.")


def write_report(path: Path, content: str | bytes, option: str) -> None:
    """Write one file, text as UTF-8; JSON goes to stdout where the file is `-`.

    Raises:
        ActVARError: it cannot be written; another place can be named by this option.
    """
    if path == STDOUT and isinstance(content, str):
        typer.echo(content, nl=False)
        return
    try:
        with written_whole(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ActVARError(f"{path} cannot be written: {error.strerror}. Name another with {option}.") from None


def write_reports(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write files by name into the folder of `--out`, and say where they are.

    Raises:
        ActVARError: one cannot be written.
    """
    for name, content in contents.items():
        with said_if_replaced(folder / name):
            write_report(folder / name, content, "--out")
        typer.echo(str(folder / name))


@contextmanager
def said_if_replaced(path: Path) -> Iterator[None]:
    """Say, when the block has written a file, that another one was there before."""
    before = _digest(path)
    yield
    if before and before != _digest(path):
        say(f"{path} takes the place of another file of that name.")


def _digest(path: Path) -> str:
    """Of what a file holds; nothing where there is none that can be read."""
    try:
        return hash_file(path.resolve()).sha256 if path.is_file() else ""
    except (ActVARError, OSError, RuntimeError):
        return ""
