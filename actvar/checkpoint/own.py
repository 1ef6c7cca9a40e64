"""Checkpoints of our own: safetensors with the configuration in the metadata, written and read.

The tensors are those of `ActVAR` under their own names (`var.*`, `vqvae.*`, `small_decoder.*`). A file is not trusted:
see `tensor_file.py` and `weights.py`.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from torch import Tensor

from actvar.bundle.json_form import parse_json
from actvar.checkpoint.official import derive_config, derive_vqvae, require_same
from actvar.checkpoint.tensor_file import TensorFile, open_tensor_file
from actvar.checkpoint.weights import Weights
from actvar.config import ModelConfig
from actvar.errors import CheckpointError, shown
from actvar.files import written_whole
from actvar.models.actvar import ActVAR
from actvar.models.var import is_scorer
from actvar.scales import ScaleSchedule

FORMAT, VERSION = "actvar-checkpoint", "1"
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_VAR, _VQVAE, _SMALL = "var.", "vqvae.", "small_decoder."


# ---- writing


def save_model(
    model: ActVAR,
    path: Path,
    dtype: torch.dtype = torch.float16,
    with_vqvae: bool = True,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a checkpoint; the file is there whole, or not at all, and the same weights give the same bytes.

    Args:
        model: on any device.
        path: replaced if it exists.
        dtype: float16, bfloat16 or float32, for matrices, kernels and tables. What would lose by fewer bits, and is
            small, stays in fp32: vectors (biases, norms, the temperatures, which are exponentiated), the code vectors
            (f_hat is the sum of ten), and router and selector, whose near-ties must not flip.
        with_vqvae: False writes the transformer alone, for a model that shares the VQVAE of another file.
        notes: what else the metadata say of how the model came to be; nobody needs them to draw.

    Raises:
        CheckpointError: a weight is not finite, or too large for `dtype`; or the file cannot be written.
    """
    state = {name: t for name, t in model.state_dict().items() if with_vqvae or name.startswith(_VAR)}
    tensors = {name: t.to("cpu", _stored_dtype(name, t, dtype)).contiguous() for name, t in state.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{shown(path)} was not written: {name} holds NaN, infinity or a value too large for {tensor.dtype}. "
                "Save an earlier state of the training, or in fp32."
            )
    stored = model.config if with_vqvae else replace(model.config, small_decoder=None)
    config = json.dumps(stored.to_dict(), sort_keys=True, allow_nan=False)
    metadata = {**notes, "format": FORMAT, "version": VERSION, "config": config}
    try:
        with written_whole(path) as file:
            _write_safetensors(file, tensors, metadata)
    except OSError as error:
        raise CheckpointError(f"{shown(path)} cannot be written: {error.strerror}. Choose another folder.") from None


def _stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    is_vector = tensor.numel() == max(tensor.shape)
    return torch.float32 if is_vector or is_scorer(name) or name == "vqvae.quantize.embedding.weight" else dtype


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the format by hand: the library's writer orders the metadata at random, and no hash would be stable."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # wide values first: all aligned
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, tensor in ordered:
        file.write(tensor.view(torch.uint8).numpy().data)


# ---- reading


def is_own(file: TensorFile) -> bool:
    """Whether a file says that it is one of ours."""
    return file.metadata.get("format") == FORMAT


def read_own_vqvae(file: TensorFile) -> tuple[ModelConfig, Weights]:
    """What a checkpoint of ours says of its model, and its VQVAE.

    Raises:
        CheckpointError: it holds none, or one of another shape.
    """
    said = own_config(file)
    weights = _part(_file_with_vqvae(file, None), _VQVAE)
    config = derive_vqvae(weights, said.vqvae.norm_groups)
    if said.vqvae != config:
        raise CheckpointError(
            f"{shown(file.path)}: vqvae: expected {said.vqvae}, found tensors of {config}. Write it again."
        )
    return said, weights


def read_own(
    file: TensorFile, vqvae_path: Path | None, schedule: ScaleSchedule | None = None
) -> tuple[ModelConfig, dict[str, Weights]]:
    """The configuration in the metadata, and the weights of each network, held against each other.

    A small decoder belongs to the VQVAE, and is read where that is.

    Args:
        file: for which `is_own` holds.
        vqvae_path: another checkpoint of ours with its VQVAE, where it holds none.
        schedule: the token maps that somebody takes it to have.

    Raises:
        CheckpointError: a file is not what it should be, or they do not fit each other.
        UsageError: its token maps are others.
    """
    config = own_config(file)
    require_same(file.path, config.schedule, schedule)
    other = _file_with_vqvae(file, vqvae_path)
    small = own_config(other).small_decoder
    var, vqvae = _part(file, _VAR), _part(other, _VQVAE)
    derived = derive_config(var, vqvae, config.schedule, config.vqvae.norm_groups)
    for field in ("depth", "num_classes", "shared_adaln", "vqvae"):
        said, found = getattr(config, field), getattr(derived, field)
        if said != found:
            raise CheckpointError(
                f"{shown(file.path)}: {field}: expected {said}, as its metadata say, found tensors of {found}. "
                "Write it again."
            )
    networks = {"var": var, "vqvae": vqvae, **({"small_decoder": _part(other, _SMALL)} if small else {})}
    return replace(config, small_decoder=small), networks


def own_config(file: TensorFile) -> ModelConfig:
    """The configuration in the metadata of a checkpoint of ours, which holds nothing but its networks."""
    if file.metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{shown(file.path)} has the format's version '{shown(file.metadata.get('version'), 40)}', "
            f"this program reads '{VERSION}'. "
            "Update the program, or write the checkpoint again."
        )
    try:
        config = ModelConfig.from_dict(parse_json(file.metadata.get("config", "").encode()))
    except (ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"{shown(file.path)}: the metadata's configuration: {shown(error)}. Write the file again."
        ) from None
    known = (_VAR, _VQVAE, _SMALL) if config.small_decoder else (_VAR, _VQVAE)
    if other := next((name for name in file.content if not name.startswith(known)), None):
        raise CheckpointError(
            f"{shown(file.path)}: {shown(other)}: expected names in {' or '.join(name[:-1] for name in known)}, found "
            "another. Write it again."
        )
    return config


def _file_with_vqvae(file: TensorFile, vqvae_path: Path | None) -> TensorFile:
    """The checkpoint itself, or the other one of ours that was named for it."""
    has_vqvae = any(name.startswith(_VQVAE) for name in file.content)
    if has_vqvae and vqvae_path:
        raise CheckpointError(
            f"{shown(file.path)} holds a VQVAE of its own, and {shown(vqvae_path)} was given too. Leave the latter out."
        )
    if has_vqvae:
        return file
    if vqvae_path is None:
        raise CheckpointError(f"{shown(file.path)} holds no VQVAE. Name a checkpoint that holds its VQVAE, too.")
    other = open_tensor_file(vqvae_path)
    if not is_own(other) or not any(name.startswith(_VQVAE) for name in other.content):
        raise CheckpointError(f"{shown(vqvae_path)}: expected a checkpoint of ours with a VQVAE. Name another file.")
    return other


def _part(file: TensorFile, prefix: str) -> Weights:
    found = {name.removeprefix(prefix): tensor for name, tensor in file.content.items() if name.startswith(prefix)}
    return Weights.of(file.path, prefix, found)
