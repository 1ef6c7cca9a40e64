"""A model from its files, whoever wrote them: ours, official VAR's, or a self-trained official one.

Which adapter reads a file, its content tells: `own.py` or `official.py`, with `networks.py` for what is wrapped around
the latter. A file is not trusted: see `tensor_file.py` (formats), `pickled.py` (pickles) and `weights.py` (tensors).
PyTorch is needed for what it makes: a model in memory, scorers that are drawn anew, and its own files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.networks import networks
from actvar.checkpoint.official import derive_vqvae, own_names, read_official, require_same, schedule_of, without_hits
from actvar.checkpoint.own_file import is_own, read_own, read_own_vqvae
from actvar.checkpoint.tensor_file import open_tensor_file
from actvar.checkpoint.weights import Weights
from actvar.config import Activation, ModelConfig, VQVAEConfig
from actvar.errors import ArgumentError, CheckpointError, UsageError, counted, needs, shown
from actvar.parameters import is_scorer, parameter_shapes
from actvar.provenance import pasteable
from actvar.scales import ScaleSchedule

if TYPE_CHECKING:
    from actvar.models.actvar import ActVAR
    from actvar.models.vqvae import VQVAE


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint whose names, shapes and types were found right, and whose values are read one tensor at a time.

    Attributes:
        config: of the model.
        fresh: the routers and selectors that were drawn anew, because a dense checkpoint has none; by VAR's names.
    """

    config: ModelConfig
    fresh: Mapping[str, np.ndarray]
    _networks: Mapping[str, Weights]

    def read(self, name: str, copy: bool = False) -> np.ndarray:
        """One tensor in fp32.

        Args:
            name: as in `ActVAR.state_dict()`.
            copy: into memory of its own; otherwise what is fp32 may stay mapped from the file.

        Raises:
            CheckpointError: a value is not finite.
        """
        network, _, own_name = name.partition(".")
        if network == "var" and own_name in self.fresh:
            return self.fresh[own_name]
        return self._networks[network].read(own_name, copy)

    def load(self) -> "ActVAR":
        """The model in memory: fp32, on the CPU, in evaluation mode, without gradients.

        Raises:
            CheckpointError: a value is not finite.
        """
        import torch

        from actvar.models.actvar import empty_model

        model = empty_model(self.config)
        values = {name: torch.from_numpy(self.read(name, copy=True)) for name in parameter_shapes(self.config)}
        model.load_state_dict(values, strict=True, assign=True)
        return model.requires_grad_(False)


def open_checkpoint(checkpoint: Checkpoint, activation: Activation | None = None) -> StoredModel:
    """Open a checkpoint: ours, official VAR's, or a self-trained official one. No values are read.

    Args:
        checkpoint: its files, and what else is said of the model.
        activation: makes an ActVAR of a dense checkpoint; its router and selector are drawn anew, small and always the
            same. Of an ActVAR it replaces scales and rates; the number of experts and the choices must stay.

    Raises:
        CheckpointError: a file is missing, unreadable, hostile, incomplete, or does not fit; or it holds no small
            decoder.
        UsageError: the activation does not fit the model, or the file tells other token maps.
        ArgumentError: guidance cannot end at that scale of the model; a UsageError, too.
    """
    path, vqvae, schedule = checkpoint.path, checkpoint.vqvae, checkpoint.schedule
    file = open_tensor_file(path)
    if is_own(file):
        refuse_znorm(path, checkpoint.znorm)
        config, weights = read_own(file, vqvae, schedule)
    else:
        config, *both = read_official(file, vqvae, schedule, checkpoint.znorm)
        weights = dict(zip(("var", "vqvae"), both, strict=True))
    if checkpoint.decoder == "full":
        config = replace(config, small_decoder=None)
    elif config.small_decoder is None:
        make = pasteable("train", "decoder", "--model", path, "--tokens-dir", "TOKENS", "--out", "FOLDER")
        raise CheckpointError(f"{shown(vqvae or path)} holds no small decoder. Make one: {make}")
    is_dense = config.activation is None
    if activation:
        config = _activated(config, activation, path)
    try:
        config = config.guided_until(checkpoint.guidance_until)
    except ValueError as error:
        raise ArgumentError(f"{shown(path)} cannot be guided so: {error}.") from None
    if checkpoint.smooth is not None:
        config = replace(config, smooth=checkpoint.smooth)
    of_var = _expected(config, "var")
    if is_dense:
        of_var = {name: shape for name, shape in of_var.items() if not is_scorer(name)}
    weights["var"].require(of_var, f"a VAR of depth {config.depth}")
    weights["vqvae"].require(_expected(config, "vqvae"), "its VQVAE")
    if config.small_decoder:
        weights["small_decoder"].require(_expected(config, "small_decoder"), "its small decoder")
    fresh = _fresh_scorers(config) if is_dense and activation else {}
    return StoredModel(config, fresh, weights)


