"""References from a stranger: folders of pictures and .npz files that claim, hide or run what they should not."""

import io
import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from actvar.data.glyphs import TRAIN_SEED
from actvar.data.imagenet import FolderPictures, list_pictures
from actvar.data.preprocessing import Preprocessing
from actvar.errors import ActVARError, UsageError
from actvar.evaluation.judges import Judge
from actvar.evaluation.picture_sets import PictureSet, open_folder, open_npz
from actvar.evaluation.reference import GlyphStream, open_reference

JUDGE = Judge("six", nn.Identity(), 6, False, "", "not at all")


def in_one(pictures: PictureSet) -> np.ndarray:
    return np.concatenate(list(pictures.batches(7)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 9 9 rectfill\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg"])
def test_a_picture_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """Pillow opens EPS, whatever its name, by Ghostscript; here that is a script that leaves a trace."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "gs"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / name).write_bytes(EPS)
    with pytest.raises(ActVARError, match=rf"{name} cannot be read as a picture \(cannot identify image file\)"):
        open_folder(tmp_path / "reference")
    assert not (tmp_path / "ran").exists()


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""
    pieces = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9999)))]
    packed = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
              for name, data in (*pieces, (b"IEND", b""))]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(9000, 9000), "9000x9000 pixels are too many"),
        (png(50_000, 50_000), "exceeds limit"),
        (png(64, 64), "truncated"),
        (png(64, 64)[:-13], r"\(.+\)"),
        (png(64, 64).replace(b"IDAT", b"\0DAT"), r"\(.+\)"),  # of which Pillow makes a SyntaxError
        (b"", "cannot identify"),
    ],
)
def test_a_picture_that_is_none_is_named(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "a\x1b[2J.png").write_bytes(content)
    with pytest.raises(ActVARError, match=reason) as refused:
        list(open_folder(tmp_path).batches(1))
    assert r"a\x1b[2J.png cannot be read as a picture (" in str(refused.value) and str(refused.value).isprintable()


def test_a_reference_is_not_waited_for(tmp_path: Path):
    """A pipe that nobody writes into, as a picture, as an .npz; and a link to itself."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ActVARError, match=r"a\.png cannot be read as a picture \(no plain file\)"):
        open_folder(tmp_path)
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ActVARError, match=r"a\.npz cannot be read as an \.npz \(it is no plain file\)"):
        open_npz(tmp_path / "a.npz")
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("a.png")
    with pytest.raises(ActVARError, match=r"a\.png cannot be read as a picture \(Too many levels"):
        open_folder(tmp_path)


def test_a_reference_of_links_is_that_of_what_they_lead_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Twenty pictures, a part of them in a folder that is a link: without them every score would be another."""
    pictures_NHW3 = in_one(GlyphStream(TRAIN_SEED, 20))
    for folder in ("far", "folder/near", "whole"):
        (tmp_path / folder).mkdir(parents=True)
    for i, picture in enumerate(pictures_NHW3):
        Image.fromarray(picture).save(tmp_path / "whole" / f"{i:02d}.png")
        Image.fromarray(picture).save(tmp_path / ("far" if i < 10 else "folder/near") / f"{i:02d}.png")
    (tmp_path / "folder" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "folder" / "near" / "up").symlink_to("..")
    (tmp_path / "folder" / "notes.txt").touch()
    found = open_reference(str(tmp_path / "folder"), 0, JUDGE, 64)
    assert found.pictures is not None
    np.testing.assert_array_equal(in_one(found.pictures), pictures_NHW3)
    assert (
        f"{tmp_path}/folder: 20 pictures; passed over: 1 file of another kind, "
        "1 link to a folder that is there already." in capsys.readouterr().err
    )


def photographs(folder: Path) -> None:
    """Pictures of several sizes and shapes, in grey and with transparency, too; one is of the model's size already."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, (width, height, mode) in enumerate([(90, 40, "RGB"), (33, 71, "L"), (200, 200, "RGBA"), (16, 16, "RGB")]):
        channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
        pixels = rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_reference_of_photographs_is_cropped_as_those_of_a_training_are(tmp_path: Path):
    """Byte for byte what `encode --split val` shows the VQVAE; a score of other squares would be another."""
    photographs(tmp_path / "data" / "val" / "some")
    listed = list_pictures(tmp_path / "data", "val", 1)
    encoded = FolderPictures(listed, Preprocessing(16, "center")).load(range(4)).pictures_N3HW
    found = open_reference(str(tmp_path / "data" / "val"), 0, JUDGE, 16, crop=True)
    assert found.pictures is not None and found.pictures.shape == (4, 16, 16, 3)
    as_bytes = ((encoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(in_one(found.pictures), as_bytes)
    assert found.in_words == f"{tmp_path}/data/val, cropped in the middle and resized to 16×16"


def test_photographs_are_not_cropped_unless_that_is_asked_for(tmp_path: Path):
    """Nor is what is no folder; the message says how."""
    photographs(tmp_path / "photographs")
    with pytest.raises(ActVARError, match=r"pictures of 90×40, and the model draws 16×16.*--crop-reference makes one"):
        open_reference(str(tmp_path / "photographs"), 0, JUDGE, 16)
    for given in ("glyphs-train", str(tmp_path / "statistics.npz")):
        with pytest.raises(UsageError, match=r"--crop-reference is for a folder of pictures, and .* is none"):
            open_reference(given, 10, JUDGE, 64, crop=True)


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return content.getvalue()


def npy(values: object, pickled: bool = False) -> bytes:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=pickled)
    return content.getvalue()


PIXELS, MU, SIGMA = npy(np.zeros((12, 8, 8, 3), np.uint8)), npy(np.zeros(6)), npy(np.eye(6))
PICTURES = archive(arr_0=PIXELS)
CENTRAL = PICTURES.rindex(b"PK\1\2")  # the entry in the zip's list of its members


def with_header(text: bytes) -> bytes:
    return PIXELS[:10] + text.ljust(118) + PIXELS[128:]


def with_entry(place: int, value: bytes) -> bytes:
    return PICTURES[: CENTRAL + place] + value + PICTURES[CENTRAL + place + len(value) :]


DAMAGED = {
    "holds objects of Python": archive(arr_0=npy(np.array([{}, None], object), pickled=True)),
    r"claims to be uint8 \[9000000000000, 8, 8, 3\]": archive(
        arr_0=with_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000000, 8, 8, 3), }")
    ),
    "an array's header is b'exit": archive(arr_0=with_header(b"exit(3)")),
    "an array's header is b'----": archive(arr_0=with_header(b"-" * 118)),
    "header is 60000 bytes": archive(arr_0=PIXELS[:8] + b"\x60\xea" + PIXELS[10:]),
    "in no form that is known": archive(arr_0=b"\x93NUMPY\3\0" + PIXELS[8:]),
    "it ends too early": archive(arr_0=PIXELS[:20]),
    "and has 1": archive(arr_0=PIXELS + bytes(1 << 20)),
    "packed as numpy packs nothing": with_entry(10, b"\x0c\0"),
    "claims 4294967295 bytes": with_entry(24, b"\xff" * 4),
    "zip file version": with_entry(6, b"\xff"),
    "more than 256": archive(arr_0=PIXELS, **{f"a{i}": b"" for i in range(300)}),
    "mu is bool": archive(mu=npy(np.zeros(6, bool)), sigma=SIGMA),
    "mu is complex128": archive(mu=npy(np.zeros(6, complex)), sigma=SIGMA),
    r"above 1e\+100": archive(mu=MU, sigma=npy(np.eye(6) * 1e200)),
    "count is no number": archive(mu=MU, sigma=SIGMA, count=npy(np.array(-3))),
    "extractor is": archive(mu=MU, sigma=SIGMA, extractor=npy(np.array(["a"] * 9))),
    "cannot be read as statistics": archive(mu=MU, sigma=SIGMA, extractor=npy(np.array("abc"))[:-4] + b"\xff" * 4),
}


@pytest.mark.parametrize("reason", DAMAGED)
def test_an_archive_that_claims_what_is_not_so_is_refused(tmp_path: Path, reason: str):
    """Before anything is allotted for it; nothing in it is run or evaluated."""
    path = tmp_path / "a.npz"
    path.write_bytes(DAMAGED[reason])
    tracemalloc.start()
    with pytest.raises(ActVARError, match=reason):
        open_reference(str(path), 0, JUDGE, 8)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
