"""A file of named tensors, safetensors or PyTorch's own, opened so that nothing in it can run.

Knows the two formats and how each may be broken or hostile; what the tensors are called and mean is the caller's.
"""

import pickle
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from actvar.errors import CheckpointError

_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class TensorFile:
    """What a file holds: tensors by name, mapped from disk where the format allows it.

    PyTorch's files may hold other things too, nested in dictionaries; safetensors may carry metadata.
    """

    path: Path
    content: Mapping[str, Any]
    metadata: Mapping[str, str]


def open_tensor_file(path: Path) -> TensorFile:
    """Open a safetensors file or a PyTorch checkpoint; which of them it is, its first bytes tell.

    Raises:
        CheckpointError: there is no such file, it cannot be read, is cut short, is something else, or holds a pickle
            that wants more than tensors and plain values (which is refused, not run).
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    if path.suffix == ".safetensors" or head[8:] == b"{":  # 8 bytes of length, then JSON
        return _open_safetensors(path)
    return _open_pytorch(path, mmap=head.startswith(_ZIP_MAGIC))


def require_file(path: Path) -> None:
    """Make sure that a path names a file.

    Raises:
        CheckpointError: it names nothing, a folder, or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist. Name a checkpoint: a .safetensors or .pth file.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check its name and permissions.") from None
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "no plain file"
        raise CheckpointError(f"{path} is {found}. Name a checkpoint: a .safetensors or .pth file.")


def _open_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            return TensorFile(path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({_first_line(error)}): expected a header and all the bytes that "
            "it lists. Fetch or write it again."
        ) from None


def _open_pytorch(path: Path, mmap: bool) -> TensorFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols: what cannot be read is refused below
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        asked = f"beside tensors it asks for {wanted[1]}, which could run code, and" if wanted else "what it holds"
        raise CheckpointError(
            f"{path} is refused: {asked} was not run, and only tensors written by torch.save are read. "
            "Use a file that holds tensors only, from a source that you trust."
        ) from None
    except Exception as error:  # of a broken file, torch.load may raise anything
        raise _not_a_checkpoint(path, error) from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{path} holds {type(content).__name__} where a checkpoint has tensors by name. "
            "Name a .safetensors or .pth file of a VAR or ActVAR."
        )
    return TensorFile(path, content, {})


def _not_a_checkpoint(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read as a checkpoint ({_first_line(error)}): it is cut short, damaged, or something else. "
        "Fetch it again, or name a .safetensors or .pth file."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].partition(". ")[0].strip(" .")[:120] or type(error).__name__
