"""A model as one file: written by us, or read from ours and from official VAR's.

Our format is safetensors with the configuration in the metadata, and the tensors of `ActVAR` under their own names
(`var.*`, `vqvae.*`). A file is not trusted: see `actvar.checkpoint.tensor_file` and `actvar.checkpoint.weights`.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from actvar.checkpoint.official import derive_config, derive_vqvae, networks, read_official, schedule_of, without_hits
from actvar.checkpoint.tensor_file import TensorFile, open_tensor_file, require_file
from actvar.checkpoint.weights import Weights
from actvar.config import Activation, ModelConfig
from actvar.errors import BundleError, CheckpointError, UsageError
from actvar.files import hash_file, written_whole
from actvar.models.actvar import ActVAR, empty_model
from actvar.models.var import fresh_scorers, is_scorer
from actvar.models.vqvae import VQVAE
from actvar.scales import ScaleSchedule

FORMAT, VERSION = "actvar-checkpoint", "1"
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_VAR, _VQVAE = "var.", "vqvae."


# ---- writing


def save_model(model: ActVAR, path: Path, dtype: torch.dtype = torch.float16, with_vqvae: bool = True) -> None:
    """Write a checkpoint; the file is there whole, or not at all, and the same weights give the same bytes.

    Args:
        model: on any device.
        path: replaced if it exists.
        dtype: float16, bfloat16 or float32, for matrices, kernels and tables. What would lose by fewer bits, and is
            small, stays in fp32: vectors (biases, norms, the temperatures, which are exponentiated), the code vectors
            (f_hat is the sum of ten), and router and selector, whose near-ties must not flip.
        with_vqvae: False writes the transformer alone, for a model that shares the VQVAE of another file.

    Raises:
        CheckpointError: a weight is not finite, or too large for `dtype`; or the file cannot be written.
    """
    state = {name: t for name, t in model.state_dict().items() if with_vqvae or name.startswith(_VAR)}
    tensors = {name: t.to("cpu", _stored_dtype(name, t, dtype)).contiguous() for name, t in state.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path} was not written: {name} holds NaN, infinity or a value too large for {tensor.dtype}. "
                "Save an earlier state of the training, or in fp32."
            )
    config = json.dumps(model.config.to_dict(), sort_keys=True, allow_nan=False)
    metadata = {"format": FORMAT, "version": VERSION, "config": config}
    try:
        with written_whole(path) as file:
            _write_safetensors(file, tensors, metadata)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}. Choose another folder.") from None


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


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint whose names, shapes and types were found right, and whose values are read one tensor at a time.

    Attributes:
        config: of the model.
        fresh: the routers and selectors that were drawn anew, because a dense checkpoint has none; by VAR's names.
    """

    config: ModelConfig
    fresh: Mapping[str, Tensor]
    _networks: Mapping[str, Weights]

    def read(self, name: str, copy: bool = False) -> Tensor:
        """One tensor in fp32, on the CPU.

        Args:
            name: as in `ActVAR.state_dict()`.
            copy: into memory of its own; otherwise what is fp32 stays mapped from the file.

        Raises:
            CheckpointError: a value is not finite.
        """
        network, _, own_name = name.partition(".")
        if network == "var" and own_name in self.fresh:
            return self.fresh[own_name]
        return self._networks[network].read(own_name, copy)


