"""Checkpoints in several files: what their index says is held to what is there, and leads nowhere else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_checkpoints import official_files, refused, same, sharded, tiny_var

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_model
from actvar.errors import CheckpointError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return official_files(tmp_path)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return sharded(tmp_path / "sharded", tiny_var())


def test_a_sharded_model_is_read_by_its_index(files, index):
    assert same(load_model(index, files[1]).state_dict(), load_model(*files).state_dict())


def test_every_shard_is_part_of_what_names_a_model(files, index):
    before = Checkpoint(index, files[1]).digest()
    last = sorted(index.parent.glob("*.safetensors"))[-1]
    state = load_file(last)
    save_file({name: value + 1 if value.is_floating_point() else value for name, value in state.items()}, last)
    assert Checkpoint(index, files[1]).digest() != before


def test_a_hub_s_cache_has_its_shards_elsewhere(files, index, tmp_path):
    """`snapshots/REVISION` holds links to `blobs`; its index is one, too."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(index.parent.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(i))
    assert same(load_model(snapshot / index.name, files[1]).state_dict(), load_model(*files).state_dict())


def changed_index(index: Path, change: Callable[[dict[str, str]], object]) -> Path:
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    return index


@pytest.mark.parametrize(
    "name",
    [
        *("../other.safetensors", "/tmp/other.safetensors", "a/b.safetensors", "..", ".hidden.safetensors"),
        *(
            "a\\b.safetensors",
            "a\0.safetensors",
            "\x1b[2J.safetensors",
            "x" * 300 + ".safetensors",
        ),
    ],
)
def test_an_index_names_files_beside_it_and_no_others(index, tmp_path, name):
    shutil.copy(next(index.parent.glob("*.safetensors")), tmp_path / "other.safetensors")
    text = refused(
        "names the file .* which is not beside it", changed_index(index, lambda m: m.update({"head.bias": name}))
    )
    assert text.isprintable()
    text.encode()


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(index, tmp_path):
    shard = next(index.parent.glob("*.safetensors"))
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    refused("a link that leads out of the folder", index)


def test_shards_that_are_not_what_the_index_says_are_refused(index, files):
    shards = sorted(path.name for path in index.parent.glob("*.safetensors"))
    where = json.loads(index.read_text())["weight_map"]
    with pytest.raises(CheckpointError, match=r"holds head\.bias, which model\.safetensors\.index\.json does not say"):
        load_model(changed_index(index, lambda m: m.pop("head.bias")))
    changed_index(index, lambda m: m.update(where | {"another": shards[0]}))
    with pytest.raises(CheckpointError, match=r"lacks another, which .* says it holds"):
        load_model(index)
    changed_index(index, lambda m: m.pop("another"))
    (index.parent / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1]}, which .* names, is missing\. Fetch"):
        load_model(index)
    with pytest.raises(CheckpointError, match="is missing"):
        Checkpoint(index).digest()
    (index.parent / shards[1]).mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        load_model(index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no valid JSON"),
        ("{", "is no valid JSON"),
        ("[" * 100_000, "is no valid JSON"),
        ("[]", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "has no weight_map"),
        (r'{"weight_map": {"a": "\ud800.safetensors"}}', r"is no valid JSON \(.*surrogate"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "two fields of the same name"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "only shards in safetensors are read"),
        (json.dumps({"weight_map": {f"a{i}": f"{i}.safetensors" for i in range(1001)}}), "names 1001 files"),
        (" " * (16 << 20) + "{}", "is larger than"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path, text, message):
    (tmp_path / "model.index.json").write_text(text)
    refused(message, tmp_path / "model.index.json")
