"""A model that draws batches by steps that were recorded once for each size of a batch.

Sizes are powers of two up to the largest, so that few recordings serve any number of pictures: what is left over of a
batch repeats its last picture. All sizes share the weights, and one memory for the KV cache.

Letters in shapes: B pictures, S tokens of all scales, H height and W width of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actvar.bundle.contract import DRAWN
from actvar.config import HEAD_WIDTH, ModelConfig, Sampling
from actvar.drawers import AfterScale, Drawn, ToDraw, checked, encoded
from actvar.models.actvar import ActVAR
from actvar.recorded.operators import SparseOperators
from actvar.recorded.recorders import Recorder, Step
from actvar.recorded.steps import Places, Steps, cached_tokens
from actvar.recorded.weights import COMPUTED_IN, Precision, Weights
from actvar.uniforms import token_randoms


@dataclass(frozen=True, eq=False)
class _Recorded:
    places: Places
    steps: tuple[Step, ...]


class RecordedModel:
    """Draws at most `largest` pictures at a time; see `actvar.drawers.Drawer`.

    Args:
        network: whose weights are taken; it stays as it is.
        precision: see `actvar.recorded.weights`.
        device: as PyTorch names it.
        operators: the sparse parts.
        record: see `Recorder`.
        largest: number of pictures at a time.
    """

    def __init__(
        self,
        network: ActVAR,
        precision: Precision,
        device: str,
        operators: SparseOperators,
        record: Recorder,
        largest: int = 1,
    ):
        self.config: ModelConfig = network.config
        self.precision, self.largest = precision, largest
        self._weights, self._operators, self._record = Weights.of(network, precision, device), operators, record
        config, rows = self.config, self.config.row_groups(0) * largest
        values = config.depth * 2 * rows * config.heads * cached_tokens(config) * HEAD_WIDTH
        self._kv = torch.empty(values, dtype=COMPUTED_IN[precision], device=device)
        self._recorded: dict[int, _Recorded] = {}
        self._vqvae = network.vqvae  # of which the weights above have no encoder

    @torch.no_grad()
    def draw(
        self,
        pictures: Sequence[ToDraw],
        sampling: Sampling,
        with_partials: bool = False,
        after_scale: AfterScale | None = None,
    ) -> Drawn:
        """See `Drawer`."""
        count = len(pictures)
        recorded = self._of_size(min(1 << (count - 1).bit_length(), self.largest))
        places, (condition, *scales, decode) = recorded.places, recorded.steps
        self._fill(places, pictures, sampling)
        partials = []
        condition()
        for si, scale in enumerate(scales):
            scale()
            if with_partials or after_scale:
                decode()
                partials.append(_seen(places, count))
            if after_scale:
                after_scale(si, partials[-1])
        if not partials:
            decode()
        pixels_BHW3 = partials[-1] if partials else _seen(places, count)
        token_ids_BS = places.token_ids_BS.cpu().numpy()[:count].copy()
        return Drawn(pixels_BHW3, token_ids_BS, tuple(partials) if with_partials else ())

    def encode(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """See `Drawer`; by the network, where that is."""
        return encoded(self._vqvae, pixels_HW3)

    def steps_of(self, pictures: int) -> tuple[Step, ...]:
        """The recorded steps of a batch size, a power of two or the largest: condition, scales, decoder."""
        return self._of_size(pictures).steps

    def _of_size(self, pictures: int) -> _Recorded:
        if pictures not in self._recorded:
            places = Places.of(self.config, pictures, self._kv)
            steps = Steps(self.config, self._weights, self.precision, self._operators, places).all()
            self._recorded[pictures] = _Recorded(places, tuple(map(self._record, steps)))
        return self._recorded[pictures]

    def _fill(self, places: Places, pictures: Sequence[ToDraw], sampling: Sampling) -> None:
        """Put the batch where the steps read it."""
        size, groups = len(places.f_hat_BEHH), self.config.row_groups(0)
        batch = [*pictures, *[pictures[-1]] * (size - len(pictures))]
        class_ids = [picture.class_id for picture in batch]
        places.classes_R.copy_(torch.tensor([*class_ids, *[self.config.num_classes] * size * (groups - 1)]))
        config, schedule = self.config, self.config.schedule
        randoms = [
            np.concatenate([token_randoms(config, each.seed, each.number, si) for si in range(len(schedule))])
            for each in batch
        ]
        places.randoms.copy_(torch.from_numpy(np.stack(randoms)))
        given_BS = [np.concatenate(each.given or [np.full(schedule.total, DRAWN)]) for each in batch]
        places.given_BS.copy_(torch.from_numpy(np.array(given_BS, np.int64)))
        for name in ("cfg", "top_k", "top_p"):
            getattr(places, name).fill_(getattr(sampling, name))


def _seen(places: Places, count: int) -> np.ndarray:
    """The first so many pictures' pixels as they are now."""
    return checked((places.pixels_BHW3[:count], places.is_finite))
