"""Reports as files: whole or not at all, and a message that names the option where one cannot be written."""

import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from actvar.errors import ActVARError, UsageError
from actvar.files import written_whole

_PAGE = 150  # characters a line of a table where there is no terminal to fit it into


def show(tables: Iterable[Table]) -> str:
    """Print tables; returns them as text."""
    console = Console() if sys.stdout.isatty() else Console(width=_PAGE)
    page = io.StringIO()
    for table in tables:
        console.print(table)
        Console(file=page, width=_PAGE).print(table)
    return page.getvalue()


def check_json_option(path: Path | None) -> None:
    """Refuse a `--json` that could not be written at the end of the work.

    Raises:
        UsageError: it is a folder, or lies in none.
    """
    check_file_option(path, "--json")


def check_file_option(path: Path | None, option: str) -> None:
    """Refuse a file that could not be written at the end of the work.

    Raises:
        UsageError: it is a folder, or lies in none.
    """
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise UsageError(f"{option} must be a file in a folder that is there, got {path}.")


def write_report(path: Path, content: str | bytes, option: str) -> None:
    """Write one file, text as UTF-8.

    Raises:
        ActVARError: it cannot be written; another place can be named by this option.
    """
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
        write_report(folder / name, content, "--out")
        typer.echo(str(folder / name))
