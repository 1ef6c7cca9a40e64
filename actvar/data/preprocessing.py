"""A picture file's bytes to the square of pixels that the VQVAE reads, as official VAR prepares ImageNet.

The short side becomes 1.125 times the square's by Lanczos, then the square is cut out: at random for training, from
the middle for validation. Knows bytes and pixels; not where a file lies or which class it is of.

Letters in shapes: H W pixels down and across, 3 red green blue.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from actvar.data.picture_files import MAX_PIXELS, UnusablePictureError, opened_picture

_MARGIN = 1.125

Crop: TypeAlias = Literal["random", "center"]


@dataclass(frozen=True)
class Preprocessing:
    """The square's side in pixels, and where it is cut out; `seed` decides that, with the picture's number."""

    size: int
    crop: Crop
    seed: int = 0

    @property
    def short_side(self) -> int:
        """Of the picture that the square is cut out of."""
        return round(_MARGIN * self.size)

    @property
    def identity(self) -> dict[str, object]:
        """What decides the pixels."""
        seed = {"seed": self.seed} if self.crop == "random" else {}
        return {"size": self.size, "short_side": self.short_side, "filter": "lanczos", "crop": self.crop, **seed}

    def square(self, data: bytes, number: int) -> np.ndarray:
        """Picture `number` of a data set, from its file's bytes: uint8 HW3.

        Raises:
            UnusablePictureError: the bytes are no whole picture of a known format and of a bounded size.
        """
        with opened_picture(data) as image:
            self._resized(*image.size)  # before anything is decoded
            square = self.fitted(image.convert("RGB"), number)
        return np.asarray(square)

    def fitted(self, image: Image.Image, number: int, by: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """A picture that is open, resized by this filter and cut out.

        Raises:
            UnusablePictureError: it is too large, or too long and narrow.
        """
        width, height = self._resized(*image.size)
        left, top = self._corner(width - self.size, height - self.size, number)
        return image.resize((width, height), by).crop((left, top, left + self.size, top + self.size))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height whose shorter is `short_side`; torchvision, too, cuts the longer to a whole number."""
        longer = int(self.short_side * max(width, height) / min(width, height))
        if max(width * height, longer * self.short_side) > MAX_PIXELS:
            raise UnusablePictureError(f"{width}x{height} pixels are too many, or too long and narrow")
        return (self.short_side, longer) if width <= height else (longer, self.short_side)

    def _corner(self, spare_across: int, spare_down: int, number: int) -> tuple[int, int]:
        """Left and top of the square."""
        if self.crop == "center":
            return round(spare_across / 2), round(spare_down / 2)  # halves to the even side, as torchvision has it
        across, down = np.random.Generator(np.random.Philox(key=[self.seed, number])).random(2)
        return int(across * (spare_across + 1)), int(down * (spare_down + 1))
