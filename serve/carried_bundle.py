"""A bundle on its way to other machines: by its path where they see it too, else through Ray's object store.

What arrives is held to the bundle's own hashes when it is opened.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actvar.bundle.manifest import MANIFEST_FILE
from actvar.errors import ActVARError
from actvar.files import hash_file, locked, remove_folder
from actvar.runtime.machine import cache_folder


@dataclass(frozen=True)
class CarriedBundle:
    """Where a bundle lies here, what its manifest is, and its files in the object store, by their names."""

    folder: str
    manifest_sha256: str
    stored: dict[str, Any]

    def here(self) -> Path:
        """The bundle's folder on the machine that asks.

        A machine that does not see it takes it from the store once, and keeps it in the cache.

        Raises:
            ActVARError: it is not to be had, or the cache cannot be written.
        """
        folder = Path(self.folder)
        if _manifest_of(folder) == self.manifest_sha256:
            return folder
        if not self.stored:
            raise ActVARError(f"{folder} is not there, or is another bundle. Name one that all machines see.")
        kept = cache_folder() / "carried" / self.manifest_sha256[:32]
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with locked(kept.with_suffix(".lock")):
                if _manifest_of(kept) != self.manifest_sha256:
                    self._unpack(kept)
        except OSError as error:
            raise ActVARError(f"{error.filename or kept} cannot be written: {error.strerror}. Make room.") from None
        return kept

    def _unpack(self, kept: Path) -> None:
        import ray

        remove_folder(kept)
        temporary = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}")
        try:
            for name, reference in self.stored.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                ray.get(reference).tofile(path)
            os.rename(temporary, kept)
        finally:
            remove_folder(temporary)


def carried(folder: Path, through_the_store: bool) -> CarriedBundle:
    """A bundle for others; what `through_the_store` is told of is for machines that do not see its folder.

    Raises:
        BundleError: it has no manifest.
        OSError: it cannot be read.
    """
    folder, stored = folder.resolve(), {}
    if through_the_store:
        import ray

        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            stored[path.relative_to(folder).as_posix()] = ray.put(np.fromfile(path, np.uint8))
    return CarriedBundle(str(folder), hash_file(folder / MANIFEST_FILE).sha256, stored)


def _manifest_of(folder: Path) -> str:
    try:
        return hash_file(folder / MANIFEST_FILE).sha256
    except (ActVARError, OSError):
        return ""
