"""`actvar-trt encode` as a person uses it: folders and glyphs, shards, what was skipped, wrong options."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, in_process
from official_layout import STANDARD, filled, hits, var_buffers, var_shapes, vqvae_shapes
from PIL import Image
from small_models import small_config, vivid_model

from actvar.checkpoint.model import load_model, load_vqvae
from actvar.checkpoint.own import save_model
from actvar.data.tokens import open_token_store, vqvae_hash
from actvar.errors import CheckpointError, UsageError
from actvar.scales import ScaleSchedule

CLASSES, EACH, SIDE = 5, 3, 10


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads for maps of ten pixels wait for each other eight times as long as they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of five classes and pictures of ten pixels."""
    path = tmp_path_factory.mktemp("encode") / "small.safetensors"
    save_model(vivid_model(small_config()), path, torch.float32)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Fifteen JPEGs to train on, and five to validate."""
    rng = np.random.default_rng(0)
    for split, each in (("train", EACH), ("val", 1)):
        for class_id in range(CLASSES):
            folder = tmp_path / "data" / split / f"n{class_id}"
            folder.mkdir(parents=True)
            for i in range(each):
                image = Image.fromarray(rng.integers(0, 256, (14, 12, 3), np.uint8))
                image.save(folder / f"{i}.JPEG", quality=95)
    return tmp_path / "data"


@pytest.fixture
def encode(data: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Command:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(data.parent)
    return in_process(monkeypatch, capsys, "encode", "--data", data, "--vqvae", checkpoint, "--batch-size", 4)


def test_a_folder_becomes_its_tokens(encode: Command, data: Path, checkpoint: Path):
    """Those of the middle of each picture, decoded and encoded here one by one."""
    code, out, err = encode("--out", "val", "--split", "val")
    assert (code, out) == (0, f"val: 5 pictures of {data}, 0 skipped\n")
    assert re.search(r"Encoded 5 of them in \d+\.\d s, \d+\.\d a second", err)
    vqvae = load_model(checkpoint).vqvae
    store = open_token_store(Path("val"), vqvae)
    for class_id in range(CLASSES):
        image = Image.open(data / f"val/n{class_id}/0.JPEG").resize((11, 12), Image.Resampling.LANCZOS)
        pixels_HW3 = np.asarray(image)[1:11, 0:10]
        picture_13HW = torch.from_numpy(pixels_HW3.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        assert np.mean(store.token_ids[class_id] == vqvae.encode(picture_13HW)[0].numpy()) > 0.95
        assert store.class_ids[class_id] == class_id


def test_a_corrupt_picture_is_named_counted_and_left_out(encode: Command, data: Path):
    """Exit code 0: one of a million is no failure; and a second call names it again."""
    (data / "train/n1/0.JPEG").write_bytes(b"nothing")
    for _ in range(2):
        code, out, err = encode("--out", "tokens", "--flips")
        assert (code, out) == (0, f"tokens: 15 pictures of {data}, 1 skipped\n")
        assert "Skipped n1/0.JPEG: cannot identify image file" in err
    store = open_token_store(Path("tokens"))
    assert store.class_ids.tolist() == [0] * 6 + [1] * 4 + [2] * 6 + [3] * 6 + [4] * 6
    [record] = [json.loads(path.read_text()) for path in Path("tokens").glob("tokens_*.json")]
    assert [(skip["number"], skip["name"]) for skip in record["skipped"]] == [(3, "n1/0.JPEG")]


def test_shards_say_what_part_of_it_they_are(encode: Command):
    """Fewer chunks than shards here: the second has nothing to do, and that is no error."""
    assert encode("--out", "tokens", "--shard", "0/2")[1].startswith("tokens: shard 0/2, 15 of 15 pictures")
    assert encode("--out", "tokens", "--shard", "1/2")[:2] == (0, encode("--out", "tokens", "--shard", "1/2")[1])
    assert len(open_token_store(Path("tokens"))) == 15


def test_seed_and_count_are_part_of_what_a_store_is(encode: Command):
    assert encode("--out", "tokens", "--count", 10)[0] == 0
    assert open_token_store(Path("tokens")).class_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    code, _, err = encode("--out", "tokens", "--count", 10, "--seed", 1)
    assert code == 1 and "tokens holds other tokens (data's seed 0 -> 1)" in err
    code, _, err = encode("--out", "tokens")
    assert code == 1 and "pictures 10 -> 15" in err


def test_glyphs_need_no_files(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    """With the package's own VQVAE; the held-out ones are others."""
    monkeypatch.chdir(tmp_path)
    run = in_process(monkeypatch, capsys, "encode", "--data", "glyphs", "--count", 2)
    assert run("--out", "a")[:2] == (0, "a: 2 pictures of glyphs, 0 skipped\n")
    assert run("--out", "b", "--split", "val")[0] == 0
    train, held_out = open_token_store(Path("a")), open_token_store(Path("b"))
    assert train.class_ids.tolist() == held_out.class_ids.tolist() == [0, 1]
    assert not np.array_equal(train.token_ids[:], held_out.token_ids[:])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--shard", "4/4"], 2, "--shard must be I/N with I from 0 to N-1"),
        (["--shard", "1"], 2, "--shard must be I/N"),
        (["--device", "tpu"], 2, "--device must be cpu, cuda or cuda:0 and up"),
        (["--device", "cuda:999"], 1, "no cuda:999"),
        (["--patch-nums", "1,2"], 2, "has its own patch_nums"),
        (["--patch-nums", "2,1"], 2, "--patch-nums 2,1: patch_nums must be"),
        (["--classes", "1000"], 1, "expected 1000 class folders, as the model has classes, found 5 (n0, n1, n2, …)"),
        (["--count", "16"], 1, "holds 15 pictures, 16 were asked for"),
        (["--count", "0"], 2, "--count"),
        (["--split", "test"], 2, "--split"),
        (["--data", "elsewhere"], 1, "elsewhere: expected train/<class>/*.JPEG, found no such folder"),
        (["--vqvae", "missing.pth"], 1, "missing.pth does not exist"),
        (["--data", "glyphs"], 2, "Glyphs are 64 pixels wide, and this VQVAE reads 10"),
        (["--data", "glyphs", "--flips"], 2, "--flips is for folders"),
        (["--data", "glyphs", "--classes", "7"], 2, "--classes is for folders"),
    ],
)
def test_what_cannot_be_encoded_leaves_nothing(encode: Command, arguments: list, code: int, message: str):
    ended, out, err = encode("--out", "tokens", *arguments)
    assert (ended, out) == (code, "") and message in err and len(err.splitlines()) == 1
    assert not Path("tokens").exists()


