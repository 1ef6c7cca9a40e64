"""The errors that a user may meet. The command line prints their text and exits with their code."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate


class ActVARError(Exception):
    """Something given to the project cannot be used: one sentence of what is wrong, one of what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """The message. Of whatever names are in it, a terminal obeys nothing; lines stay lines."""
        return "\n".join(map(_escaped, super().__str__().split("\n")))


class UsageError(ActVARError):
    """An option or argument is wrong, before any file was touched."""

    exit_code = 2


class ArgumentError(UsageError, ValueError):
    """An argument that a program gave is wrong. Python's programs look for a ValueError then, and find one."""


class CheckpointError(ActVARError):
    """A checkpoint is not what it should be."""


class BundleError(ActVARError):
    """A bundle is incomplete, altered, or not for this use."""


class DamagedError(BundleError):
    """A file of a bundle is missing, or is not what the manifest says: to make the bundle anew helps."""


class EngineError(ActVARError):
    """An engine's library is not there, or failed at its work."""


class DataError(ActVARError):
    """A folder of pictures or of their tokens is not what it should be."""


def _escaped(text: str) -> str:
    return text if text.isprintable() else "".join(s if s.isprintable() else repr(s)[1:-1] for s in text)


def shown(text: object, limit: int = 500) -> str:
    """A text that came from a file or a path as a message may show it: the terminal obeys nothing in it.

    Args:
        text: anything; its `str()` is shown.
        limit: characters; what is longer ends with a sign that it was cut.

    Returns: one line that can be encoded and printed: control characters, signs that turn or hide text, and lone
        surrogates are escaped as Python writes them; what is printable stays.
    """
    whole = str(text)
    signs = [_escaped(sign) for sign in whole[:limit]]
    if len(whole) <= limit and sum(map(len, signs)) <= limit:
        return "".join(signs)
    kept = sum(length < limit for length in accumulate(map(len, signs)))  # no escape is cut in two
    return "".join(signs[:kept]) + "…"


def counted(number: int, one: str, many: str = "", form: str = "") -> str:
    """How many there are of something: "1 picture", "2 pictures".

    Args:
        number: of them.
        one: what it is.
        many: what several are, if that is not the same with an s.
        form: of the number, as after a colon in braces; "," for thousands.
    """
    return f"{number:{form}} {one if number == 1 else many or one + 's'}"


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Turn a missing package into a message that names the extra which brings it.

    Args:
        extra: as in pyproject.toml.
        purpose: completes "... is needed"; of a person's wish, not of a module.

    Raises:
        ActVARError: an import in the block found a package missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "actvar":  # ours are always installed: a missing one is a bug, and must show itself
            raise
        raise ActVARError(
            f"The package {package} is needed {purpose}, and is not installed. "
            f"Install it with: pip install 'actvar-trt[{extra}]'"
        ) from None
