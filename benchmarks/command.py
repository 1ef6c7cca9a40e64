"""How every command of this room ends."""

import sys
from collections.abc import Callable
from typing import NoReturn

from actvar.errors import ActVARError


def end_with(main: Callable[[], int | None]) -> NoReturn:
    """Do what the command line says, and leave with the exit code; a user's mistake is a message, not a traceback.

    Args:
        main: does it, and returns the exit code; None is 0.
    """
    try:
        sys.exit(main())
    except ActVARError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
