"""Checkpoints of our own, read: safetensors with the configuration in the metadata.

The tensors are those of `ActVAR` under their own names (`var.*`, `vqvae.*`, `small_decoder.*`). A file is not trusted:
see `tensor_file.py` and `weights.py`. `own.py` writes them.
"""

from dataclasses import replace
from pathlib import Path

from actvar.bundle.json_form import parse_json
from actvar.checkpoint.official import derive_config, derive_vqvae, require_same
from actvar.checkpoint.tensor_file import TensorFile, open_tensor_file
from actvar.checkpoint.weights import Weights
from actvar.config import ModelConfig
from actvar.errors import CheckpointError, shown
from actvar.scales import ScaleSchedule

FORMAT, VERSION = "actvar-checkpoint", "1"
VAR_PREFIX, VQVAE_PREFIX, SMALL_PREFIX = "var.", "vqvae.", "small_decoder."


def is_own(file: TensorFile) -> bool:
    """Whether a file says that it is one of ours."""
    return file.metadata.get("format") == FORMAT


def read_own_vqvae(file: TensorFile) -> tuple[ModelConfig, Weights]:
    """What a checkpoint of ours says of its model, and its VQVAE.

    Raises:
        CheckpointError: it holds none, or one of another shape.
    """
    said = own_config(file)
    weights = _part(_file_with_vqvae(file, None), VQVAE_PREFIX)
    config = derive_vqvae(weights, said.vqvae.norm_groups, said.vqvae.znorm)
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
    var, vqvae = _part(file, VAR_PREFIX), _part(other, VQVAE_PREFIX)
    derived = derive_config(var, vqvae, config.schedule, config.vqvae.norm_groups, config.vqvae.znorm)
    for field in ("depth", "num_classes", "shared_adaln", "vqvae"):
        said, found = getattr(config, field), getattr(derived, field)
        if said != found:
            raise CheckpointError(
                f"{shown(file.path)}: {field}: expected {said}, as its metadata say, found tensors of {found}. "
                "Write it again."
            )
    networks = {"var": var, "vqvae": vqvae, **({"small_decoder": _part(other, SMALL_PREFIX)} if small else {})}
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
    known = (VAR_PREFIX, VQVAE_PREFIX, *((SMALL_PREFIX,) if config.small_decoder else ()))
    if other := next((name for name in file.content if not name.startswith(known)), None):
        raise CheckpointError(
            f"{shown(file.path)}: {shown(other)}: expected names in {' or '.join(name[:-1] for name in known)}, found "
            "another. Write it again."
        )
    return config


def _file_with_vqvae(file: TensorFile, vqvae_path: Path | None) -> TensorFile:
    """The checkpoint itself, or the other one of ours that was named for it."""
    has_vqvae = any(name.startswith(VQVAE_PREFIX) for name in file.content)
    if has_vqvae and vqvae_path:
        raise CheckpointError(
            f"{shown(file.path)} holds a VQVAE of its own, and {shown(vqvae_path)} was given too. Leave the latter out."
        )
    if has_vqvae:
        return file
    if vqvae_path is None:
        raise CheckpointError(f"{shown(file.path)} holds no VQVAE. Name a checkpoint that holds its VQVAE, too.")
    other = open_tensor_file(vqvae_path)
    if not is_own(other) or not any(name.startswith(VQVAE_PREFIX) for name in other.content):
        raise CheckpointError(f"{shown(vqvae_path)}: expected a checkpoint of ours with a VQVAE. Name another file.")
    return other


def _part(file: TensorFile, prefix: str) -> Weights:
    found = {name.removeprefix(prefix): tensor for name, tensor in file.content.items() if name.startswith(prefix)}
    return Weights.of(file.path, prefix, found)