def load_checkpoint(checkpoint: Checkpoint, activation: Activation | None = None) -> "ActVAR":
    """Read a checkpoint into memory.

    Args and errors are those of `open_checkpoint`; a value that is not finite is refused, too.

    Returns: fp32, on the CPU, in evaluation mode, without gradients.
    """
    return open_checkpoint(checkpoint, activation).load()


def load_model(path: Path, vqvae: Path | None = None, activation: Activation | None = None) -> "ActVAR":
    """`load_checkpoint` of one or two files of which nothing else is said."""
    return load_checkpoint(Checkpoint(path, vqvae), activation)


def _expected(config: ModelConfig, network: str) -> dict[str, tuple[int, ...]]:
    """The shapes of one network's tensors, by its own names."""
    prefix = f"{network}."
    named = parameter_shapes(config).items()
    return {name.removeprefix(prefix): shape for name, shape in named if name.startswith(prefix)}


def _fresh_scorers(config: ModelConfig) -> dict[str, np.ndarray]:
    """Routers and selectors drawn anew; PyTorch's generator draws them, so that they are those of a training."""
    with needs("export", "to draw the routers and selectors that a dense checkpoint lacks"):
        from actvar.models.actvar import empty_model
        from actvar.models.var import fresh_scorers
    return {name: values.numpy() for name, values in fresh_scorers(empty_model(config).var).items()}


@dataclass(frozen=True)
class StoredVQVAE:
    """The VQVAE of a file: fp32, on the CPU, in evaluation mode, without gradients.

    `num_classes` is None for an official file of the VQVAE alone, which does not tell.
    """

    vqvae: "VQVAE"
    config: VQVAEConfig
    picture_size: int
    num_classes: int | None


def load_vqvae(path: Path, schedule: ScaleSchedule | None = None, znorm: bool = False) -> StoredVQVAE:
    """Read the VQVAE of a checkpoint into memory, and nothing else of it.

    Args:
        path: a checkpoint of ours that holds a VQVAE, official `vae_ch160v4096z32.pth`, or a self-trained official one.
        schedule: the token maps, where the file does not tell them; without it the ten standard ones.
        znorm: of an official VQVAE, which tells it nowhere: whether it was trained with `using_znorm`.

    Raises:
        CheckpointError: the file is missing, unreadable, hostile, incomplete, or holds no VQVAE.
        UsageError: the file tells other token maps.
    """
    import torch

    from actvar.models.actvar import without_values
    from actvar.models.vqvae import VQVAE

    file = open_tensor_file(path)
    own, num_classes = None, None
    if is_own(file):
        said, weights = read_own_vqvae(file)
        config = said.vqvae
        refuse_znorm(path, znorm)
        own, num_classes = said.schedule, said.num_classes
    else:
        var, found = networks(file)
        if found is None:
            raise CheckpointError(
                f"{shown(path)} holds no VQVAE. Name the official vae_ch160v4096z32.pth, or one of ours."
            )
        weights = own_names(without_hits(found))
        config = derive_vqvae(weights, znorm=znorm)
        if var:
            own, num_classes = schedule_of(var, schedule), var.shape("class_emb.weight", 2)[0] - 1
    if own:
        require_same(path, own, schedule)
    schedule = own or schedule or ScaleSchedule()
    with without_values():
        vqvae = VQVAE(config, schedule)
    weights.require({name: p.shape for name, p in vqvae.named_parameters()}, "a VQVAE")
    values = {name: torch.from_numpy(weights.read(name, copy=True)) for name in vqvae.state_dict()}
    vqvae.load_state_dict(values, assign=True)
    return StoredVQVAE(vqvae.eval().requires_grad_(False), config, schedule.side * config.downsampling, num_classes)


def refuse_znorm(path: Path, znorm: bool) -> None:
    """Refuse to be told what a checkpoint of ours says itself.

    Raises:
        UsageError: somebody tells.
    """
    if znorm:
        raise UsageError(f"--znorm is of official VQVAEs, and {shown(path)} says itself what its own is. Leave it out.")


def _activated(config: ModelConfig, activation: Activation, path: Path) -> ModelConfig:
    if config.activation and config.activation.experts != activation.experts:
        raise CheckpointError(
            f"{shown(path)} has a router for {counted(config.activation.experts, 'expert')}, and "
            f"{activation.experts} were asked for. Ask for as many as it has, or start from a dense checkpoint."
        )
    for name in ("token_choice", "expert_choice") if config.activation else ():
        own, asked = getattr(config.activation, name), getattr(activation, name)
        if own != asked:
            raise CheckpointError(
                f"{shown(path)} was trained with a {own} {name}, and a {asked} one was asked for. "
                f"Ask for the {name} that it has, or start from a dense checkpoint."
            )
    try:
        return replace(config, activation=activation)
    except ValueError as error:
        raise UsageError(f"{shown(path)} cannot be activated so: {error}.") from None
