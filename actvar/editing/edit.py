"""An edit: a square picture, and of every scale the tokens that stay.

Letters in shapes: H side of a picture, S side of the finest grid of tokens, L tokens of a scale.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from actvar.bundle.contract import DRAWN
from actvar.config import ModelConfig
from actvar.data.picture_files import MAX_PIXELS
from actvar.editing.area import Rectangle, kept_by_mask, kept_by_rectangle, kept_tokens, require_both
from actvar.editing.square import AnyPicture, square_mask, square_picture


@dataclass(frozen=True, eq=False)
class Edit:
    """What is edited.

    Attributes:
        pixels_HH3: the picture, uint8.
        kept_SS: the finest grid's kept tokens.
        kept: those of every scale, bool [L].
        notes: what was done to the picture before, in words.
    """

    pixels_HH3: np.ndarray
    kept_SS: np.ndarray
    kept: tuple[np.ndarray, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, model: ModelConfig, picture: AnyPicture, mask: Any, max_pixels: int = MAX_PIXELS) -> "Edit":
        """Prepare a picture and what is to become of it.

        Args:
            model: whose size and scales count.
            picture: of any size and mode.
            mask: a `Keep` or `Replace`; or a picture as large as the first, white or transparent where it is to change.
            max_pixels: of either; more are taken for an attack.

        Raises:
            ArgumentError: one of them cannot be used, or all would be kept, or nothing.
        """
        square, side = square_picture(picture, model.picture_size, max_pixels), model.schedule.side
        if isinstance(mask, Rectangle):
            kept_SS = kept_by_rectangle(mask, side)
        else:
            kept_SS = kept_by_mask(square_mask(mask, model.picture_size, square.before, max_pixels), side)
        require_both(kept_SS)
        return cls(square.pixels_HH3, kept_SS, kept_tokens(kept_SS, model.schedule), square.notes)

    def given(self, codes: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Of the picture's codes of every scale, int64 [L], those that stay, and `DRAWN` for the others."""
        return tuple(np.where(kept_L, codes_L, DRAWN) for kept_L, codes_L in zip(self.kept, codes, strict=True))

    def pasted_on(self, image: Any) -> Any:
        """`pasted` for a picture of Pillow's, or of numpy's in [0, 1]; of the same kind."""
        if isinstance(image, Image.Image):
            return Image.fromarray(self.pasted(np.asarray(image)))
        return self.pasted(np.rint(image * 255).astype(np.uint8)).astype(np.float32) / 255

    def pasted(self, drawn_HH3: np.ndarray) -> np.ndarray:
        """A drawn picture with the kept pixels as they were; at the seam they fade within the width of a token."""
        pixels = len(self.pixels_HH3) // len(self.kept_SS)
        kept_HH = np.kron(self.kept_SS, np.ones((pixels, pixels), np.uint8)) * np.uint8(255)
        blurred = Image.fromarray(kept_HH).filter(ImageFilter.BoxBlur(max(1, pixels // 2)))
        share_HH1 = (np.asarray(blurred, np.float32) / 127.5 - 1).clip(0, 1)[..., None]  # 0 at the seam and beyond
        return np.rint(self.pixels_HH3 * share_HH1 + drawn_HH3 * (1 - share_HH1)).astype(np.uint8)
