"""What every data set gives: pictures by number, their classes, and which of them could not be used.

Letters in shapes: N pictures, 3 red green blue, H W pixels down and across.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that cannot be used. It keeps its number, so that no other's changes."""

    number: int
    name: str
    reason: str


@dataclass(frozen=True)
class PictureBatch:
    """Pictures N3HW, float32 in [-1, 1], and class ids N, int64. A skipped one is grey and means nothing."""

    pictures_N3HW: Tensor
    class_ids_N: Tensor
    skipped: tuple[SkippedPicture, ...] = ()


class PictureSource(Protocol):
    """A data set. Picture `number` is the same whenever and with whichever others it is loaded."""

    @property
    def identity(self) -> Mapping[str, object]:
        """What decides the pixels, as plain JSON types: another set or preparation has another identity."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """By number, printable and each once; empty where classes have none."""

    def __len__(self) -> int:
        """How many pictures there are, skipped ones among them."""

    def load(self, numbers: range) -> PictureBatch:
        """The pictures of these numbers; may be called from any thread."""
