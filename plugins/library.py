"""Where our compiled libraries are: named by the user, in a checkout's build tree, or installed."""

import os
from collections.abc import Iterator
from pathlib import Path

import actvar
from actvar.errors import UsageError

PLUGIN_VARIABLE = "ACTVAR_PLUGIN_LIBRARY"
LIBRARY_FILE = "libactvar_plugins.so"
KERNELS_FILE = "libactvar_kernels.so"


def plugin_library() -> Path | None:
    """The library with our TensorRT plugins, or None where there is none; an empty variable says to do without.

    Raises:
        UsageError: the variable names no file.
    """
    named = os.environ.get(PLUGIN_VARIABLE)
    if named is not None:
        return _named(named)
    return _first(place / LIBRARY_FILE for place in _places())


def kernel_library() -> Path | None:
    """A library with the kernels' C interface, or None where there is none; an empty variable says to do without.

    The plugin library holds the same kernels, and needs no TensorRT to be loaded: it serves where the kernels' own
    library does not lie beside it.

    Raises:
        UsageError: the variable names no file.
    """
    named = os.environ.get(PLUGIN_VARIABLE)
    if named is not None:
        plugins = _named(named)
        return _first((plugins.with_name(KERNELS_FILE), plugins)) if plugins else None
    return _first(place / file for place in _places() for file in (KERNELS_FILE, LIBRARY_FILE))


def _named(name: str) -> Path | None:
    if name and not Path(name).is_file():
        raise UsageError(f"{PLUGIN_VARIABLE} names {name}, which is no file. Name the library, or unset it.")
    return Path(name).resolve() if name else None


def _places() -> tuple[Path, ...]:
    package = Path(actvar.__file__).resolve().parent
    return package / "lib", package.parent / "build" / "plugins", package.parent / "build"


def _first(paths: Iterator[Path] | tuple[Path, ...]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
