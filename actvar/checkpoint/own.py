"""Checkpoints of our own, written: safetensors with the configuration in the metadata. `own_file.py` reads them."""

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from torch import Tensor

from actvar.checkpoint.own_file import FORMAT, VAR_PREFIX, VERSION, VQVAE_PREFIX
from actvar.config import ModelConfig
from actvar.errors import CheckpointError, shown
from actvar.files import written_whole
from actvar.models.actvar import ActVAR
from actvar.models.vqvae import VQVAE
from actvar.parameters import is_scorer

_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


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
    state = {name: t for name, t in model.state_dict().items() if with_vqvae or name.startswith(VAR_PREFIX)}
    _save(state, model.config if with_vqvae else replace(model.config, small_decoder=None), path, dtype, notes)


def save_vqvae(vqvae: VQVAE, config: ModelConfig, path: Path) -> None:
    """Write a VQVAE alone, in fp32, for `load_vqvae`; `config` is of a model that it is meant for.

    Raises:
        CheckpointError: a weight is not finite, or the file cannot be written.
    """
    state = {f"{VQVAE_PREFIX}{name}": tensor for name, tensor in vqvae.state_dict().items()}
    _save(state, config, path, torch.float32, {})


def _save(
    state: Mapping[str, Tensor], model: ModelConfig, path: Path, dtype: torch.dtype, notes: Mapping[str, str]
) -> None:
    tensors = {name: t.to("cpu", _stored_dtype(name, t, dtype)).contiguous() for name, t in state.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{shown(path)} was not written: {name} holds NaN, infinity or a value too large for {tensor.dtype}. "
                "Save an earlier state of the training, or in fp32."
            )
    config = json.dumps(model.to_dict(), sort_keys=True, allow_nan=False)
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
