"""A model in several safetensors files, and the `.index.json` that says which tensor is in which: no PyTorch needed.

The index is not trusted: a shard is a file beside it, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actvar.bundle.json_form import parse_json
from actvar.checkpoint.refusals import no_checkpoint, unreadable
from actvar.errors import CheckpointError, counted, shown

INDEX_SUFFIX = ".index.json"
MAX_INDEX_BYTES = 16 << 20
MAX_SHARDS = 1000

_WHOLE = "Fetch the whole model again."


@dataclass(frozen=True)
class ShardIndex:
    """What an index says: the files, in the order of their names, and the file of every tensor."""

    shards: tuple[Path, ...]
    file_of: Mapping[str, Path]


def is_index(path: Path) -> bool:
    """Whether a file is one by its name."""
    return path.name.endswith(INDEX_SUFFIX)


def read_index(path: Path) -> ShardIndex:
    """Read an index, and find its shards.

    Raises:
        CheckpointError: it cannot be read, is larger than any, is none, or names a file that is not beside it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INDEX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if len(data) > MAX_INDEX_BYTES:
        raise no_checkpoint(path, f"is larger than {MAX_INDEX_BYTES} bytes, which no index is", _WHOLE)
    try:
        content = parse_json(data)
    except ValueError as error:
        raise no_checkpoint(path, f"is no valid JSON ({shown(error, 100)})", _WHOLE) from None
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise no_checkpoint(path, "has no weight_map of tensors and their files", "Name a model's .index.json.")
    files = sorted(set(names.values()))
    if len(files) > MAX_SHARDS:
        raise no_checkpoint(path, f"names {counted(len(files), 'file')}, which no model has", _WHOLE)
    shards = {name: _shard(path, name) for name in files}
    return ShardIndex(tuple(shards.values()), {tensor: shards[name] for tensor, name in names.items()})


def _shard(index: Path, name: str) -> Path:
    """The file of this name beside the index; the Hub's cache alone may have it elsewhere, in its own `blobs`."""
    if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable() or len(name) > 200:
        raise no_checkpoint(index, f"names the file '{shown(name)}', which is not beside it", _WHOLE)
    if not name.endswith(".safetensors"):
        advice = "Write the model again as safetensors."
        raise no_checkpoint(index, f"names '{shown(name)}', and only shards in safetensors are read", advice)
    folder = index.parent
    homes = [folder] + [folder.parent.parent / "blobs"] * (folder.parent.name == "snapshots")
    try:
        if not (folder / name).exists():
            raise CheckpointError(f"{shown(folder / name)}, which {shown(index.name)} names, is missing. {_WHOLE}")
        place = (folder / name).resolve(strict=True)
        if not any(place.is_relative_to(home.resolve()) for home in homes):
            raise no_checkpoint(index, f"names '{shown(name)}', a link that leads out of the folder", _WHOLE)
    except (OSError, RuntimeError) as error:  # a loop of links is the latter before Python 3.13
        raise unreadable(folder / name, error if isinstance(error, OSError) else OSError(str(error))) from None
    return folder / name
