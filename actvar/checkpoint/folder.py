"""Which files of a folder are a model, and which is its VQVAE, told by their names: of a folder here, or on the Hub.

The first of these that it holds is its model:

1. a checkpoint of ours: model.safetensors;
2. the one .safetensors, .pth or .pt file that it has, or the one index of sharded .safetensors, beside a VQVAE:
   official VAR's vae_ch160v4096z32.pth goes with its var_d16.pth. Of several each is a model, and must be named.

No file is opened.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from actvar.checkpoint.shards import INDEX_SUFFIX
from actvar.errors import UsageError

CHECKPOINT_FILE = "model.safetensors"
"""What a checkpoint of ours is called in a folder."""

SUFFIXES = (".safetensors", ".pth", ".pt")
_SHARDED = f".safetensors{INDEX_SUFFIX}"
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-[0-9]{5}\.safetensors")
_LISTED = 12


def is_model_file(name: str) -> bool:
    """Whether a file may hold a model, by its name."""
    return name.endswith((*SUFFIXES, _SHARDED))


def models_among(files: Sequence[str]) -> list[str]:
    """The models of a folder: ours, or else all that may be one. Files in folders below it are none."""
    if CHECKPOINT_FILE in files:
        return [CHECKPOINT_FILE]
    shards = {shard for file in files for shard in shards_of(file, files)}
    return [f for f in files if "/" not in f and is_model_file(f) and not _is_vqvae(f) and f not in shards]


def shards_of(model: str, files: Sequence[str]) -> list[str]:
    """The files that an index is of; none of a model in one file."""
    stem = model.removesuffix(_SHARDED)
    if stem == model:
        return []
    return [file for file in files if (found := _SHARD.fullmatch(file)) and found[1] == stem]


def vqvae_beside(where: str, model: str, files: Sequence[str]) -> str | None:
    """The VQVAE in the folder of an official VAR; a self-trained file, which its trainer calls ar-ckpt, has its own.

    Raises:
        UsageError: there are several.
    """
    path = PurePosixPath(model)
    if path.suffix == ".safetensors" or path.name.startswith("ar-ckpt"):
        return None
    found = [other for other in files if PurePosixPath(other).parent == path.parent and _is_vqvae(other)]
    if len(found) > 1:
        raise UsageError(f"{where} holds several VQVAEs: {listed(found)}. Name the file of one.")
    return found[0] if found else None


def several(where: str, models: Sequence[str]) -> UsageError:
    """That one of several models must be named."""
    return UsageError(f"{where} holds several models: {listed(models)}. Name one of them, such as {where}/{models[0]}.")


def listed(files: Iterable[str]) -> str:
    """Names for a message, not too many."""
    names = sorted(files)
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _is_vqvae(file: str) -> bool:
    name = PurePosixPath(file).name
    return name.startswith("vae") and name.endswith(SUFFIXES)
