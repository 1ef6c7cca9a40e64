"""The eager model as a source of pictures: the oracle behind the same seam as the graphs.

The only module of the runtime that loads PyTorch. Pictures are drawn one at a time: PyTorch's matrix products may round
otherwise when more rows go through them, and a picture must not depend on its neighbours.

Letters in shapes: B = 1 picture, E code width, S side of f_hat, H height and W width of a picture.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_checkpoint
from actvar.config import ModelConfig, Sampling
from actvar.generation import generate
from actvar.models.actvar import ActVAR
from actvar.runtime.image import to_bytes
from actvar.runtime.pictures import OnScaleEnd, Order, Picture, ScaleEnd, Turn, require_orders


@dataclass(frozen=True)
class EagerSource:
    """Draws with a network in evaluation mode; see `actvar.runtime.pictures.PictureSource`."""

    network: ActVAR
    _turn: Turn = field(default_factory=Turn, init=False, repr=False, compare=False)

    @property
    def model(self) -> ModelConfig:
        """What draws."""
        return self.network.config

    def draw(
        self,
        orders: Iterable[Order],
        sampling: Sampling,
        seed: int = 0,
        with_partials: bool = False,
        on_scale_end: OnScaleEnd | None = None,
    ) -> Iterator[Picture]:
        """See `PictureSource`.

        Raises:
            UsageError: an order or the seed is not for this model.
            ActVARError: the model gave values that are not numbers.
        """
        for order in orders:
            require_orders(self.model, [order], seed)
            with self._turn:
                picture = self._picture(order, sampling, seed, with_partials, on_scale_end)
            yield picture

    def _picture(
        self, order: Order, sampling: Sampling, seed: int, with_partials: bool, on_scale_end: OnScaleEnd | None
    ) -> Picture:
        scales = len(self.model.schedule)

        def tell(si: int, f_hat_BESS: torch.Tensor) -> None:
            if on_scale_end:
                on_scale_end(ScaleEnd(si + 1, scales, (order,), self._decode(f_hat_BESS)[None]))

        made = generate(self.network, [order.class_id], sampling, order.seed_in(seed), [order.number], tell)
        pixels_HW3 = to_bytes(made.pictures_B3HW.cpu().numpy())[0]
        partials = tuple(self._decode(f_hat_BESS) for f_hat_BESS in made.f_hats) if with_partials else ()
        return Picture(order, pixels_HW3, tuple(ids_BL[0].cpu().numpy() for ids_BL in made.token_ids), partials)

    @torch.no_grad()
    def _decode(self, f_hat_BESS: torch.Tensor) -> np.ndarray:
        """Pixels of one picture, uint8 [H, W, 3]."""
        return to_bytes((self.network.decode(f_hat_BESS).cpu().numpy() + 1) / 2)[0]


def load(checkpoint: Checkpoint, threads: int = 0) -> EagerSource:
    """Load a checkpoint.

    Args:
        checkpoint: the model.
        threads: for PyTorch in this whole process; 0 leaves its own choice.

    Raises:
        CheckpointError: the files cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    return EagerSource(load_checkpoint(checkpoint))
