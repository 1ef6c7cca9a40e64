"""How commands speak while they work: to stderr, so that what they print on stdout can be read by a program."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

_CONSOLE = Console(stderr=True, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """One line about what is going on."""
    _CONSOLE.print(text, markup=False)


@contextmanager
def progress_bar(title: str, announced: bool = True) -> Iterator[Callable[[float], None]]:
    """A bar that appears with the first share it is told, in 0..1.

    On what is no terminal a line stands in its place, if it is to be `announced`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=_CONSOLE, transient=True, disable=not _CONSOLE.is_terminal)
    task = progress.add_task(title, total=1.0)
    started = False

    def show(share: float) -> None:
        nonlocal started
        if not started:
            started = True
            progress.start()
            if announced and not _CONSOLE.is_terminal:
                say(f"{title} …")
        progress.update(task, completed=share)

    try:
        yield show
    finally:
        progress.stop()
