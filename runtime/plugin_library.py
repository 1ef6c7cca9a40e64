"""Where the library with our TensorRT plugins is: named by the user, in a checkout's build tree, or installed."""

import os
from pathlib import Path

import actvar
from actvar.errors import UsageError

PLUGIN_VARIABLE = "ACTVAR_PLUGIN_LIBRARY"
LIBRARY_FILE = "libactvar_plugins.so"


def plugin_library() -> Path | None:
    """The library's file, or None where there is none; an empty variable says to do without.

    Raises:
        UsageError: the variable names no file.
    """
    named = os.environ.get(PLUGIN_VARIABLE)
    if named is not None:
        if named and not Path(named).is_file():
            raise UsageError(f"{PLUGIN_VARIABLE} names {named}, which is no file. Name the library, or unset it.")
        return Path(named).resolve() if named else None
    package = Path(actvar.__file__).resolve().parent
    places = (package / "lib", package.parent / "build" / "plugins", package.parent / "build")
    return next((place / LIBRARY_FILE for place in places if (place / LIBRARY_FILE).is_file()), None)
