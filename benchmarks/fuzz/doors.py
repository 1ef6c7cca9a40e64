"""The doors that a file is read through: each is tried, whatever the ones before it said."""

from collections.abc import Callable

from actvar.errors import ActVARError


def through(*doors: Callable[[], object]) -> None:
    """Go through every door.

    Raises:
        ActVARError: what one of them refused with; the one that a terminal would obey, if there is one.
    """
    refusals: list[ActVARError] = []
    for door in doors:
        try:
            door()
        except ActVARError as error:
            refusals.append(error)
    if refusals:
        raise min(refusals, key=lambda error: all(line.isprintable() for line in str(error).split("\n")))
