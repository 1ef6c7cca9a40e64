"""What draws a batch of pictures in PyTorch, and the one that the others are compared with: the eager model itself.

Letters in shapes: B pictures, S tokens of all scales, E code width, H height and W width of a picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from actvar.config import ModelConfig, Sampling
from actvar.errors import ActVARError
from actvar.generation import generate
from actvar.image import to_numbers
from actvar.models.actvar import ActVAR
from actvar.models.vqvae import VQVAE


@dataclass(frozen=True)
class ToDraw:
    """A picture: its class, or the number after the last for none, and the seed and number of its random numbers.

    `given` are codes of every scale that take the places of drawn ones, [L] int64, with `DRAWN` where there is none.
    """

    class_id: int
    seed: int
    number: int
    given: tuple[np.ndarray, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch: pixels uint8 [B, H, W, 3], token ids int64 [B, S]; `partials` are pixels after each scale, if wanted."""

    pixels_BHW3: np.ndarray
    token_ids_BS: np.ndarray
    partials: tuple[np.ndarray, ...]


AfterScale: TypeAlias = Callable[[int, np.ndarray], object]
"""Is given a scale's index and the pixels as they are then, before the next begins."""


class Drawer(Protocol):
    """Draws up to `largest` pictures at a time, for one thread."""

    @property
    def config(self) -> ModelConfig:
        """Of the model."""

    @property
    def largest(self) -> int:
        """Pictures at a time."""

    def draw(
        self,
        pictures: Sequence[ToDraw],
        sampling: Sampling,
        with_partials: bool = False,
        after_scale: AfterScale | None = None,
    ) -> Drawn:
        """Draw a batch; `with_partials` gives the pixels after every scale, too.

        Raises:
            ActVARError: the model gave values that are not numbers.
        """

    def encode(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """The codes of all scales of a picture of the model's size, uint8 [H, W, 3] -> [S] int64."""


@dataclass(frozen=True)
class EagerModel:
    """A network in evaluation mode; see `Drawer`.

    Pictures are drawn one at a time: PyTorch's matrix products may round otherwise when more rows go through them, and
    a picture must not depend on its neighbours.
    """

    network: ActVAR

    @property
    def config(self) -> ModelConfig:
        """See `Drawer`."""
        return self.network.config

    @property
    def largest(self) -> int:
        """See `Drawer`."""
        return 1

    def draw(
        self,
        pictures: Sequence[ToDraw],
        sampling: Sampling,
        with_partials: bool = False,
        after_scale: AfterScale | None = None,
    ) -> Drawn:
        """See `Drawer`."""
        [picture] = pictures

        def tell(si: int, f_hat_BEHH: Tensor) -> None:
            if after_scale:
                after_scale(si, self._pixels(f_hat_BEHH))

        given = [codes_L[None] for codes_L in picture.given]
        made = generate(self.network, [picture.class_id], sampling, picture.seed, [picture.number], tell, given)
        token_ids_BS = torch.cat(made.token_ids, dim=1).cpu().numpy()
        partials = tuple(map(self._pixels, made.f_hats)) if with_partials else ()
        return Drawn(checked(pixels(made.pictures_B3HW)), token_ids_BS, partials)

    def encode(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """See `Drawer`."""
        return encoded(self.network.vqvae, pixels_HW3)

    @torch.no_grad()
    def _pixels(self, f_hat_BEHH: Tensor) -> np.ndarray:
        return checked(pixels((self.network.decode(f_hat_BEHH) + 1) / 2))


def encoded(vqvae: VQVAE, pixels_HW3: np.ndarray) -> np.ndarray:
    """See `Drawer.encode`."""
    picture_13HW = torch.from_numpy(to_numbers(pixels_HW3[None]))
    return vqvae.encode(picture_13HW * 2 - 1)[0].numpy()


def pixels(pictures_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures in [0, 1] as uint8 [B, H, W, 3], as `actvar.image.to_bytes` has it; and if all are numbers."""
    scaled_B3HW = pictures_B3HW.clamp(0, 1) * 255
    return scaled_B3HW.to(torch.uint8).permute(0, 2, 3, 1), pictures_B3HW.isfinite().all()


def checked(found: tuple[Tensor, Tensor]) -> np.ndarray:
    """Pixels on the host, an array of its own.

    Raises:
        ActVARError: they are of values that are not numbers.
    """
    pixels_BHW3, are_numbers = found
    if not are_numbers.item():
        raise ActVARError(
            "The model drew values that are not numbers, so its weights are damaged or too large for this precision. "
            "Use another checkpoint, or fp32."
        )
    return np.array(pixels_BHW3.cpu().numpy(), order="C")
