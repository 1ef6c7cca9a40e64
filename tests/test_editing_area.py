"""What is kept of a picture: rectangles and masks, scale by scale; and pictures of every sort as squares."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_models import small_config

from actvar.config import MINI
from actvar.editing.area import Keep, Replace, kept_by_rectangle, kept_tokens, resized
from actvar.editing.edit import Edit
from actvar.editing.square import square_mask, square_picture
from actvar.errors import ArgumentError
from actvar.scales import LARGE_PATCH_NUMS, STANDARD_PATCH_NUMS, ScaleSchedule

SIZE = MINI.picture_size
AREA = Replace(0.25, 0.25, 0.75, 0.75)


def png(picture: Image.Image, **more: object) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG", **more)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture, uint8 [H, W, channels]."""
    return np.random.default_rng(0).integers(256, size=(height, width, channels), dtype=np.uint8)


def white(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask that draws a box anew."""
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("patch_nums", [STANDARD_PATCH_NUMS, LARGE_PATCH_NUMS, (1, 2, 3, 5)])
def test_every_scale_keeps_what_torchs_resize_leaves_over_a_half(patch_nums: tuple[int, ...]):
    """Of rectangles and of any mask, also where a token lies halfway between two and the last bit decides."""
    schedule, side, random = ScaleSchedule(patch_nums), patch_nums[-1], np.random.default_rng(0)
    for turn in range(60):
        kept_SS = random.random((side, side)) < random.random()
        if turn % 2:
            (y0, y1), (x0, x1) = np.sort(random.integers(0, side + 1, (2, 2)))
            kept_SS = np.zeros((side, side), bool)
            kept_SS[y0:y1, x0:x1] = True
        map_11SS = torch.from_numpy(kept_SS)[None, None].float()
        for p, kept_L in zip(patch_nums, kept_tokens(kept_SS, schedule), strict=True):
            wanted = F.interpolate(map_11SS, size=(p, p), mode="bilinear", align_corners=False) > 0.5
            assert (kept_L == (wanted.numpy().ravel() | (p == 1))).all(), (turn, p)


def test_a_map_of_its_own_size_stays():
    """The finest scale keeps what was said."""
    kept_SS = noise(16, 16)[..., 0] > 100
    assert (resized(kept_SS.astype(np.float32), 16) == kept_SS).all()


def test_a_rectangle_is_rounded_to_tokens_as_official_var_rounds_it():
    """`round(y0 * ph)`, halves to the even side."""
    kept_SS = kept_by_rectangle(Keep(0.1, 0.2, 0.53125, 0.8), 16)
    rows, columns = np.nonzero(kept_SS)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (3, 13, 2, 8)
    assert (kept_by_rectangle(Replace(0.1, 0.2, 0.53125, 0.8), 16) == ~kept_SS).all()


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "a,b,c,d", "0,0,0,1", "0.5,0,0.2,1", "0,0,1.5,1", "nan,0,1,1", "0,0,1,inf"]
)
def test_a_rectangle_that_is_none_is_refused(text: str):
    """With the form that it should have."""
    with pytest.raises(ArgumentError, match=r"X0,Y0,X1,Y1 in shares of the picture's side, as 0\.25,0\.25,0\.75,0\.75"):
        Keep.parse(text)


def test_a_rectangle_and_a_mask_of_it_are_the_same_edit():
    """White is drawn anew; so is what is transparent; numpy's bools say it, too."""
    picture, box = noise(SIZE, SIZE), (16, 16, 48, 48)
    by_rectangle = Edit.of(MINI, picture, AREA)
    mask = white((SIZE, SIZE), box)
    clear = Image.fromarray(np.dstack([picture, 255 - np.asarray(mask)]))
    opaque = Image.merge("RGBA", [mask] * 3 + [Image.new("L", mask.size, 255)])
    for given in (mask, clear, opaque, png(mask), np.asarray(mask) > 0):
        edit = Edit.of(MINI, picture, given)
        assert (edit.kept_SS == by_rectangle.kept_SS).all()
        assert all(map(np.array_equal, edit.kept, by_rectangle.kept))


def test_a_picture_of_the_models_size_stays_and_others_go_as_training_went():
    """Nothing is said of the first; of others what was done. A mask goes the same way."""
    picture = noise(SIZE, SIZE)
    square = square_picture(picture, SIZE)
    assert (square.pixels_HH3 == picture).all() and square.notes == ()
    wide = square_picture(noise(90, 200), SIZE)
    assert wide.pixels_HH3.shape == (SIZE, SIZE, 3) and wide.before == (200, 90)
    assert wide.notes == ("resized from 200x90, and its middle cut out: 64x64",)
    replaced_HH = square_mask(white((200, 90), (100, 0, 200, 90)), SIZE, wide.before)
    assert replaced_HH[:, :31].max() == 0 and replaced_HH[:, 33:].min() == 1


def test_a_picture_is_turned_upright_and_laid_on_white():
    """As a person sees it; and that is said."""
    picture = Image.fromarray(noise(SIZE, SIZE))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = square_picture(png(picture, exif=exif), SIZE)
    assert (turned.pixels_HH3 == np.rot90(np.asarray(picture), -1)).all()
    assert turned.notes == ("turned upright, as its EXIF says",)
    clear = Image.fromarray(np.dstack([np.asarray(picture), np.zeros((SIZE, SIZE), np.uint8)]))
    on_white = square_picture(clear, SIZE)
    assert (on_white.pixels_HH3 == 255).all() and on_white.notes == ("laid on white where it is transparent",)
    assert square_picture(picture.convert("L"), SIZE).notes == ("made RGB of L",)


BOMB = b"P5 100000 100000 255 "
MASK = white((SIZE, SIZE), (0, 0, 32, 32))


@pytest.mark.parametrize(
    ("picture", "mask", "words"),
    [
        (b"no picture", AREA, "The picture cannot be used: cannot identify"),
        (png(Image.fromarray(noise(SIZE, SIZE)))[:-4000], AREA, "The picture cannot be used: .*truncated"),
        (BOMB, AREA, "The picture cannot be used: Image size .* exceeds limit"),
        (np.zeros((8, 8, 3)), AREA, "an array must be uint8 of .* this is float64"),
        (noise(1, 20000), AREA, "too long and narrow"),
        ("nowhere.png", AREA, "The picture nowhere.png cannot be used: No such file"),
        (noise(SIZE, SIZE), MASK.resize((32, 32)), "The mask has 32x32 pixels, and the picture 64x64"),
        (noise(SIZE, SIZE), b"no mask", "The mask cannot be used: cannot identify"),
        (noise(SIZE, SIZE), Image.new("L", (SIZE, SIZE), 0), "All of the largest token map, 16x16, would be kept"),
        (noise(SIZE, SIZE), Image.new("L", (SIZE, SIZE), 255), "None of the largest token map, 16x16, would be kept"),
        (noise(SIZE, SIZE), Keep(0, 0, 1, 1), "All of the largest token map"),
        (noise(SIZE, SIZE), Replace(0, 0, 0.01, 1), "All of the largest token map"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_words(picture: object, mask: object, words: str):
    """Nothing is drawn, and no more than a bomb's head is read."""
    with pytest.raises(ArgumentError, match=words):
        Edit.of(MINI, picture, mask)


def test_what_is_pasted_is_the_pictures_own_up_to_a_seam():
    """Far from it, either side is what it was; between, it goes from one to the other."""
    config = small_config((1, 2, 4, 8))
    size = config.picture_size
    edit = Edit.of(config, np.full((size, size, 3), 200, np.uint8), Keep(0, 0, 0.5, 1))
    pasted = edit.pasted(np.zeros((size, size, 3), np.uint8))
    row = pasted[size // 2, :, 0]
    assert (row[: size // 2 - 1] == 200).all() and (row[size // 2 :] == 0).all()
    assert 0 <= row[size // 2 - 1] < 200
    whole = np.full((size, size, 3), 0.25, np.float32)
    assert edit.pasted_on(whole)[0, 0, 0] == pytest.approx(200 / 255)
    assert edit.pasted_on(Image.fromarray(np.zeros((size, size, 3), np.uint8))).getpixel((0, 0)) == (200, 200, 200)
