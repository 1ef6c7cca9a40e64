"""Token stores: what is read from one, whoever made it and however often they were stopped, and what is refused."""

import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import SMALL_VQVAE, small_config, vivid_model

from actvar.config import MINI, ModelConfig
from actvar.data import tokens
from actvar.data.encoding import EncodeSettings, build_token_store, encode_pictures
from actvar.data.glyphs import GlyphPictures, glyph_batch
from actvar.data.pictures import PictureBatch, SkippedPicture
from actvar.data.store_plan import StorePlan, claim_folder
from actvar.data.token_files import ChunkRecord, write_chunk
from actvar.data.tokens import TokenStore, open_token_store
from actvar.distill.mini import MiniRecipe
from actvar.errors import DataError
from actvar.files import locked
from actvar.models.actvar import random_model
from actvar.models.vqvae import VQVAE
from actvar.training.loop import autocast

CHUNKS = EncodeSettings(chunk=4, batch=3)
COUNT, SIDE = 18, 10


@dataclass(frozen=True)
class Noise:
    """Pictures of noise of five classes in turn; those of `bad` cannot be used."""

    count: int = COUNT
    bad: tuple[int, ...] = ()

    @property
    def identity(self) -> dict[str, object]:
        return {"name": "noise", "pictures": self.count}

    @property
    def class_names(self) -> tuple[str, ...]:
        return ()

    def __len__(self) -> int:
        return self.count

    def picture(self, number: int) -> torch.Tensor:
        return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(number)) * 2 - 1

    def load(self, numbers: range) -> PictureBatch:
        pictures = [torch.zeros(3, SIDE, SIDE) if i in self.bad else self.picture(i) for i in numbers]
        skipped = tuple(SkippedPicture(i, f"{i}.png", "torn") for i in numbers if i in self.bad)
        return PictureBatch(torch.stack(pictures), torch.tensor([i % 5 for i in numbers]), skipped)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads for maps of ten pixels wait for each other eight times as long as they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    return vivid_model(small_config()).vqvae


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a store is: its files by name, without locks."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".lock"}


# ---- what a store holds


def test_a_store_holds_each_pictures_own_tokens(vqvae: VQVAE, tmp_path: Path):
    """Against the encoder, picture by picture; any order, single rows and slices, across the files' borders."""
    store = build_token_store(tmp_path, vqvae, Noise(), CHUNKS)
    expected_NT = np.stack([vqvae.encode(Noise().picture(i)[None])[0].numpy() for i in range(COUNT)])
    assert len(store) == COUNT and store.token_ids.shape == expected_NT.shape
    token_ids_NT, class_ids_N = store.batch(torch.tensor([17, 3, 4, 3, 0, 11]))
    assert (token_ids_NT.dtype, class_ids_N.tolist()) == (torch.int64, [2, 3, 4, 3, 0, 1])
    assert np.array_equal(token_ids_NT, expected_NT[[17, 3, 4, 3, 0, 11]])
    assert np.array_equal(store.token_ids[2:9], expected_NT[2:9]) and np.array_equal(store.token_ids[5], expected_NT[5])


