"""Folders of pictures: which picture has which number and class, what of it the VQVAE sees, and what is skipped."""

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actvar.data.imagenet import FolderPictures, list_pictures
from actvar.data.picture_files import MAX_PIXELS, SUFFIXES
from actvar.data.preprocessing import Preprocessing
from actvar.errors import DataError

SIZE = 16


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth noise, so that a JPEG of it is near it."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of JPEGs of several shapes, in train and val."""
    for split in ("train", "val"):
        for c, name in enumerate(("n02", "n01", "n10")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                picture(20 + 7 * i, 33 - 5 * c, seed=10 * c + i).save(folder / f"{name}_{i}.JPEG")
    return tmp_path


def pictures(root: Path, split: str = "train", workers: int = 3, seed: int = 0) -> FolderPictures:
    crop = "random" if split == "train" else "center"
    return FolderPictures(list_pictures(root, split, 3), Preprocessing(SIZE, crop, seed), workers)


# ---- numbers and classes


def naive_listing(folder: Path) -> list[tuple[str, int]]:
    """ImageFolder's rule as its documentation has it: class folders by name, in each the folders below by path, in
    each the files by name; of these, whose name ends as a picture's."""
    listing = []
    for class_id, name in enumerate(sorted(entry for entry in os.listdir(folder) if (folder / entry).is_dir())):
        inside = [folder / name, *(path for path in (folder / name).rglob("*") if path.is_dir())]
        for inner in sorted(inside, key=str):
            for file in sorted(os.listdir(inner)):
                is_picture = any(file.lower().endswith(suffix) for suffix in SUFFIXES)
                if is_picture and not (inner / file).is_dir():
                    listing.append((str((inner / file).relative_to(folder)), class_id))
    return listing


def test_numbers_and_classes_are_image_folders(tmp_path: Path):
    """Names that sort another way by case, by number and with folders below; files that are no pictures."""
    rng = random.Random(0)
    for name in ("n9", "n10", "N2", "a b", "a-b", "ä", "n1"):
        for inner in ("", "b", "a", "a/z", "B", "a-1"):
            (tmp_path / "train" / name / inner).mkdir(parents=True, exist_ok=True)
            for file in rng.sample(["2.jpg", "10.JPEG", "x.Png", "note.txt", "jpg", ".jpg", "Z.webp", "a.jpeg"], 4):
                (tmp_path / "train" / name / inner / file).touch()
        (tmp_path / "train" / name / "sure.jpg").touch()
    (tmp_path / "train" / "readme.jpg").touch()
    listed = list_pictures(tmp_path, "train", 7)
    assert list(zip(listed.names, listed.class_ids, strict=True)) == naive_listing(tmp_path / "train")


def test_some_of_the_pictures_are_spread_over_all_classes(root: Path):
    listed = list_pictures(root, "train", 3).spread(6)
    assert listed.class_ids == [0, 0, 1, 1, 2, 2]
    assert listed.names == [f"{name}/{name}_{i}.JPEG" for name in ("n01", "n02", "n10") for i in (0, 1)]
    with pytest.raises(DataError, match=r"holds 9 pictures, 10 were asked for"):
        list_pictures(root, "train", 3).spread(10)


def test_identity_changes_with_names_and_with_another_copy_of_the_files(root: Path):
    """A resized ImageNet has the original's names: only sizes tell."""
    first = pictures(root).identity
    assert pictures(root).identity == first
    assert pictures(root, seed=1).identity != first and pictures(root, "val").identity != first
    picture(40, 40).save(root / "train/n01/n01_0.JPEG")
    second = pictures(root).identity
    assert second != first
    (root / "train/n10/n10_2.JPEG").rename(root / "train/n10/n10_3.JPEG")
    assert pictures(root).identity not in (first, second)


def test_links_are_followed_and_what_is_passed_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A class that is a link, a part of one, a file; and folders that lead back, each looked into once."""
    for folder in ("far/a", "far/b", "train/n1/own"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "far/a/0.png").touch()
    (tmp_path / "far/b/1.png").touch()
    (tmp_path / "train/n1/2.png").symlink_to(tmp_path / "far/a/0.png")
    (tmp_path / "train/n1/own/3.png").touch()
    (tmp_path / "train/n1/own/note.txt").touch()
    (tmp_path / "train/n0").symlink_to(tmp_path / "far/a")
    (tmp_path / "train/n1/part").symlink_to(tmp_path / "far/b")
    (tmp_path / "train/n1/again").symlink_to("own")
    (tmp_path / "train/n1/own/up").symlink_to("../..")
    (tmp_path / "train/n1/itself").symlink_to("itself")
    (tmp_path / "train/readme.txt").touch()
    listed = list_pictures(tmp_path, "train", 2)
    assert list(listed.names) == ["n0/0.png", "n1/2.png", "n1/own/3.png", "n1/part/1.png"]
    assert capsys.readouterr().err == (
        f"{tmp_path}/train: 4 pictures; passed over: 3 files of another kind, "
        "2 links to a folder that is there already.\n"
    )


def test_forks_of_links_are_looked_into_once(tmp_path: Path):
    """Two ways at each of forty forks are a trillion paths to one picture."""
    for depth in range(40):
        (tmp_path / f"train/n0/{depth:02d}").mkdir(parents=True)
    for depth in range(39):
        for way in "ab":
            (tmp_path / f"train/n0/{depth:02d}/{way}").symlink_to(f"../{depth + 1:02d}")
    (tmp_path / "train/n0/39/0.png").touch()
    assert list(list_pictures(tmp_path, "train", 1).names) == ["n0/39/0.png"]


def test_class_folders_give_their_names(root: Path):
    """Such as they can be printed; none if two of them would print alike."""
    assert pictures(root).class_names == ("n01", "n02", "n10")
    (root / "train/n10").rename(root / "train/n\x1b[2J")
    assert pictures(root).class_names == (r"n\x1b[2J", "n01", "n02")
    (root / "train/n01").rename(root / r"train/n\x1b[2J")
    assert pictures(root).class_names == ()


# ---- what the VQVAE sees


def naive_square(image: Image.Image, size: int, corner: tuple[int, int] | None = None) -> np.ndarray:
    """VAR's transforms one by one: resize the short side to round(1.125 size), cut, [0, 1], then x + x - 1."""
    short = round(1.125 * size)
    image = image.convert("RGB")
    w, h = image.size
    w, h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    pixels_HW3 = np.asarray(image.resize((w, h), Image.LANCZOS))
    left, top = corner or (int(round((w - size) / 2.0)), int(round((h - size) / 2.0)))  # noqa: RUF046
    unit_3HW = (pixels_HW3[top : top + size, left : left + size].astype(np.float32) / np.float32(255)).transpose(
        2, 0, 1
    )
    return unit_3HW + unit_3HW - 1


@pytest.mark.parametrize("size", [16, 64])
def test_validation_pictures_are_cut_from_the_middle(root: Path, size: int):
    """Tall and wide ones, with spare pixels of both parities."""
    source = FolderPictures(list_pictures(root, "val", 3), Preprocessing(size, "center"), 2)
    batch = source.load(range(9))
    assert (batch.pictures_N3HW.dtype, batch.skipped) == (torch.float32, ())
    assert batch.class_ids_N.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for number, name in enumerate(source.listed.names):
        expected_3HW = naive_square(Image.open(root / "val" / name), size)
        np.testing.assert_array_equal(batch.pictures_N3HW[number].numpy(), expected_3HW)


def test_training_pictures_are_cut_anywhere_and_always_there():
    """Each is one of the possible squares; all corners occur; picture, seed and nothing else decide which."""
    image = picture(23, 20, seed=3)  # resized to 20 by 18
    data = encoded(image)
    squares = {
        ((naive_square(image, SIZE, (left, top)) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0).tobytes(): (
            left,
            top,
        )
        for left in range(5)
        for top in range(3)
    }
    assert len(squares) == 15
    cuts = [squares[Preprocessing(SIZE, "random", 5).square(data, number).tobytes()] for number in range(300)]
    assert set(cuts) == set(squares.values())
    assert cuts == [squares[Preprocessing(SIZE, "random", 5).square(data, number).tobytes()] for number in range(300)]
    assert cuts != [squares[Preprocessing(SIZE, "random", 6).square(data, number).tobytes()] for number in range(300)]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_picture_is_the_same_in_any_batch(root: Path, workers: int):
    whole = pictures(root, workers=workers).load(range(9)).pictures_N3HW
    parts = [pictures(root).load(range(first, first + 3)).pictures_N3HW for first in (0, 3, 6)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "BMP"), ("RGB", "WEBP")],
)
def test_what_is_not_rgb_becomes_it(mode: str, kind: str):
    """ImageNet has CMYK and grey JPEGs, and a PNG called .JPEG: what a file is, its bytes tell."""
    data = encoded(picture(SIZE + 2, SIZE + 2, mode=mode), kind)
    expected_HW3 = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[1:-1, 1:-1]
    assert np.array_equal(Preprocessing(SIZE, "center").square(data, 0), expected_HW3)


