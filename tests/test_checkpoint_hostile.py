"""Checkpoints that are broken or hostile: none runs, hangs or takes memory, and each is refused by a message."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import official_files, own_file, refused, tiny_var, tiny_vqvae

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_model
from actvar.errors import CheckpointError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return official_files(tmp_path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return own_file(tmp_path)


def test_what_is_no_file_is_refused(tmp_path):
    refused("does not exist. Name a checkpoint", tmp_path / "nothing.pth")
    refused("is a folder. Name a checkpoint", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refused("is no plain file", tmp_path / "pipe")
    refused("cannot be read: File name too long", tmp_path / ("x" * 300))
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(CheckpointError):
            Checkpoint(path).digest()


@pytest.mark.parametrize("name", ["old.pth", "new.pth", "own.safetensors"])
def test_a_name_that_is_not_utf_8_is_told_as_such(tmp_path, name):
    """Nothing is wrong with the file, and no library can be given such a name."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    own_file(tmp_path).rename(folder / "own.safetensors")
    for form in ("old", "new"):
        torch.save(tiny_var(), tmp_path / form, _use_new_zipfile_serialization=form == "new")
        (tmp_path / form).rename(folder / f"{form}.pth")
    with pytest.raises(CheckpointError, match=r"/caf\\udce9/.* has a name that is not UTF-8\. Rename the file"):
        load_model(folder / name)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"a letter to a friend", b"\x89PNG\r\n\x1a\n" + bytes(50)])
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_what_is_no_checkpoint_at_all_is_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    refused("cannot be read as a checkpoint|is refused: what|is not a whole safetensors file", tmp_path / name)


def test_a_pickle_of_something_else_is_refused(tmp_path):
    torch.save([torch.ones(3)], tmp_path / "list.pth")
    refused("holds list where a checkpoint has tensors by name", tmp_path / "list.pth")
    torch.save({3: torch.ones(3)}, tmp_path / "numbers.pth")
    refused("tensors by name", tmp_path / "numbers.pth")


def test_a_truncated_file_is_refused_wherever_it_was_cut(files, own, tmp_path):
    """A download that broke off: in the header, in the pickle, in the values, in the zip's directory."""
    for path, vqvae in ((own, None), (files[0], files[1])):
        raw, cut = path.read_bytes(), tmp_path / f"cut-{path.name}"
        for size in {*range(1, len(raw), len(raw) // 23), len(raw) - 1}:
            cut.write_bytes(raw[:size])
            with pytest.raises(CheckpointError, match="cut-"):
                load_model(cut, vqvae)


def with_header(path: Path, header: bytes, length: int | None = None) -> Path:
    """A safetensors file with another header, and, if wanted, a wrong length of it."""
    raw = path.read_bytes()
    old = struct.unpack("<Q", raw[:8])[0]
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + raw[8 + old :])
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 9999999999]}}',
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"format": 3}}',
    ],
)
def test_a_safetensors_header_is_held_to_its_file(own, header):
    refused("is not a whole safetensors file", with_header(own, header))


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9])
def test_a_header_longer_than_its_file_is_refused_before_it_is_read(own, length):
    refused("is not a whole safetensors file", with_header(own, b"{}", length))


def test_flipped_bits_are_refused_or_harmless_but_never_crash(files, own, tmp_path):
    """Whatever a damaged header or pickle says, the user sees a message and no traceback."""
    generator = torch.Generator().manual_seed(0)
    for path, vqvae in ((own, None), (files[0], files[1])):
        raw, damaged = path.read_bytes(), tmp_path / f"damaged-{path.name}"
        places = torch.randint(2000, (20,), generator=generator).tolist()  # safetensors' header, torch's pickle
        places += [len(raw) - 1 - place for place in torch.randint(2000, (10,), generator=generator).tolist()]
        outcomes = set()
        for place in places:
            damaged.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
            try:
                load_model(damaged, vqvae)
                outcomes.add("loaded")
            except CheckpointError:
                outcomes.add("refused")
        assert outcomes == {"loaded", "refused"}


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_evil(path: Path, form: str, evil: Evil) -> None:
    content = {"head.weight": torch.ones(3), "x": evil}
    if form == "zip":
        torch.save(content, path)
    elif form == "zip, nested":
        torch.save({"trainer": {"var_wo_ddp": tiny_var() | {"x": evil}, "vae_local": tiny_vqvae()}}, path)
    elif form == "old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"x": evil}, protocol=int(form)))


@pytest.mark.parametrize("form", ["zip", "zip, nested", "old", "0", "2", "4"])
@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, form, name):
    """As torch.save writes it, in either format, or a plain pickle of protocol 0, 2 or 4; whatever its name says."""
    marker, path = tmp_path / "ran", tmp_path / name
    write_evil(path, form, Evil(marker))
    text = refused("is not a whole safetensors file" if path.suffix == ".safetensors" else "is refused", path)
    assert not marker.exists()
    if path.suffix == ".pth" and form not in ("0", "4"):  # of other protocols torch reads nothing at all
        assert "beside tensors it asks for posix.system, which could run code, and was not run" in text
    if form in ("0", "2", "4"):  # the danger is real: pickle's own loader runs it
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_evil_given_as_the_vqvae_is_refused_too(files, tmp_path):
    write_evil(files[1], "zip", Evil(tmp_path / "ran"))
    refused(r"vae\.pth is refused: .* posix\.system", *files)
    assert not (tmp_path / "ran").exists()


def test_a_state_that_holds_itself_does_not_hang(tmp_path):
    state: dict[str, Any] = {"trainer": {}}
    state["trainer"]["var_wo_ddp"] = state["trainer"]["trainer"] = state["trainer"]
    torch.save(state, tmp_path / "loop.pth")
    refused("expected a tensor, found dict", tmp_path / "loop.pth")


def test_a_tensor_larger_than_its_file_takes_no_memory(files):
    """A view with stride 0 may claim any shape; also where the shape alone would tell the model."""
    for name, shape in (("head.bias", (2**40,)), ("lvl_1L", (1, 2**40)), ("pos_1LC", (1, 2**40, 64))):
        torch.save(tiny_var() | {name: torch.ones(1).expand(shape)}, files[0])
        refused(rf"{name}: expected a dense tensor with all its values, found float32 of the shape", *files)
