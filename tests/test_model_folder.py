"""A folder with a VAR and its VQVAE in it is a model, here as on the Hub."""

import shutil
from pathlib import Path

import pytest
from hub_cache import HubCache
from huggingface_hub import constants
from small_checkpoints import official_files, own_file, sharded, tiny_var

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.folder import models_among, shards_of
from actvar.checkpoint.model import load_checkpoint
from actvar.errors import UsageError
from actvar.naming import named_model


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A folder as somebody downloads it: official VAR's two files, and what else there is."""
    folder = tmp_path / "official"
    folder.mkdir()
    official_files(folder)
    (folder / "README.md").touch()
    (folder / "logs").mkdir()
    return folder


def test_both_files_in_a_folder_are_a_model(both: Path):
    """Called like the folder, as one of the Hub is."""
    named = named_model(str(both))
    assert (named.name, named.checkpoint) == ("official", Checkpoint(both / "var_d1.pth", both / "vae.pth"))
    assert named.checkpoint and load_checkpoint(named.checkpoint).config.num_classes == 3


def test_a_sharded_model_is_found_by_its_index(both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its shards are no models of their own; on the Hub they are fetched with it."""
    (both / "var_d1.pth").unlink()
    index = sharded(both, tiny_var())
    named = named_model(str(both))
    assert named.checkpoint == Checkpoint(index, both / "vae.pth")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    cache = HubCache(tmp_path / "hub")
    cache.add("user/sharded", both)
    fetched = named_model("user/sharded", local_files_only=True)
    assert fetched.checkpoint and fetched.checkpoint.path.name == index.name
    assert fetched.checkpoint.digest() == named.checkpoint.digest()
    assert load_checkpoint(fetched.checkpoint).config.num_classes == 3


def test_another_vqvae_may_be_named(both: Path):
    """Also where there are several, of which nobody can tell which is meant."""
    other = both / "vae_other.pth"
    shutil.copy(both / "vae.pth", other)
    assert named_model(str(both), other).checkpoint == Checkpoint(both / "var_d1.pth", other)
    with pytest.raises(UsageError, match=r"official holds several VQVAEs: vae\.pth, vae_other\.pth\. Name the file"):
        named_model(str(both))


def test_several_models_must_be_told_apart(both: Path):
    shutil.copy(both / "var_d1.pth", both / "var_d2.pth")
    with pytest.raises(UsageError, match=r"several models: var_d1\.pth, var_d2\.pth\. .*official/var_d1\.pth\."):
        named_model(str(both))


def test_a_vqvae_that_is_missing_is_named(both: Path):
    (both / "vae.pth").unlink()
    with pytest.raises(UsageError, match=r"holds var_d1\.pth, and no VQVAE \(vae\*\.pth\) beside it\. Give one with"):
        named_model(str(both))
    (both / "var_d1.pth").unlink()
    with pytest.raises(UsageError, match=r"official is a folder and no bundle: it holds no manifest\.json"):
        named_model(str(both))


def test_a_checkpoint_of_ours_comes_first(both: Path):
    own = own_file(both)
    assert named_model(str(both)).checkpoint == Checkpoint(own)


def test_shards_are_those_of_their_own_index():
    files = [f"{stem}-0000{i}-of-00002.safetensors" for stem in ("a", "b") for i in (1, 2)]
    assert shards_of("a.safetensors.index.json", files) == files[:2] and shards_of(files[0], files) == []
    assert models_among(["a.safetensors.index.json", *files, "vae.pth"]) == ["a.safetensors.index.json", *files[2:]]