# ---- skipped


def bomb() -> bytes:
    """A PNG of one column more than is read, in 9 KB; unpacked it would be 201 MB."""
    return encoded(Image.new("1", (MAX_PIXELS // 8192 + 1, 8192)))


BROKEN = {
    "empty": (b"", "cannot identify image file"),
    "text": (b"<html>404</html>", "cannot identify image file"),
    "cut": (encoded(picture(90, 90), "JPEG")[:-400], "truncated"),
    "torn": (encoded(picture(90, 90))[:2000] + b"\0" * 90, ""),
    "bomb": (bomb(), "8193x8192 pixels are too many"),
    "needle": (encoded(Image.new("L", (1, 250_000))), "1x250000 pixels are too many, or too long and narrow"),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n", "cannot identify image file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_picture_that_cannot_be_used_is_skipped(root: Path, kind: str):
    """With its number, name and reason, which are the same each time; its neighbours are as they were."""
    content, reason = BROKEN[kind]
    before = pictures(root).load(range(9)).pictures_N3HW
    (root / "train/n02/n02_1.JPEG").write_bytes(content)
    batch = pictures(root).load(range(9))
    [skipped] = batch.skipped
    assert (skipped.number, skipped.name) == (4, "n02/n02_1.JPEG") and reason in skipped.reason and skipped.reason
    assert pictures(root).load(range(9)).skipped == batch.skipped
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(batch.pictures_N3HW[others], before[others]) and batch.class_ids_N[4] == 1
    assert torch.isfinite(batch.pictures_N3HW).all()


def test_what_is_no_plain_file_is_skipped(root: Path):
    """A pipe would be waited for until the end of days."""
    path = root / "train/n02/n02_1.JPEG"
    path.unlink()
    os.mkfifo(path)
    [skipped] = pictures(root).load(range(9)).skipped
    assert skipped.reason == "no plain file"


def test_a_file_that_cannot_be_read_stops_and_is_named(root: Path):
    """The network may be gone: to skip all that follows would leave a store that looks whole."""
    source = pictures(root)
    (root / "train/n02/n02_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"n02_1\.JPEG cannot be read: No such file.*the same command then goes on"):
        source.load(range(9))
    listed = list_pictures(root, "train", 3)
    (root / "train/n02/n02_0.JPEG").unlink()
    with pytest.raises(DataError, match=r"n02_0\.JPEG cannot be read: No such file"):
        _ = listed.sha256


# ---- refused


def test_what_is_wrong_with_the_folders_is_said(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere: expected train/<class>/\*\.JPEG, found no such folder"):
        list_pictures(tmp_path / "nowhere", "train", 3)
    with pytest.raises(DataError, match=r"found no val in it\. Name the folder above val"):
        list_pictures(root / "train", "val", 3)
    with pytest.raises(DataError, match=r"expected 1000 class folders.*found 3 \(n01, n02, n10\).*--classes 3"):
        list_pictures(root, "train", 1000)
    with pytest.raises(DataError, match=r"expected 2 class folders.*found 3"):
        list_pictures(root, "train", 2)
    (root / "train" / ".cache").mkdir()
    with pytest.raises(DataError, match=r"expected 3 .* found 4 .*\.cache is counted as a class"):
        list_pictures(root, "train", 3)
    with pytest.raises(DataError, match=r"train/\.cache holds no pictures"):
        list_pictures(root, "train", 4)


def test_a_flat_folder_is_told_what_to_do(tmp_path: Path):
    """ImageNet's val as it is downloaded: 50,000 files and no folders."""
    (tmp_path / "val").mkdir()
    picture(20, 20).save(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match=r"expected 1000 class folders.*found 0\. Sort its files into one folder"):
        list_pictures(tmp_path, "val", 1000)


def test_a_folder_that_cannot_be_read_is_not_passed_over(root: Path, monkeypatch: pytest.MonkeyPatch):
    """os.walk would, and every number after it would be another's."""
    (root / "train/n02/below").mkdir()
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DataError, match="n02/below cannot be read: Permission denied"):
        list_pictures(root, "train", 3)
