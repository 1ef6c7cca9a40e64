"""Picture folders as `actvar-trt encode` reads them: `train/<class>/*`."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from actvar.benchmarks.fuzz.changes import change_file
from actvar.data.imagenet import FolderPictures, list_pictures
from actvar.data.preprocessing import Preprocessing

FOLLOWS_LINKS = True
SIDE = 12
_KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
_SUFFIXES = {"PNG": ".png", "JPEG": ".JPEG", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "PPM": ".ppm"}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n0 0 12 12 rectfill\nshowpage\n%%EOF\n"


def samples(folder: Path) -> list[Path]:
    """Two classes of six pictures, one of each kind."""
    for class_id in range(2):
        write_pictures(folder / "data" / "train" / f"n{class_id}", class_id)
    return [folder / "data"]


def write_pictures(folder: Path, seed: int) -> None:
    """Six pictures of noise, one of each kind."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed).integers(0, 256, (len(_KINDS), SIDE, SIDE, 3), np.uint8)
    for kind, pixels_HW3 in zip(_KINDS, noise, strict=True):
        Image.fromarray(pixels_HW3).save(folder / f"{kind.lower()}{_SUFFIXES[kind]}", kind)


def mutate(path: Path, rng: random.Random) -> None:
    """Change one picture, or where it lies."""
    mutate_pictures(path / "train", rng)


def mutate_pictures(folder: Path, rng: random.Random) -> None:
    """Change one of the pictures below a folder, or where it lies."""
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    kind = rng.randrange(10)
    if kind < 6:
        change_file(file, rng)
    elif kind == 6:
        file.write_bytes(rng.choice((EPS, b"<svg/>", b"GIF89a" + b"\1\0" * 20, _icon(), b"", b"\xff\xd8\xff")))
    elif kind == 7:
        file.write_bytes(rng.choice((_bomb(30_000, 30_000), _bomb(1, 2**31 - 1), _bomb(2**31 - 1, 2**31 - 1))))
    elif kind == 8:
        _change_folder(file.parent, rng)
    else:
        odd = file.with_name(rng.choice(("\x1b[2J.png", "a\nb.jpg", "\udcff.png", "x" * 200 + ".png", ".png", "é.png")))
        file.rename(odd)
        odd.write_bytes(b"no picture")


def _change_folder(folder: Path, rng: random.Random) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        (folder / "loop").symlink_to(rng.choice((".", "..", "../..")))
    elif kind == 1:
        (folder / "gone").symlink_to("nowhere")
        (folder / "gone.png").symlink_to("nowhere")
    elif kind == 2:
        for depth in range(40):  # two ways at each of forty forks
            (folder / f"fork{depth}").mkdir()
        for depth in range(39):
            for way in "ab":
                (folder / f"fork{depth}" / way).symlink_to(f"../fork{depth + 1}")
    else:
        deep = folder
        for _ in range(40):  # until the path is as long as one may be
            deep = deep / ("d" * 200)
            try:
                os.mkdir(deep)
            except OSError:
                break


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def piece(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + piece(b"IDAT", packed) + piece(b"IEND", b"")


def _icon() -> bytes:
    content = io.BytesIO()
    Image.new("RGBA", (16, 16)).save(content, "ICO")
    return content.getvalue()


def read(path: Path) -> None:
    """List the folder and prepare every picture."""
    listed = list_pictures(path, "train", 2)
    pictures = FolderPictures(listed, Preprocessing(SIDE, "random"), workers=1)
    assert pictures.identity
    pictures.load(range(len(pictures)))
