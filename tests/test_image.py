"""Numbers to pixels, pixels to files."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actvar.cli.sheet import SHEET_GAP, sheet
from actvar.errors import ActVARError
from actvar.image import png, to_bytes
from actvar.reports import write_report


def test_numbers_become_bytes_as_official_var_makes_them():
    """Times 255 and truncated, not rounded; what lies a little outside [0, 1] does not wrap around."""
    values = np.array([0.0, 1.0, 0.5, 0.00392, 0.00393, 0.9999, -0.01, 1.01], np.float32)
    pictures_B3HW = np.stack([values, values[::-1], values * 0]).reshape(1, 3, 2, 4)
    red_HW = to_bytes(pictures_B3HW)[0, :, :, 0]
    assert red_HW.tolist() == [[0, 255, 127, 0], [1, 254, 0, 255]]
    assert to_bytes(pictures_B3HW)[0, 0, 0].tolist() == [0, 255, 0]  # the channels come last


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value: float):
    pictures_B3HW = np.zeros((1, 3, 2, 2), np.float32)
    pictures_B3HW[0, 1, 0, 1] = value
    with pytest.raises(ActVARError, match="not numbers"):
        to_bytes(pictures_B3HW)


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, None, (1, 1)), (5, None, (2, 3)), (6, 2, (3, 2))])
def test_a_sheet_holds_every_picture_at_its_place(count: int, columns: int | None, shape: tuple[int, int]):
    """Left to right, top to bottom, white between; about square unless told otherwise."""
    pictures = [np.full((3, 4, 3), 10 * i, np.uint8) for i in range(count)]
    result = sheet(iter(pictures), count, columns)
    rows, across = shape
    assert result.shape == (rows * 3 + (rows - 1) * SHEET_GAP, across * 4 + (across - 1) * SHEET_GAP, 3)
    rest = result.copy()
    for i, picture in enumerate(pictures):
        top, left = i // across * (3 + SHEET_GAP), i % across * (4 + SHEET_GAP)
        np.testing.assert_array_equal(result[top : top + 3, left : left + 4], picture)
        rest[top : top + 3, left : left + 4] = 255
    assert (rest == 255).all()


def test_a_png_holds_the_pixels_and_obeys_the_umask(tmp_path: Path):
    """Others may read it where new files may be read: a temporary file's own mode would be 0600."""
    pixels_HW3 = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    before = os.umask(0o027)
    try:
        write_report(tmp_path / "a.png", png(pixels_HW3), "--out")
    finally:
        os.umask(before)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels_HW3)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_a_png_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that fills up half-way leaves the old picture, and no remains."""
    write_report(tmp_path / "a.png", png(np.zeros((2, 2, 3), np.uint8)), "--out")
    old = (tmp_path / "a.png").read_bytes()

    def fill_up(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fill_up)
    with pytest.raises(ActVARError, match=r"a\.png cannot be written: No space left on device"):
        write_report(tmp_path / "a.png", png(np.ones((2, 2, 3), np.uint8)), "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == old
