"""Commands as anybody could type them: how a result came to be, with the commit that ran, and what to do next."""

import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]


def typed(words: Iterable[str], folder: Path | None = None) -> str:
    """A command as another person would type it, for a report: no path of this machine stays in it.

    Args:
        words: of the command; the value of `--option=value` counts as a word of its own.
        folder: that paths are relative to, the working folder if left out. A path outside of it is its last name.
    """
    start = folder or Path.cwd()

    def relative(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        path = Path(value)
        if path.is_absolute():
            value = str(path.relative_to(start)) if path.is_relative_to(start) else path.name
        return f"{option}{equals}{value}"

    return shlex.join(map(relative, words))


def pasteable(*words: object) -> str:
    """A command of ours for a message, whole and quoted, so that whoever reads it can give it as it stands.

    Args:
        words: after the program's name. One in capitals stands for what the program cannot know.
    """
    return shlex.join(["actvar-trt", *map(str, words)])


def commit(besides: Path | None = None) -> dict[str, object]:
    """The commit of the checkout that runs, and whether it differs from that; the commit is empty without one.

    Args:
        besides: a file that may differ, such as the result itself.
    """
    status = ["status", "--porcelain", "--", ":/"]
    if besides and besides.resolve().is_relative_to(_CHECKOUT):
        status.append(f":(exclude,top){besides.resolve().relative_to(_CHECKOUT)}")
    return {"commit": _git("rev-parse", "HEAD"), "altered": bool(_git(*status))}


def _git(*arguments: str) -> str:
    """What git says in the checkout; nothing if this is none, or git fails."""
    if not (_CHECKOUT / ".git").exists():  # an installation may lie inside somebody else's
        return ""
    try:
        done = subprocess.run(["git", *arguments], cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
