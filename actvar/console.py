"""How commands speak while they work: to stderr, so that what they print on stdout can be read by a program."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from actvar.errors import shown

_CONSOLE = Console(stderr=True, soft_wrap=True, highlight=False)
_BAR = Lock()
_LONGEST = 4000  # characters of a line, in which a name that came from a file may stand
_LOOK_BACK_SECONDS = 600.0  # over which the speed is taken: one piece may take a minute


def say(text: str) -> None:
    """One line about what is going on."""
    _CONSOLE.print(shown(text, _LONGEST), markup=False)


def tell(text: str) -> None:
    """One line of what came of it, on stdout; if that is a terminal with a bar on it, above the bar."""
    if _CONSOLE.is_terminal and sys.stdout.isatty():
        say(text)
    else:
        typer.echo(shown(text, _LONGEST))


@contextmanager
def progress_bar(title: str, announced: bool = True, pieces: int = 0) -> Iterator[Callable[[float], None]]:
    """A bar that appears with the first share it is told, in 0..1.

    With `pieces` it is told how many of them are done, and says how long the rest will take. On what is no terminal a
    line stands in the bar's place, if it is to be `announced`.
    """
    how_far: list[ProgressColumn] = [TaskProgressColumn(), TimeElapsedColumn()]
    if pieces:
        how_far = [MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    progress = Progress(
        *(TextColumn("{task.description}"), BarColumn(), *how_far),
        console=_CONSOLE,
        transient=True,
        disable=not _CONSOLE.is_terminal,
        speed_estimate_period=_LOOK_BACK_SECONDS,
    )
    task = progress.add_task(title, total=pieces or 1.0)
    started = False

    def show(share: float) -> None:
        nonlocal started
        if not started:
            started = True
            progress.start()
            if announced and not _CONSOLE.is_terminal:
                say(f"{title} …")
        if _CONSOLE.is_terminal:  # a bar that is not shown still remembers what it is told
            progress.update(task, completed=share)

    try:
        yield show
    finally:
        progress.stop()


@contextmanager
def counting(title: str, pieces: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar over so many pieces, some of which are done, that is told how many more there are."""
    with progress_bar(title, announced=False, pieces=pieces) as progress:

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress(done)

        yield advance


@contextmanager
def wanted_bar(title: str, wanted: bool, announced: bool = True, pieces: int = 0) -> Iterator[Callable[[float], None]]:
    """A bar like `progress_bar`'s, for programs that may do without and have several threads.

    A terminal has room for one: without `wanted`, and while another of these is shown, what is told is not shown.
    """
    if not wanted or not _BAR.acquire(blocking=False):
        yield lambda share: None
        return
    try:
        with progress_bar(title, announced, pieces) as show:
            yield show
    finally:
        _BAR.release()