def test_a_mirror_image_is_the_next_row(vqvae: VQVAE, tmp_path: Path):
    """Rows 2i and 2i+1 are picture i's, so that a random row is a random flip."""
    store = build_token_store(tmp_path, vqvae, Noise(), replace(CHUNKS, flips=True))
    assert len(store) == 2 * COUNT and store.class_ids.tolist() == [i // 2 % 5 for i in range(2 * COUNT)]
    for i in (0, 7, 17):
        picture = Noise().picture(i)
        mirrored = torch.stack([row.flip(0) for row in picture.flatten(0, 1)]).view_as(picture)
        expected_2T = torch.cat([vqvae.encode(picture[None]), vqvae.encode(mirrored[None])])
        assert not torch.equal(*expected_2T)
        assert np.array_equal(store.token_ids[2 * i : 2 * i + 2], expected_2T)


@pytest.mark.parametrize("flips", [False, True])
def test_a_skipped_picture_is_left_out_and_shifts_no_other(vqvae: VQVAE, tmp_path: Path, flips: bool):
    """At a chunk's end, at a start and in the middle; the file keeps a row for each."""
    settings, bad = replace(CHUNKS, flips=flips), (3, 4, 13)
    whole = build_token_store(tmp_path / "whole", vqvae, Noise(), settings)
    store = build_token_store(tmp_path / "skipping", vqvae, Noise(bad=bad), settings)
    rows = [row for row in range(len(whole)) if row // (1 + flips) not in bad]
    assert np.array_equal(store.token_ids[:], whole.token_ids[rows])
    assert np.array_equal(store.class_ids, whole.class_ids[rows])
    again = encode_pictures(tmp_path / "skipping", vqvae, Noise(bad=bad), settings)
    assert [picture.number for picture in again.skipped] == [3, 4, 13] and again.new == 0


def test_reading_a_store_does_not_load_it(tmp_path: Path):
    """1.28 million pictures are 1.7 GB: what is in memory grows by the classes and places alone."""
    plan = StorePlan("0" * 64, small_config().schedule.patch_nums, {}, False, "fp32", 40_000, 1000)
    claim_folder(tmp_path, plan)
    rows = np.zeros((1000, plan.tokens), np.uint16)
    for chunk in plan.chunks:
        rows[:, 0] = np.arange(chunk.start, chunk.stop)
        write_chunk(tmp_path, plan, chunk, rows, ChunkRecord([1] * 1000, []))
    tracemalloc.start()
    store = open_token_store(tmp_path)
    token_ids_NT, _ = store.batch(torch.tensor([39_999, 0, 20_500]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert token_ids_NT[:, 0].tolist() == [39_999, 0, 20_500]
    whole = 40_000 * plan.tokens * 2
    assert peak < 0.6 * whole and len(pickle.dumps(store)) < 0.3 * whole
    assert pickle.loads(pickle.dumps(store)).token_ids[20_500][0] == 20_500


def test_more_files_than_may_be_open_are_read_in_turn(folder: Path, monkeypatch: pytest.MonkeyPatch):
    expected_NT = open_token_store(folder).token_ids[:]
    monkeypatch.setattr("actvar.data.tokens._most_open", lambda: 2)
    token_ids = open_token_store(folder).token_ids
    for places in (np.arange(COUNT), np.array([0, 17, 4, 9, 1])):
        assert np.array_equal(token_ids[places], expected_NT[places]) and len(token_ids._maps) == 2


def test_so_many_files_are_open_as_the_process_may_have(monkeypatch: pytest.MonkeyPatch):
    """Of 1,024, which is usual, enough for ImageNet's 513."""
    limit = [1024]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit[0], 4096))
    assert tokens._most_open() >= 513
    limit[0] = resource.RLIM_INFINITY
    assert tokens._most_open() > 1_000_000


def test_the_mini_recipes_tokens_are_glyphs_under_autocast(tmp_path: Path):
    """What the shipped models were trained on: fifty at a time, in the precision of all trainings."""
    vqvae = random_model(MINI).vqvae
    store = MiniRecipe(tmp_path, pictures=2).tokens(vqvae)
    assert EncodeSettings().batch == 50
    pictures_N3HW, class_ids_N = glyph_batch(np.arange(2), seed=0)
    with autocast("cpu"):
        expected_NT = vqvae.encode(pictures_N3HW)
    assert np.array_equal(store.token_ids[:], expected_NT) and np.array_equal(store.class_ids, class_ids_N)


# ---- stopped and continued


class Killed(Exception):
    """Stands for what ends a process between two pictures."""


@dataclass(frozen=True)
class Breaking(Noise):
    """Breaks off, once, where a picture is asked for; `loaded` are those that were loaded."""

    at: int = 10
    kills: list[Exception] = field(default_factory=lambda: [Killed()])
    loaded: list[int] = field(default_factory=list)

    def load(self, numbers: range) -> PictureBatch:
        if self.at in numbers and self.kills:
            raise self.kills.pop()
        self.loaded.extend(numbers)
        return super().load(numbers)


def test_what_was_encoded_is_not_encoded_again(vqvae: VQVAE, tmp_path: Path):
    """A second call goes on after the last whole chunk."""
    pictures = Breaking()
    with pytest.raises(Killed):
        build_token_store(tmp_path / "a", vqvae, pictures, CHUNKS)
    assert pictures.loaded[:8] == list(range(8))
    pictures.loaded.clear()
    told: list[int] = []
    done = encode_pictures(tmp_path / "a", vqvae, pictures, CHUNKS, told.append)
    assert pictures.loaded == list(range(8, COUNT)) and (done.pictures, done.new) == (COUNT, COUNT - 8)
    assert told[0] == 8 and told[-1] == COUNT
    build_token_store(tmp_path / "b", vqvae, Noise(), CHUNKS)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("flips", [False, True])
def test_a_chunk_that_was_not_finished_is_gone_on_with(vqvae: VQVAE, tmp_path: Path, monkeypatch, flips: bool):
    """A chunk takes ten minutes; a kill costs half of one. In the end there is no trace of it."""
    monkeypatch.setattr("actvar.data.encoding._KEEP_SECONDS", 0.0)
    settings, pictures = replace(CHUNKS, chunk=COUNT, flips=flips), Breaking(bad=(2, 7), at=12)
    with pytest.raises(Killed):
        encode_pictures(tmp_path / "a", vqvae, pictures, settings)
    assert len(list((tmp_path / "a").glob(".piece_*.npy"))) == 4
    (tmp_path / "a/..piece_00000012-00000014.npy.0.tmp").write_bytes(b"half")
    pictures.loaded.clear()
    told: list[int] = []
    done = encode_pictures(tmp_path / "a", vqvae, pictures, settings, told.append)
    assert pictures.loaded == list(range(12, COUNT)) and (told[0], done.new) == (12, COUNT - 12)
    assert [picture.number for picture in done.skipped] == [2, 7]
    build_token_store(tmp_path / "b", vqvae, Noise(bad=(2, 7)), settings)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_piece_that_was_damaged_is_made_again(vqvae: VQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing but time is lost by it, so nobody is asked."""
    monkeypatch.setattr("actvar.data.encoding._KEEP_SECONDS", 0.0)
    settings, pictures = replace(CHUNKS, chunk=COUNT), Breaking(at=15)
    with pytest.raises(Killed):
        encode_pictures(tmp_path / "a", vqvae, pictures, settings)
    flip_a_bit(tmp_path / "a/.piece_00000003-00000006.npy")
    pictures.loaded.clear()
    build_token_store(tmp_path / "a", vqvae, pictures, settings)
    assert pictures.loaded == list(range(3, COUNT))
    build_token_store(tmp_path / "b", vqvae, Noise(), settings)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_store_that_keeps_nothing_may_become_another(vqvae: VQVAE, tmp_path: Path):
    """Stopped at once, and given again with other settings, as a person does who has seen a wrong option."""
    with pytest.raises(Killed):
        encode_pictures(tmp_path, vqvae, Breaking(at=0), CHUNKS)
    build_token_store(tmp_path, vqvae, Noise(), replace(CHUNKS, chunk=5))
    with pytest.raises(DataError, match=r"holds other tokens \(chunk 5 -> 4\)"):
        encode_pictures(tmp_path, vqvae, Noise(), CHUNKS)


def test_a_store_that_another_process_is_about_to_fill_stays_what_it_is(vqvae: VQVAE, tmp_path: Path):
    with pytest.raises(Killed):
        encode_pictures(tmp_path, vqvae, Breaking(at=0), CHUNKS)
    with locked(tmp_path / ".shard-1-of-2.lock"), pytest.raises(DataError, match="holds other tokens"):
        encode_pictures(tmp_path, vqvae, Noise(), replace(CHUNKS, chunk=5))


ENCODE = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_token_store import CHUNKS, Noise
from small_models import small_config, vivid_model
from actvar.data.encoding import encode_pictures

torch.set_num_threads(1)
left, replace = {left}, os.replace

def replace_or_die(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    replace(source, target)

os.replace = replace_or_die
encode_pictures(Path({folder!r}), vivid_model(small_config()).vqvae, Noise(bad=(2, 9)), CHUNKS)
"""


def encode_until(folder: Path, writes: int) -> int:
    """Encode in a process of its own that is killed with a file written and not yet named; the exit code."""
    code = ENCODE.format(tests=str(Path(__file__).parent), left=writes, folder=str(folder))
    return subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode


@pytest.mark.slow
def test_a_killed_encoding_is_completed_by_the_same_call(vqvae: VQVAE, tmp_path: Path):
    """kill -9 with a chunk's tokens or its record written and not yet named: the same store, and no remains."""
    build_token_store(tmp_path / "whole", vqvae, Noise(bad=(2, 9)), CHUNKS)
    expected = files_of(tmp_path / "whole")
    for moment in random.Random(6).sample(range(1, len(expected)), 3):
        killed = tmp_path / f"killed-{moment}"
        assert encode_until(killed, moment) == -signal.SIGKILL
        assert len(files_of(killed)) == moment + 1 and any(name.endswith(".tmp") for name in files_of(killed))
        build_token_store(killed, vqvae, Noise(bad=(2, 9)), CHUNKS)
        assert files_of(killed) == expected


def test_shards_of_many_machines_make_one_store(vqvae: VQVAE, tmp_path: Path):
    """Three into two folders, copied together: byte by byte what one process makes."""
    build_token_store(tmp_path / "whole", vqvae, Noise(), CHUNKS)
    for index, folder in ((2, "a"), (0, "a"), (1, "b")):
        encode_pictures(tmp_path / folder, vqvae, Noise(), replace(CHUNKS, shard=(index, 3)))
    with pytest.raises(DataError, match=r"not whole: 2 of 5 chunks .* the first tokens_00000004\.npy.*every --shard"):
        open_token_store(tmp_path / "a")
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "whole")
    assert len(open_token_store(tmp_path / "a")) == COUNT


def test_more_shards_than_chunks_leave_some_nothing_to_do(vqvae: VQVAE, tmp_path: Path):
    assert encode_pictures(tmp_path, vqvae, Noise(), replace(CHUNKS, shard=(7, 8))).pictures == 0


# ---- refused


@pytest.fixture(scope="module")
def pristine(vqvae: VQVAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    build_token_store(folder, vqvae, Noise(), CHUNKS)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A whole store, to be spoiled."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


@pytest.mark.parametrize(
    ("pictures", "settings", "message"),
    [
        (Noise(17), CHUNKS, r"\(data's pictures 18 -> 17, pictures 18 -> 17\)"),
        (Noise(), replace(CHUNKS, flips=True), r"\(flips False -> True\)"),
        (Noise(), replace(CHUNKS, precision="bf16"), r"\(precision fp32 -> bf16\)"),
        (Noise(), replace(CHUNKS, chunk=5), r"\(chunk 4 -> 5\)"),
    ],
)
def test_a_store_of_something_else_is_not_continued(vqvae: VQVAE, folder: Path, pictures, settings, message: str):
    before = files_of(folder)
    with pytest.raises(DataError, match=message):
        encode_pictures(folder, vqvae, pictures, settings)
    assert files_of(folder) == before


def test_another_vqvae_is_refused(vqvae: VQVAE, folder: Path):
    """One weight is enough, when encoding and when training."""
    other = vivid_model(small_config()).vqvae
    other.quantize.embedding.weight[0, 0] += 1e-6
    with pytest.raises(DataError, match=r"other tokens \(vqvae [0-9a-f]{12} -> [0-9a-f]{12}\)"):
        encode_pictures(folder, other, Noise(), CHUNKS)
    with pytest.raises(DataError, match="tokens of another VQVAE"):
        open_token_store(folder, other)
    assert isinstance(open_token_store(folder, vqvae), TokenStore)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def other_classes(path: Path) -> None:
    path.write_text(path.read_text().replace('"class_ids": [4', '"class_ids": [3'))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("tokens_00000004.npy", cut, "was cut, altered or comes from another store"),
        ("tokens_00000004.npy", flip_a_bit, "was cut, altered or comes from another store"),
        ("tokens_00000004.npy", Path.unlink, r"tokens_00000004\.npy is missing"),
        ("tokens_00000004.json", cut, r"tokens_00000004\.json is damaged"),
        ("tokens_00000004.json", other_classes, "was cut, altered or comes from another store"),
    ],
)
def test_damage_is_found_and_mended_as_the_message_says(
    vqvae: VQVAE, folder: Path, name: str, damage: Callable[[Path], object], message: str
):
    """Both who reads and who goes on encoding are told; without the two files, encoding makes them anew."""
    before = files_of(folder)
    damage(folder / name)
    for use in (lambda: open_token_store(folder), lambda: encode_pictures(folder, vqvae, Noise(), CHUNKS)):
        with pytest.raises(DataError, match=message + r".* Remove tokens_00000004\.npy and tokens_00000004\.json"):
            use()
    for suffix in ("npy", "json"):
        (folder / f"tokens_00000004.{suffix}").unlink(missing_ok=True)
    build_token_store(folder, vqvae, Noise(), CHUNKS)
    assert files_of(folder) == before


def test_a_chunk_of_another_store_is_refused(vqvae: VQVAE, folder: Path, tmp_path: Path):
    """Copied together by mistake, it would be whole and wrong."""
    build_token_store(tmp_path / "other", vqvae, Noise(), replace(CHUNKS, precision="bf16"))
    for suffix in ("npy", "json"):
        shutil.copy(tmp_path / "other" / f"tokens_00000004.{suffix}", folder)
    with pytest.raises(DataError, match="comes from another store"):
        open_token_store(folder)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, r"is no token store: it has no store\.json"),
        ("{", r"store\.json is not a token store's"),
        ("[]", r"store\.json is not a token store's"),
        (json.dumps({"format": "actvar-tokens", "version": 2}), "another format or version"),
        (json.dumps({"format": "actvar-tokens", "version": 1}), r"store\.json is not a token store's"),
    ],
)
def test_what_is_no_store_is_said(tmp_path: Path, label: str | None, message: str):
    if label:
        (tmp_path / "store.json").write_text(label)
    with pytest.raises(DataError, match=message):
        open_token_store(tmp_path)


