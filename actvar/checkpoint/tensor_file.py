"""A file of named tensors, safetensors or PyTorch's own, opened so that nothing in it can run.

Knows the formats and how each may be broken or hostile; what the tensors are called and mean is the caller's. PyTorch
is needed for its own files alone.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from actvar.bundle.json_form import parse_json
from actvar.checkpoint.lookalikes import HEAD, lookalike
from actvar.checkpoint.refusals import first_line, is_out_of_memory, no_checkpoint, too_little_memory, unreadable
from actvar.checkpoint.shards import is_index, read_index
from actvar.checkpoint.values import OpenedFile, Values
from actvar.errors import CheckpointError, counted, needs, shown

MAX_TENSORS = 100_000
_NAME_ONE = "Name a checkpoint: a .safetensors or .pth file"

_TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02")  # of a zip archive, and of a pickle
_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool", "C64": "complex64"},
}
"""By safetensors' name of a type, everybody else's. What is not here is no weight, and is shown as it stands."""


@dataclass(frozen=True)
class TensorFile:
    """What a file holds: of safetensors `Values` by name, not read yet, and metadata.

    PyTorch's files hold its own tensors, mapped from disk where the format allows it, and may hold other things, nested
    in dictionaries.
    """

    path: Path
    content: Mapping[str, Any]
    metadata: Mapping[str, str]


def open_tensor_file(path: Path) -> TensorFile:
    """Open a safetensors file, the `.index.json` of several, or a PyTorch checkpoint; its first bytes tell which.

    Raises:
        CheckpointError: there is no such file, it cannot be read, is cut short, is something else (and then it says
            what), holds a tensor that is not a plain one, or a pickle that wants more than tensors and plain values
            (which is refused, not run).
        ActVARError: it is PyTorch's own, and PyTorch is not installed.
    """
    require_file(path)
    if is_index(path):
        return _open_shards(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise unreadable(path, error) from None
    if found := lookalike(path, head):
        raise no_checkpoint(path, *found)
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # 8 bytes of length, then JSON
        return _open_safetensors(path, head)
    with needs("export", f"to read {shown(path.name)} (a .safetensors file needs none)"):
        from actvar.checkpoint.torch_file import read_torch_file
    content = read_torch_file(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{shown(path)} holds {type(content).__name__} where a checkpoint has tensors by name. "
            "Name a .safetensors or .pth file of a VAR or ActVAR."
        )
    return TensorFile(path, content, {})


def require_file(path: Path) -> None:
    """Make sure that a path names a file.

    Raises:
        CheckpointError: it names nothing, a folder, or a device; or the name is none that a library can be given.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise CheckpointError(f"{shown(path)} does not exist. {_NAME_ONE}.") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{shown(path)} is a folder. {_NAME_ONE}{_checkpoints_in(path)}.")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{shown(path)} is no plain file. {_NAME_ONE}.")
    try:
        str(path).encode()
    except UnicodeEncodeError:  # neither PyTorch nor safetensors can open it
        raise CheckpointError(f"{shown(path)} has a name that is not UTF-8. Rename the file or its folder.") from None


def _checkpoints_in(folder: Path) -> str:
    """The checkpoints that a folder holds, for a message: an index before its shards."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return ""
    found = [name for name in names if name.endswith(".index.json")]
    found = found or [name for name in names if name.endswith((".safetensors", ".pth", ".pt", ".ckpt"))]
    return f", such as its {shown(found[0])}" if found else ""


def _open_safetensors(path: Path, head: bytes = b"") -> TensorFile:
    try:
        file = OpenedFile.of(path)
        with safe_open(path, framework="numpy") as checked:  # header and size are right, and the tensors do not overlap
            names = checked.keys()
        if len(names) > MAX_TENSORS:
            raise no_checkpoint(
                path, f"has {counted(len(names), 'tensor')}, which no checkpoint has", "Name another file."
            )
        header, start = _header(file)
        metadata = header.pop("__metadata__", {})
        return TensorFile(path, {name: _values(file, start, said) for name, said in header.items()}, metadata)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        if is_out_of_memory(error):
            raise too_little_memory(path) from None
        is_torch = head.startswith(_TORCH_BEGINNINGS)
        advice = "It begins as PyTorch's files do: give it a name that ends with .pth." if is_torch else ""
        raise CheckpointError(
            f"{shown(path)} is not a whole safetensors file ({first_line(error)}): expected a header and all the bytes "
            f"that it lists. {advice or 'Fetch or write it again.'}"
        ) from None


def _header(file: OpenedFile) -> tuple[dict[str, Any], int]:
    """The JSON at the head of a safetensors file that was found right, and where its values begin."""
    length = bytearray(8)
    file.read(0, memoryview(length))
    text = bytearray(int.from_bytes(length, "little"))
    file.read(8, memoryview(text))
    return parse_json(bytes(text)), 8 + len(text)


def _values(file: OpenedFile, start: int, said: Mapping[str, Any]) -> Values:
    """The tensor of one entry of the header."""
    first, end = said["data_offsets"]
    dtype = _DTYPES.get(said["dtype"], said["dtype"].lower())
    return file.values(dtype, tuple(said["shape"]), start + first, end - first)


def _open_shards(path: Path) -> TensorFile:
    """All the tensors of the files that an index names; each must be where the index says, and nowhere else."""
    index = read_index(path)
    content: dict[str, Any] = {}
    for shard in index.shards:
        require_file(shard)
        for name, tensor in _open_safetensors(shard).content.items():
            if index.file_of.get(name) != shard:
                raise CheckpointError(
                    f"{shown(shard)} holds {shown(name)}, which {shown(path.name)} does not say. "
                    "Fetch the whole model again."
                )
            content[name] = tensor
        if len(content) > MAX_TENSORS:
            raise no_checkpoint(path, f"has over {MAX_TENSORS} tensors, which no checkpoint has", "Name another file.")
    if missing := next((name for name in index.file_of if name not in content), None):
        raise CheckpointError(
            f"{shown(index.file_of[missing])} lacks {shown(missing)}, which {shown(path.name)} says it holds. "
            "Fetch the whole model again."
        )
    return TensorFile(path, content, {})
