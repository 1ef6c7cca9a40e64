"""A VAR of one's own pictures: what its training is given, and what it leaves."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from actvar.checkpoint.model import load_vqvae
from actvar.checkpoint.own import save_model
from actvar.class_names import IMAGENET_CLASSES, imagenet_names
from actvar.config import ModelConfig
from actvar.data.store_plan import read_plan
from actvar.data.tokens import TokenStore, open_token_store
from actvar.models.actvar import empty_model
from actvar.models.var import VAR
from actvar.models.vqvae import VQVAE
from actvar.scales import ScaleSchedule


@dataclass(frozen=True)
class OwnTokens:
    """What a VAR is trained on: tokens, the VQVAE that they are of, and the dense model that they make."""

    store: TokenStore
    vqvae: VQVAE
    config: ModelConfig


def open_own_tokens(folder: Path, vqvae: Path, znorm: bool, depth: int) -> OwnTokens:
    """The tokens of a folder, and a model of so many blocks for their classes.

    Raises:
        DataError: they are not whole, or of another VQVAE.
        CheckpointError: the VQVAE cannot be read.
        UsageError: its file tells other token maps.
    """
    schedule = ScaleSchedule(read_plan(folder).patch_nums)
    stored = load_vqvae(vqvae, schedule, znorm)
    store = open_token_store(folder, stored.vqvae)
    classes = store.num_classes or int(store.class_ids.max()) + 1
    config = ModelConfig(depth, schedule, classes, vqvae=stored.config)
    return OwnTokens(store, stored.vqvae, replace(config, class_names=names_of_store(config, store)))


def write_var(folder: Path, var: VAR, vqvae: VQVAE) -> Path:
    """Write a VAR and its VQVAE, in fp32; returns the file.

    Raises:
        CheckpointError: it cannot be written.
    """
    model = empty_model(var.config)
    model.var, model.vqvae = var, vqvae
    save_model(model, folder / "var.safetensors", torch.float32)
    return folder / "var.safetensors"


def names_of_store(config: ModelConfig, store: TokenStore) -> tuple[str, ...]:
    """The model's own names of classes, or else those of the folders that its pictures were in.

    Classes that are ImageNet's, in folders that are called by their WordNet ids, need none: see `actvar.classes`.
    """
    names = store.class_names
    if config.class_names or len(names) != config.num_classes:
        return config.class_names
    of_imagenet = len(names) == IMAGENET_CLASSES and names == tuple(of_class[-1] for of_class in imagenet_names())
    return () if of_imagenet else names