@pytest.mark.parametrize("name", ["store.json", "tokens_00000004.npy", "tokens_00000004.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "loop"])
def test_no_file_of_a_store_is_opened_through_a_link(vqvae: VQVAE, folder: Path, name: str, kind: str):
    """Its content is right, and lies elsewhere: another name could lead to whatever can be read. A pipe never ends."""
    path = folder / name
    path.rename(folder.parent / "elsewhere")
    make = {"link": lambda: path.symlink_to(folder.parent / "elsewhere"), "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir, "loop": lambda: path.symlink_to(path)}  # fmt: skip
    make[kind]()
    for use in (lambda: open_token_store(folder), lambda: encode_pictures(folder, vqvae, Noise(), CHUNKS)):
        with pytest.raises(DataError, match=rf"{name} must be a plain file"):
            use()


def test_a_file_that_is_replaced_after_it_was_checked_is_not_followed(folder: Path):
    store = open_token_store(folder)
    (folder / "tokens_00000004.npy").rename(folder.parent / "elsewhere")
    (folder / "tokens_00000004.npy").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(DataError, match="must be a plain file"):
        _ = store.token_ids[:]


def signed(folder: Path, content: bytes, **changes: object) -> None:
    """Put a chunk's tokens and record in place, with the hash that they should have, as an attacker would."""
    path = folder / "tokens_00000004.npy"
    label = {**json.loads(path.with_suffix(".json").read_text()), **changes}
    label = {name: value for name, value in label.items() if name != "sha256" and value is not None}
    plan = {name: value for name, value in json.loads((folder / "store.json").read_text()).items()}
    plan = {name: value for name, value in plan.items() if name not in ("class_names", "sha256")}
    digest = hashlib.sha256(content + json.dumps(label, sort_keys=True).encode())
    digest.update((json.dumps(plan, indent=1, sort_keys=True) + "\n").encode())
    path.write_bytes(content)
    path.with_suffix(".json").write_text(json.dumps({**label, "sha256": digest.hexdigest()}))


def npy(rows: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, rows)
    return content.getvalue()


ROWS = np.zeros((4, 39), np.uint16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(ROWS + 48), "holds the token 48, and the VQVAE has 48 codes"),
        (npy(ROWS[:3]), "expected 440 bytes, found 362"),
        (npy(ROWS.astype(np.uint8)), "expected 440 bytes"),
        (npy(ROWS.view(np.int16)), r"expected 16-bit numbers \[4, 39\]"),
        (npy(ROWS.byteswap().view(">u2")), "expected 16-bit numbers"),
        (npy(np.asfortranarray(ROWS)), "expected 16-bit numbers"),
        (npy(ROWS).replace(b"(4, 39)", b"(9, 39)"), "expected 16-bit numbers"),
        (npy(ROWS).replace(b"(4, 39)", b"(4, 93)"), "expected 16-bit numbers"),
    ],
)
def test_tokens_that_are_none_are_refused_though_their_hash_is_right(vqvae, folder: Path, content: bytes, message: str):
    """They would be met in the midst of a training, as an index out of range."""
    signed(folder, content)
    for use in (lambda: open_token_store(folder, vqvae), lambda: encode_pictures(folder, vqvae, Noise(), CHUNKS)):
        with pytest.raises(DataError, match=message):
            use()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_ids": [0, 1, 2]}, "class_ids must be a list of 4 items"),
        ({"class_ids": [0, 1, 2, -1]}, "class_ids must be a whole number in 0"),
        ({"class_ids": [0, 1, 2, 2.5]}, "class_ids must be a whole number"),
        ({"class_ids": [0, 1, 2, [3]]}, "class_ids must be a whole number"),
        ({"class_ids": [0, 1, 2, 2**60]}, "class_ids must be a whole number"),
        ({"class_ids": None}, "the record must be an object with the field 'class_ids'"),
        ({"more": 1}, "no fields but"),
        ({"skipped": [{"number": 9, "name": "a", "reason": "b"}]}, r"skipped.number must be a whole number in 4\.\.7"),
        ({"skipped": [{"number": 4, "name": 1, "reason": "b"}]}, "of a name and a reason"),
        ({"skipped": 2 * [{"number": 4, "name": "a", "reason": "b"}]}, "of different numbers"),
        ({"skipped": [[]]}, "skipped must be an object"),
    ],
)
def test_a_record_that_says_what_cannot_be_is_refused(vqvae: VQVAE, folder: Path, changes: dict, message: str):
    signed(folder, npy(ROWS), **changes)
    with pytest.raises(DataError, match=rf"tokens_00000004\.json is damaged: .*{message}"):
        open_token_store(folder, vqvae)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": 10**12}, "is not whole: 249999999995 of 250000000000 chunks"),
        ({"pictures": 10**30}, r"number 1000000000000000000000000… is too large|is too large"),
        ({"pictures": True}, "pictures must be a whole number"),
        ({"chunk": 0}, "chunk must be a whole number in 1"),
        ({"chunk": 10**12, "pictures": 10**12}, "the size of a file, chunk times tokens, must be"),
        ({"patch_nums": [1, 2, 2]}, "patch_nums must increase"),
        ({"patch_nums": [1, 10**9]}, "patch_nums must be a whole number"),
        ({"patch_nums": 3}, "patch_nums must be a list"),
        ({"data": []}, "data must be an object"),
        ({"flips": 1}, "flips must be true or false"),
        ({"precision": "\x1b[2J"}, r"found '\\x1b\[2J'"),
        ({"vqvae": ["0" * 64]}, "vqvae must be 64 hexadecimal digits"),
        ({"class_names": ["x"]}, "was edited"),
    ],
)
def test_a_plan_that_no_store_has_is_refused(folder: Path, changes: dict, message: str):
    """In a moment, whatever it claims."""
    path = folder / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    if "class_names" not in changes:
        path.write_text(json.dumps({n: v for n, v in json.loads(path.read_text()).items() if n != "class_names"}))
    with pytest.raises(DataError, match=message):
        open_token_store(folder)


