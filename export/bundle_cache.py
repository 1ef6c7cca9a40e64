"""The cache of bundles: a checkpoint that is drawn with is exported once, and reused as long as nothing changed.

Knows folders, keys and locks. Loading a checkpoint and exporting it are imported when they are needed, and only then: a
cached bundle is used without ONNX. Neither needs PyTorch, but for a `.pth` and for int8.
"""

import hashlib
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from actvar import __version__
from actvar.bundle.manifest import MANIFEST_FILE, VERSION
from actvar.checkpoint.files import Checkpoint
from actvar.config import ModelConfig
from actvar.errors import ActVARError, needs
from actvar.files import locked, remove_folder
from actvar.runtime.machine import CACHE_VARIABLE, cache_folder


def cached_bundle(
    checkpoint: Checkpoint,
    precision: str,
    accept: Callable[[ModelConfig], object],
    progress: Callable[[float], None],
) -> Path:
    """The bundle of a checkpoint, exported now if it is not in the cache.

    Two processes do not export the same bundle: the second waits for the first. An export that is stopped leaves
    nothing that counts.

    Args:
        checkpoint: its content decides, and what is said of it, not its name.
        precision: of `actvar.bundle.contract.PRECISIONS`.
        accept: sees the model before an export starts, and may refuse it by raising.
        progress: told the share of the export that is done; not called where the bundle is there.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ArgumentError: guidance cannot end at that scale of the model.
        ActVARError: the cache cannot be written, or the exporter is not installed.
    """
    key = _key(checkpoint, precision)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", checkpoint.path.stem)[:40]
    folder = cache_folder() / "bundles" / f"{name}-{precision}-{key[:16]}"
    if (folder / MANIFEST_FILE).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not (folder / MANIFEST_FILE).is_file():
                _export(checkpoint, folder, precision, accept, progress)
    except OSError as error:
        where = f"{error.filename or folder.parent}: {error.strerror}"
        raise ActVARError(f"The cache cannot be written ({where}). Name another folder in {CACHE_VARIABLE}.") from None
    return folder


def discard(folder: Path) -> None:
    """Remove a bundle from the cache."""
    remove_folder(folder)


def _export(
    checkpoint: Checkpoint,
    folder: Path,
    precision: str,
    accept: Callable[[ModelConfig], object],
    progress: Callable[[float], None],
) -> None:
    with needs("export", "to export a model for the first time"):
        from actvar.checkpoint.model import open_checkpoint
        from actvar.export.onnx_export import export_bundle
    model = open_checkpoint(checkpoint)
    accept(model.config)
    discard(folder)  # without a manifest it is no bundle
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of exports that were killed: the lock is ours
        discard(leftover)
    export_bundle(model, folder, precision, f"checkpoint {checkpoint.path.name}", progress)


def _key(checkpoint: Checkpoint, precision: str) -> str:
    """What decides a bundle's content: the model and the precision, and the program that writes it."""
    decided_by = f"{checkpoint.digest()} {precision} {exporter_digest()}"
    return hashlib.sha256(decided_by.encode()).hexdigest()


def exporter_digest() -> str:
    """Of the program that writes bundles: its version and its source."""
    digest = hashlib.sha256(f"{__version__} {VERSION}".encode())
    spec = find_spec("actvar.export")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
