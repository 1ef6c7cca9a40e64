"""Files that are no checkpoint: each is refused by what it is, with what to do about it."""

import gzip
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_checkpoints import official_files, refused, tiny_var

from actvar.checkpoint.model import load_model
from actvar.errors import CheckpointError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return official_files(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 1241\n"
TAR = b"data.pkl".ljust(257, b"\0") + b"ustar\x0000" + bytes(248)


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, r"it is a git-lfs pointer, which stands for .* Run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html><head>", "it is a web page"),
        (b"\xef\xbb\xbf\n  <html lang=en>", "it is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page"),
        (b"Entry not found", "it is a text that begins with 'Entry not found'. Download the file itself"),
        (b"no\x1b", "is refused|not a whole safetensors file"),
        (b'{"error": "Repository not found"}', "it is JSON"),
        (
            gzip.compress(b"weights", mtime=0),
            r"it is compressed with gzip\. Unpack it first: gunzip model\.(pth|safetensors)\.",
        ),
        (b"BZh91AY&SY", "it is compressed with bzip2"),
        (b"\xfd7zXZ\0\0", "it is compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x00", "it is compressed with zstd"),
        (b"\x08\x08\x12\x07pytorch\x1a\x032.1", "it is an ONNX graph. Name the bundle's folder"),
        (TAR, "it is a tar archive"),
        (b"\x93NUMPY\x01\0", "it is a numpy array"),
        (b"GGUF\3\0\0\0", "it is a GGUF file"),
        (b"", "it is empty"),
    ],
)
def test_a_file_that_is_something_else_is_refused_by_what_it_is(tmp_path, name, content, message):
    """Whatever its name says. Told that "what it holds was not run", nobody knows what to do."""
    (tmp_path / name).write_bytes(content)
    refused(message, tmp_path / name)


def test_an_onnx_file_is_one_by_its_name_too(tmp_path):
    (tmp_path / "model.onnx").write_bytes(bytes(range(200, 256)))
    refused("it is an ONNX graph", tmp_path / "model.onnx")


def test_a_text_is_quoted_with_its_control_characters_escaped(tmp_path):
    (tmp_path / "a.pth").write_text("Bad\u202e gateway\n\nat noon")
    refused("cannot be read as a checkpoint|is refused", tmp_path / "a.pth")
    (tmp_path / "a.pth").write_text("Bad gateway\n\nat noon")
    refused("begins with 'Bad gateway at noon'", tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_zip_archives_are_refused_by_what_they_hold(tmp_path, files):
    """A TorchScript program, numpy's, and a checkpoint that was packed once more."""
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(module, str(tmp_path / "program.pth"))
    refused("it is a TorchScript program", tmp_path / "program.pth")
    with (tmp_path / "arrays.pth").open("wb") as file:
        np.savez(file, a=np.ones(3))
    refused(r"it is an \.npz archive of numpy arrays", tmp_path / "arrays.pth")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(files[0], "var_d1.pth")
    refused(r"a zip archive that torch\.save did not write \(its first members: var_d1\.pth\)", tmp_path / "packed.pth")


def test_a_pytorch_file_that_is_called_safetensors_is_told_so(tmp_path, files):
    shutil.copy(files[0], tmp_path / "var.safetensors")
    refused(r"It begins as PyTorch's files do: give it a name that ends with \.pth\.", tmp_path / "var.safetensors")


def test_a_folder_is_told_what_it_holds(tmp_path, files):
    refused(r"is a folder\. Name a checkpoint: a \.safetensors or \.pth file, such as its vae\.pth\.", tmp_path)
    (tmp_path / "sharded").mkdir()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / "sharded" / name).touch()
    refused(r"such as its model\.safetensors\.index\.json\.", tmp_path / "sharded")
    (tmp_path / "empty").mkdir()
    refused(r"is a folder\. Name a checkpoint: a \.safetensors or \.pth file\.", tmp_path / "empty")


def test_a_path_with_a_zero_in_it_is_refused():
    with pytest.raises(CheckpointError, match=r"a\\x00b cannot be read"):
        load_model(Path("a\0b"))


def test_names_of_files_and_tensors_are_shown_and_not_obeyed(tmp_path, files):
    """A terminal obeys an escape sequence, and cannot be sent a lone surrogate."""
    path = tmp_path / "a\x1b[31m\nb.pth"
    torch.save(tiny_var() | {"head.\x1b[2J\ud800": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"expected no such tensor") as error:
        load_model(path, files[1])
    assert str(error.value).isprintable()
    assert r"a\x1b[31m\nb.pth: head.\x1b[2J\ud800: expected no such tensor" in str(error.value)