def test_a_store_that_claims_more_than_there_is_takes_no_memory(folder: Path):
    """A file that is as long as it was claimed to be, and holds nothing."""
    os.truncate(folder / "tokens_00000004.npy", 1 << 40)
    os.truncate(folder / "tokens_00000008.json", 1 << 40)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"expected 440 bytes, found 1099511627776"):
        open_token_store(folder)
    (folder / "tokens_00000004.json").unlink()
    with pytest.raises(DataError, match="is not whole"):
        open_token_store(folder)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_a_store_without_names_is_what_it_was(vqvae: VQVAE, folder: Path):
    """Made by an earlier version: read, gone on with, and given the names that its pictures have."""
    path = folder / "store.json"
    plan = {
        name: value for name, value in json.loads(path.read_text()).items() if name not in ("class_names", "sha256")
    }
    path.write_text(json.dumps(plan, indent=1, sort_keys=True) + "\n")
    assert open_token_store(folder, vqvae).class_names == ()
    encode_pictures(folder, vqvae, Named(), CHUNKS)
    store = open_token_store(folder, vqvae)
    assert (store.class_names, store.num_classes) == (Named().class_names, 5)
    encode_pictures(folder, vqvae, Noise(), CHUNKS)
    assert open_token_store(folder, vqvae).class_names == Named().class_names


