"""Pictures of class folders in an order without an end, for a training that looks at pictures alone.

Every round goes through all of them once, in an order of its own, and cuts each out anew. Which picture has a number
follows from the seed, so a training that was stopped goes on with what it would have seen.

Letters in shapes: B pictures, N of all, 3 red green blue, H W pixels down and across.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from actvar.console import say
from actvar.data.imagenet import FolderPictures, PictureFolders
from actvar.data.pictures import SkippedPicture
from actvar.data.preprocessing import Preprocessing
from actvar.errors import DataError


@dataclass(frozen=True)
class ShuffledPictures:
    """The pictures of a split as squares of `size` pixels; one that cannot be used is named, and the next stands in."""

    listed: PictureFolders
    size: int
    seed: int = 0
    _named: set[int] = field(default_factory=set, compare=False, repr=False)

    @property
    def identity(self) -> str:
        """What decides the pixels."""
        return f"{self.listed.sha256} {self.size} {self.seed}"

    def __call__(self, numbers: range) -> Tensor:
        """Pictures in [-1, 1], [B, 3, H, W].

        Raises:
            DataError: a file cannot be read at all, or none of the pictures can be used.
        """
        squares_BHH3 = np.stack([self._square(number) for number in numbers])
        return torch.from_numpy(squares_BHH3).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()

    def _square(self, number: int) -> np.ndarray:
        count = len(self.listed.names)
        turn, place = divmod(number, count)
        order_N = _order(self.seed, turn, count)
        folder = FolderPictures(self.listed, Preprocessing(self.size, "random", self.seed + turn))
        for later in range(count):
            square = folder.square(int(order_N[(place + later) % count]))
            if not isinstance(square, SkippedPicture):
                return square
            if square.number not in self._named:
                self._named.add(square.number)
                say(f"Skipped {square.name}: {square.reason}")
        raise DataError(f"None of the pictures in {self.listed.folder} can be used. Look at them.")


@lru_cache(maxsize=2)  # a batch may end in the next turn
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    """The pictures of a turn, N."""
    return np.random.Generator(np.random.Philox(key=[seed, turn])).permutation(count)