def open_model(path: Path, vqvae: Path | None = None, activation: Activation | None = None) -> StoredModel:
    """Open a checkpoint: ours, official VAR's, or a self-trained official one. No values are read.

    Args:
        path: `.safetensors` or `.pth`; what it holds is told by its content.
        vqvae: the file that holds the VQVAE, where the first holds none: `vae_ch160v4096z32.pth` for official files,
            another checkpoint of ours for ours.
        activation: makes an ActVAR of a dense checkpoint; its router and selector are drawn anew, small and always the
            same. Of an ActVAR it replaces scales and rates; the number of experts and the choices must stay.

    Raises:
        CheckpointError: a file is missing, unreadable, hostile, incomplete, or does not fit; see the message.
        UsageError: the activation does not fit the model.
    """
    file = open_tensor_file(path)
    if file.metadata.get("format") == FORMAT:
        config, var_weights, vqvae_weights = _read_ours(file, vqvae)
    else:
        config, var_weights, vqvae_weights = read_official(file, vqvae)
    is_dense = config.activation is None
    if activation:
        config = _activated(config, activation, path)
    shapes = empty_model(config)  # nothing is allocated before all have been checked
    fresh = fresh_scorers(shapes.var) if is_dense else {}
    expected = {name: parameter.shape for name, parameter in shapes.var.named_parameters() if name not in fresh}
    var_weights.require(expected, f"a VAR of depth {config.depth}")
    vqvae_weights.require({name: p.shape for name, p in shapes.vqvae.named_parameters()}, "its VQVAE")
    return StoredModel(config, fresh, {"var": var_weights, "vqvae": vqvae_weights})


def load_model(path: Path, vqvae: Path | None = None, activation: Activation | None = None) -> ActVAR:
    """Read a checkpoint into memory.

    Args and errors are those of `open_model`; a value that is not finite is refused, too.

    Returns: fp32, on the CPU, in evaluation mode, without gradients.
    """
    stored = open_model(path, vqvae, activation)
    model = empty_model(stored.config)
    values = {name: stored.read(name, copy=True) for name in model.state_dict()}
    model.load_state_dict(values, strict=True, assign=True)
    return model.requires_grad_(False)


@dataclass(frozen=True)
class StoredVQVAE:
    """The VQVAE of a file: fp32, on the CPU, in evaluation mode, without gradients.

    `num_classes` is None for an official file of the VQVAE alone, which does not tell.
    """

    vqvae: VQVAE
    picture_size: int
    num_classes: int | None


def load_vqvae(path: Path, schedule: ScaleSchedule | None = None) -> StoredVQVAE:
    """Read the VQVAE of a checkpoint into memory, and nothing else of it.

    Args:
        path: a checkpoint of ours that holds a VQVAE, official `vae_ch160v4096z32.pth`, or a self-trained official one.
        schedule: the token maps, where the file does not tell them; without it the ten standard ones.

    Raises:
        CheckpointError: the file is missing, unreadable, hostile, incomplete, or holds no VQVAE.
        UsageError: the file does tell its token maps.
    """
    file = open_tensor_file(path)
    own, num_classes = None, None
    if file.metadata.get("format") == FORMAT:
        said = _config(file)
        weights = _part(_file_with_vqvae(file, None), _VQVAE)
        config = derive_vqvae(weights, said.vqvae.norm_groups)
        if said.vqvae != config:
            raise CheckpointError(f"{path}: vqvae: expected {said.vqvae}, found tensors of {config}. Write it again.")
        own, num_classes = said.schedule, said.num_classes
    else:
        var, found = networks(file)
        if found is None:
            raise CheckpointError(f"{path} holds no VQVAE. Name the official vae_ch160v4096z32.pth, or one of ours.")
        weights = without_hits(found)
        config = derive_vqvae(weights)
        if var:
            own, num_classes = schedule_of(var), var.shape("class_emb.weight", 2)[0] - 1
    if own and schedule:
        raise UsageError(f"{path} has its own patch_nums, {own.patch_nums}. Leave --patch-nums out.")
    schedule = own or schedule or ScaleSchedule()
    with torch.device("meta"):
        vqvae = VQVAE(config, schedule)
    weights.require({name: p.shape for name, p in vqvae.named_parameters()}, "a VQVAE")
    vqvae.load_state_dict({name: weights.read(name, copy=True) for name in vqvae.state_dict()}, assign=True)
    return StoredVQVAE(vqvae.eval().requires_grad_(False), schedule.side * config.downsampling, num_classes)


