"""A model to a bundle: weights, graphs, manifest, in a folder that is there whole or not at all.

Knows the order of the work and what becomes of a folder when it fails; what the files hold is `weights_file.py`'s and
`graphs.py`'s.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from actvar import __version__
from actvar.bundle import (
    FORMAT,
    MANIFEST_FILE,
    PRECISIONS,
    WEIGHTS_FILE,
    GraphSpec,
    Manifest,
    graph_names,
    write_manifest,
)
from actvar.errors import BundleError, UsageError
from actvar.export.graphs import build_graph
from actvar.export.weights_file import deployed_tensors, write_weights
from actvar.files import hash_file
from actvar.models.actvar import ActVAR

_WEIGHTS_SHARE = 0.9  # of the time that an export takes, about


def export_bundle(
    model: ActVAR,
    folder: Path,
    precision: str,
    source: str,
    progress: Callable[[float], None] | None = None,
    debug_logits: bool = False,
) -> Manifest:
    """Write a model's bundle.

    Everything goes into a folder beside the target, which gets its name at the end; a failure or Ctrl-C removes it.

    Args:
        model: on any device.
        folder: the target. A bundle that is there is replaced; anything else that is there is left alone.
        precision: "fp32" or "fp16".
        source: where the weights come from, in words, for the manifest.
        progress: told the share that is done, 0 to 1.
        debug_logits: let the scale graphs give their guided logits, too.

    Raises:
        UsageError: no such precision.
        BundleError: the target is something else than a bundle, or cannot be written.
        CheckpointError: a weight does not fit into fp16.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"The precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    report = progress or (lambda share: None)
    with _written_whole(folder) as unfinished:
        weights_path = unfinished / WEIGHTS_FILE
        tensors = deployed_tensors(model, precision)
        weights = write_weights(weights_path, tensors, lambda share: report(share * _WEIGHTS_SHARE))
        graphs: dict[str, GraphSpec] = {}
        names = graph_names(model.config)
        for name in names:
            builder = build_graph(name, model.config, weights.tensors, precision, debug_logits)
            path = unfinished / f"{name}.onnx"
            _write(path, builder.build().SerializeToString())
            onnx.checker.check_model(path, full_check=True)
            graphs[name] = GraphSpec(hash_file(path), tuple(builder.inputs), tuple(builder.outputs), builder.weights)
            report(_WEIGHTS_SHARE + (1 - _WEIGHTS_SHARE) * len(graphs) / len(names))
        versions = {"actvar": __version__, "torch": torch.__version__, "onnx": onnx.__version__}
        manifest = Manifest(model.config, precision, source, versions, weights, graphs)
        write_manifest(unfinished, manifest)
    return manifest


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the target's place when the block ends, and is removed if the block fails."""
    folder = Path(os.path.abspath(folder))  # a name that a folder beside it can be given, even for "."
    token = secrets.token_hex(4)
    unfinished, replaced = (folder.with_name(f".{folder.name[:100]}.{token}.{end}") for end in ("tmp", "old"))
    try:
        if not _may_be_replaced(folder):
            raise BundleError(f"{folder} is there and is not a bundle. Name a new folder, or a bundle to replace.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        yield unfinished
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    except BaseException as error:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        if isinstance(error, OSError):
            raise BundleError(
                f"{folder} cannot be written: {error.strerror or error}. Name another folder, or make room."
            ) from None
        raise
    finally:
        for rest in (unfinished, replaced):
            shutil.rmtree(rest, ignore_errors=True)


def _may_be_replaced(folder: Path) -> bool:
    """Whether there is nothing, an empty folder, or a bundle, whatever its state."""
    if folder.is_symlink() or not folder.is_dir():
        return not os.path.lexists(folder)
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
    except FileNotFoundError:
        return not any(folder.iterdir())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
