"""A machine without PyTorch: what a checkpoint in safetensors becomes there is, byte for byte, what it becomes here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_checkpoints import SPARSE, tiny_var, tiny_vqvae
from small_models import small_config, vivid_model

from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_model, open_checkpoint
from actvar.checkpoint.own import save_model
from actvar.errors import CheckpointError
from actvar.export.onnx_export import export_bundle

WITHOUT_TORCH = """
import sys

class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refused())
from actvar.cli.main import main
main()
"""


def without_torch(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        env={**os.environ, "ACTVAR_CACHE": str(cache), "COLUMNS": "500"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def own(folder: Path) -> tuple[Path, ...]:
    save_model(vivid_model(SPARSE), folder / "own.safetensors")
    return (folder / "own.safetensors",)


def in_bf16(folder: Path) -> tuple[Path, ...]:
    save_model(vivid_model(small_config()), folder / "bf16.safetensors", torch.bfloat16)
    return (folder / "bf16.safetensors",)


def official(folder: Path) -> tuple[Path, ...]:
    """Converted from a `.pth`, to fp16, with the buffers in it."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in tiny_var().items()}
    save_file(half, folder / "var_d1.safetensors")
    save_file(tiny_vqvae(), folder / "vae.safetensors")
    return folder / "var_d1.safetensors", folder / "vae.safetensors"


def in_shards(folder: Path) -> tuple[Path, ...]:
    """Two of them, whose tensors lie at the same places."""
    var, where = tiny_var(), {}
    for i in range(2):
        part = dict(list(var.items())[i::2])
        save_file(part, folder / f"part-{i}.safetensors")
        where |= dict.fromkeys(part, f"part-{i}.safetensors")
    (folder / "var.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    save_file(tiny_vqvae(), folder / "vae.safetensors")
    return folder / "var.safetensors.index.json", folder / "vae.safetensors"


@pytest.mark.parametrize(
    ("files", "precision"),
    [(own, "fp32"), (own, "fp16-weights"), (in_bf16, "bf16"), (official, "fp16"), (in_shards, "fp32")],
)
def test_an_export_without_pytorch_is_the_same_to_the_byte(
    files: Callable[[Path], tuple[Path, ...]], precision: str, tmp_path: Path
):
    """Of our own checkpoints and official ones; here the model goes through PyTorch's memory, there it does not."""
    path, *vqvae = files(tmp_path)
    words = ["--model", path, *(("--vqvae", *vqvae) if vqvae else ()), "--precision", precision]
    done = without_torch("export", *words, "--out", tmp_path / "there", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    here = export_bundle(load_model(path, *vqvae), tmp_path / "here", precision, f"checkpoint {path.name}")
    assert read_manifest(tmp_path / "there") == here


@pytest.mark.slow
def test_the_first_picture_of_a_shipped_model_needs_no_pytorch(tmp_path: Path):
    """An empty cache, and PyTorch cannot be imported: the same picture as ever."""
    done = without_torch("generate", "--class", 88, "--out", tmp_path / "a.png", cache=tmp_path / "cache")
    assert done.returncode == 0 and "Exporting actvar_mini" in done.stderr, done.stderr
    with_torch = [sys.executable, "-c", "import torch; from actvar.cli.main import main; main()", "generate"]
    again = [*with_torch, "--class", "88", "--out", str(tmp_path / "b.png")]
    subprocess.run(again, env={**os.environ, "ACTVAR_CACHE": str(tmp_path / "another")}, check=True)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_does_need_pytorch_says_so_and_what_does_not(tmp_path: Path):
    """Its own files, int8's measuring, random weights, the reference itself."""
    (path,) = own(tmp_path)
    torch.save(tiny_var(), tmp_path / "var.pth")
    for words, said in (
        (("export", "--model", tmp_path / "var.pth"), "to read var.pth (a .safetensors file needs none)"),
        (("classes", "--model", tmp_path / "var.pth"), "to read var.pth (a .safetensors file needs none)"),
        (("export", "--model", path, "--precision", "int8"), "that int8 is measured with (other precisions need none)"),
        (("export", "--preset", "mini"), "to draw random weights (a .safetensors file needs none)"),
        (("generate", "--class", 1, "--model", path, "--backend", "torch"), "for --backend torch"),
    ):
        done = without_torch(*words, cache=tmp_path / "cache")
        assert done.returncode == 1 and "The package torch is needed" in done.stderr, done.stderr
        assert said in done.stderr and "pip install 'actvar-trt[" in done.stderr


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path):
    """Half of one checkpoint and half of another would draw something; a mapped file that is cut short kills."""
    (path,) = own(tmp_path)
    stored = open_checkpoint(Checkpoint(path))
    name = "var.head.weight"
    expected = load_model(path).read(name)
    np.testing.assert_array_equal(stored.read(name), expected)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="it was changed while it was read"):
        stored.read(name)
