"""Small checkpoints, ours and official VAR's, and how a test says that one is refused."""

import json
from pathlib import Path

import official_layout as official
import pytest
import torch
from official_layout import STANDARD
from safetensors.torch import save_file
from small_models import small_config, vivid_model
from torch import Tensor

from actvar.checkpoint.model import load_model
from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.errors import CheckpointError

SPARSE = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))
TINY_VQVAE = dict(ch=32, mult=(1, 2), blocks=1, V=24, E=4)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tiny_var(depth: int = 1, patch_nums: tuple[int, ...] = STANDARD, shared: bool = False) -> dict[str, Tensor]:
    """The state of a small official VAR, with its buffers."""
    shapes = official.var_shapes(depth, patch_nums, shared, classes=3, V=24, E=4)
    return official.filled(shapes) | official.var_buffers(depth, patch_nums)


def tiny_vqvae() -> dict[str, Tensor]:
    return official.filled(official.vqvae_shapes(**TINY_VQVAE), seed=1) | official.hits(V=24)


def official_files(folder: Path) -> tuple[Path, Path]:
    """Official files of a VAR of depth 1 and of its VQVAE."""
    torch.save(tiny_var(), folder / "var_d1.pth")
    torch.save(tiny_vqvae(), folder / "vae.pth")
    return folder / "var_d1.pth", folder / "vae.pth"


def own_file(folder: Path) -> Path:
    """A checkpoint of ours."""
    path = folder / "model.safetensors"
    save_model(vivid_model(SPARSE), path)
    return path


def sharded(folder: Path, state: dict[str, Tensor], count: int = 3) -> Path:
    """The state in several files, with their index, as the Hub has large models."""
    folder.mkdir(exist_ok=True)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, name in enumerate(names):
        save_file(dict(list(state.items())[i::count]), folder / name)
    where = {tensor: names[i % count] for i, tensor in enumerate(state)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def refused(message: str, path: Path, vqvae: Path | None = None) -> str:
    """The message with which a file is refused; it names the file, and is one of the user's."""
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(path, vqvae)
    text = str(error.value)
    assert str(path) in text or str(vqvae) in text
    assert text.endswith(".") and "\n" not in text
    return text
