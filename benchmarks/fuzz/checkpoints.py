"""Checkpoints in PyTorch's own two forms, as a model's name leads to them."""

import random
from pathlib import Path

import torch

from actvar.benchmarks.fuzz.doors import through
from actvar.benchmarks.fuzz.older_form import save_older
from actvar.benchmarks.fuzz.torch_changes import change_archive, change_archive_s_pickle, change_row, change_tensors
from actvar.checkpoint.model import load_model, load_vqvae
from actvar.config import ModelConfig, VQVAEConfig
from actvar.models.actvar import random_model
from actvar.naming import named_model
from actvar.scales import ScaleSchedule
from actvar.told_model import told_config

FOLLOWS_LINKS = True  # of the file itself, which may lie in a download's cache

CONFIG = ModelConfig(
    1,
    ScaleSchedule((1, 2, 3)),
    3,
    vqvae=VQVAEConfig(vocab_size=24, z_channels=4, ch=32, ch_mult=(1, 2), num_res_blocks=1),
)
_CHANGES = {
    "pickle": change_archive_s_pickle,
    "archive": change_archive,
    "tensors": change_tensors,
    "older": change_row,
}


def samples(folder: Path) -> list[Path]:
    """A self-trained official file for each way to change it."""
    var, vqvae = official_states()
    content = {"epoch": 3, "trainer": {"var_wo_ddp": var, "vae_local": vqvae, "config": {"prog_it": 0}}}
    paths = [folder / f"{name}.pth" for name in _CHANGES]
    for path in paths:
        save = save_older if path.stem == "older" else torch.save
        save(content, path)
    return paths


def official_states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A small VAR and its VQVAE, each by the names that official VAR gives."""
    state = random_model(CONFIG).state_dict()
    var = {name.removeprefix("var."): value for name, value in state.items() if name.startswith("var.")}
    vqvae = {name.removeprefix("vqvae."): value for name, value in state.items() if name.startswith("vqvae.")}
    var["lvl_1L"] = torch.arange(3).repeat_interleave(torch.tensor(CONFIG.schedule.tokens))[None]
    return var, vqvae


def mutate(path: Path, rng: random.Random) -> None:
    """Change the file in the way that its name says."""
    _CHANGES[path.stem](path, rng)


def read(path: Path) -> None:
    """Look at what it says of itself, and read the model; and its VQVAE alone, as `encode` does."""
    through(lambda: told_config(named_model(str(path))), lambda: load_model(path), lambda: load_vqvae(path))