def checkpoint_hash(path: Path) -> str:
    """SHA-256 of a checkpoint file, in hexadecimal digits.

    Raises:
        CheckpointError: it does not exist, is no file, or cannot be read.
    """
    require_file(path)
    try:
        return hash_file(path.resolve()).sha256  # a download's cache may hold links, which a bundle must not
    except BundleError as error:
        raise CheckpointError(str(error)) from None


def _read_ours(file: TensorFile, vqvae_path: Path | None) -> tuple[ModelConfig, Weights, Weights]:
    """The configuration in the metadata, held against the tensors before anything is built by it."""
    config = _config(file)
    var, vqvae = _part(file, _VAR), _part(_file_with_vqvae(file, vqvae_path), _VQVAE)
    derived = derive_config(var, vqvae, config.schedule, config.vqvae.norm_groups)
    for field in ("depth", "num_classes", "shared_adaln", "vqvae"):
        said, found = getattr(config, field), getattr(derived, field)
        if said != found:
            raise CheckpointError(
                f"{file.path}: {field}: expected {said}, as its metadata say, found tensors of {found}. Write it again."
            )
    return config, var, vqvae


def _config(file: TensorFile) -> ModelConfig:
    """The configuration in the metadata of a checkpoint of ours, which holds nothing but the two networks."""
    if file.metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{file.path} has the format's version {file.metadata.get('version')!r}, this program reads {VERSION!r}. "
            "Update the program, or write the checkpoint again."
        )
    try:
        config = ModelConfig.from_dict(json.loads(file.metadata.get("config", "")))
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: the metadata's configuration: {error}. Write the file again.") from None
    if other := next((name for name in file.content if not name.startswith((_VAR, _VQVAE))), None):
        raise CheckpointError(f"{file.path}: {other}: expected names in var or vqvae, found another. Write it again.")
    return config


def _file_with_vqvae(file: TensorFile, vqvae_path: Path | None) -> TensorFile:
    """The checkpoint itself, or the other one of ours that was named for it."""
    has_vqvae = any(name.startswith(_VQVAE) for name in file.content)
    if has_vqvae and vqvae_path:
        raise CheckpointError(
            f"{file.path} holds a VQVAE of its own, and {vqvae_path} was given too. Leave the latter out."
        )
    if has_vqvae:
        return file
    if vqvae_path is None:
        raise CheckpointError(f"{file.path} holds no VQVAE. Name a checkpoint that holds its VQVAE, too.")
    other = open_tensor_file(vqvae_path)
    if other.metadata.get("format") != FORMAT or not any(name.startswith(_VQVAE) for name in other.content):
        raise CheckpointError(f"{vqvae_path}: expected a checkpoint of ours with a VQVAE. Name another file.")
    return other


def _part(file: TensorFile, prefix: str) -> Weights:
    found = {name.removeprefix(prefix): tensor for name, tensor in file.content.items() if name.startswith(prefix)}
    return Weights.of(file.path, prefix, found)


def _activated(config: ModelConfig, activation: Activation, path: Path) -> ModelConfig:
    if config.activation and config.activation.experts != activation.experts:
        raise CheckpointError(
            f"{path} has a router for {config.activation.experts} experts, and {activation.experts} were asked for. "
            "Ask for as many as it has, or start from a dense checkpoint."
        )
    for name in ("token_choice", "expert_choice") if config.activation else ():
        own, asked = getattr(config.activation, name), getattr(activation, name)
        if own != asked:
            raise CheckpointError(
                f"{path} was trained with a {own} {name}, and a {asked} one was asked for. "
                f"Ask for the {name} that it has, or start from a dense checkpoint."
            )
    try:
        return replace(config, activation=activation)
    except ValueError as error:
        raise UsageError(f"{path} cannot be activated so: {error}.") from None
