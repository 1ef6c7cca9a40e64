"""The parts of the project that are installed on request, and what to say where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from actvar.errors import ActVARError


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