class Named(Noise):
    @property
    def class_names(self) -> tuple[str, ...]:
        return ("n0", "n1", "n2", "n3", "n4")


def test_a_store_of_skipped_pictures_alone_is_refused(vqvae: VQVAE, tmp_path: Path):
    with pytest.raises(DataError, match="all 4 pictures were skipped"):
        build_token_store(tmp_path, vqvae, Noise(4, bad=(0, 1, 2, 3)), CHUNKS)


def test_a_full_disk_loses_nothing(vqvae: VQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The message says what to do; no half file has a name, and the same call goes on."""
    writes = iter(range(100))

    def replace_until_full(source: Path, target: Path) -> None:
        if next(writes) == 6:
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    monkeypatch.setattr("actvar.files.os.replace", replace_until_full)
    with pytest.raises(DataError, match=r"cannot be written: No space left.*Make room.*goes on where it stopped"):
        build_token_store(tmp_path / "a", vqvae, Noise(), CHUNKS)
    assert not any(name.endswith(".tmp") for name in files_of(tmp_path / "a"))
    build_token_store(tmp_path / "a", vqvae, Noise(), CHUNKS)
    build_token_store(tmp_path / "b", vqvae, Noise(), CHUNKS)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_more_codes_than_a_token_has_bits_are_refused(tmp_path: Path):
    config = ModelConfig(1, small_config().schedule, 5, vqvae=replace(SMALL_VQVAE, vocab_size=70_000))
    with pytest.raises(DataError, match="16 bits, and the VQVAE has 70000 codes"):
        encode_pictures(tmp_path, random_model(config).vqvae, Noise(), CHUNKS)


def test_glyphs_are_a_data_set_of_their_own_seed(tmp_path: Path):
    assert GlyphPictures(3, seed=1).identity != GlyphPictures(3, seed=0).identity
    held_out = GlyphPictures(3, seed=1).load(range(1, 3))
    assert torch.equal(held_out.pictures_N3HW, glyph_batch(np.array([1, 2]), seed=1)[0])