def test_a_folder_needs_a_vqvae(monkeypatch: pytest.MonkeyPatch, capsys, data: Path):
    code, _, err = in_process(monkeypatch, capsys, "encode", "--data", data)("--out", "tokens")
    assert code == 2 and "--vqvae is needed to encode a folder" in err


def test_an_out_that_is_a_file_is_said(encode: Command):
    Path("tokens").write_text("mine")
    code, _, err = encode("--out", "tokens")
    assert code == 1 and "cannot be" in err and Path("tokens").read_text() == "mine"


# ---- the VQVAE of a file

SMALL = {"ch": 32, "mult": (1, 1), "blocks": 1, "V": 48, "E": 6}


def test_the_vqvae_of_every_kind_of_file_is_found(tmp_path: Path, checkpoint: Path):
    """Ours; official, alone or beside its VAR; with what each tells of token maps and classes."""
    ours = load_vqvae(checkpoint)
    assert (ours.picture_size, ours.num_classes) == (SIDE, CLASSES)
    assert vqvae_hash(ours.vqvae) == vqvae_hash(vivid_model(small_config()).vqvae)

    weights = filled(vqvae_shapes(**SMALL))
    torch.save({**weights, **hits(48)}, tmp_path / "vae.pth")
    alone = load_vqvae(tmp_path / "vae.pth")
    assert (alone.picture_size, alone.num_classes) == (32, None)
    assert alone.vqvae.quantize.schedule.patch_nums == STANDARD
    assert load_vqvae(tmp_path / "vae.pth", ScaleSchedule((1, 2, 24))).picture_size == 48
    assert all(torch.equal(value, weights[name]) for name, value in alone.vqvae.state_dict().items())

    patch_nums = (1, 2, 3)
    var = {**filled(var_shapes(1, patch_nums, classes=7, V=48, E=6)), **var_buffers(1, patch_nums)}
    torch.save({"trainer": {"var_wo_ddp": var, "vae_local": weights}}, tmp_path / "trained.pth")
    trained = load_vqvae(tmp_path / "trained.pth")
    assert (trained.picture_size, trained.num_classes) == (6, 7)
    assert vqvae_hash(trained.vqvae) == vqvae_hash(alone.vqvae)


def test_a_file_without_a_whole_vqvae_is_refused(tmp_path: Path, checkpoint: Path):
    weights = filled(vqvae_shapes(**SMALL))
    torch.save(filled(var_shapes(1, (1, 2, 3), classes=7, V=48, E=6)), tmp_path / "var.pth")
    with pytest.raises(CheckpointError, match=r"var\.pth holds no VQVAE"):
        load_vqvae(tmp_path / "var.pth")
    torch.save({name: value for name, value in weights.items() if name != "quant_conv.bias"}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"quant_conv\.bias: expected the shape \[6\], found no such tensor"):
        load_vqvae(tmp_path / "part.pth")
    save_model(vivid_model(small_config()), tmp_path / "alone.safetensors", torch.float32, with_vqvae=False)
    with pytest.raises(CheckpointError, match="holds no VQVAE"):
        load_vqvae(tmp_path / "alone.safetensors")
    with pytest.raises(UsageError, match=r"has its own patch_nums, \(1, 2, 3, 5\)"):
        load_vqvae(checkpoint, ScaleSchedule())
