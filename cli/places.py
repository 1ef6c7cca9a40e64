"""Where the libraries below may keep files: in our cache, and nowhere that a user would not look."""

import os
import tempfile
from contextlib import suppress

from actvar.errors import ActVARError
from actvar.runtime.machine import cache_folder


def lend_the_cache() -> None:
    """Let libraries keep in the cache what they would keep in a temporary folder, or in a home where there is none.

    A container's user may have neither: matplotlib and PyTorch's compiler end without one. The compiler makes its
    folder as soon as it is imported, which torchvision does, and nobody removes it.
    """
    with suppress(ActVARError, OSError):  # without a cache whoever needs such a folder says so
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))
        if os.path.expanduser("~") == "~":
            os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            folder = cache_folder() / "tmp"
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["TMPDIR"] = str(folder)
