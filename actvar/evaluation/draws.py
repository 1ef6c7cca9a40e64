"""The sets of pictures that a report compares: real ones, a VQVAE's reconstructions of them, a model's own.

Knows how each is had from picture numbers; not how it is judged.

Letters in shapes: N pictures, 3 H W their pixels, T tokens of all scales.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from actvar.config import Sampling
from actvar.data.glyphs import HELD_OUT_SEED, glyph_batch
from actvar.generation import generate
from actvar.models.actvar import ActVAR
from actvar.models.vqvae import VQVAE

Draw = Callable[[np.ndarray, np.ndarray], Tensor]
"""numbers_N and class_ids_N to pictures_N3HW in [-1, 1]. A picture may depend on its own number and class alone."""


def real_pictures(seed: int) -> Draw:
    """The Glyphs-100 stream of a seed; the classes asked for are those that it has at these numbers."""
    return lambda numbers_N, _: glyph_batch(numbers_N, seed)[0]


def reconstructions(vqvae: VQVAE) -> Draw:
    """Held-out pictures to tokens and back: the best that a transformer over these tokens can do."""

    @torch.no_grad()
    def draw(numbers_N: np.ndarray, class_ids_N: np.ndarray) -> Tensor:
        pictures_N3HW, _ = glyph_batch(numbers_N, HELD_OUT_SEED)
        device = vqvae.quantize.embedding.weight.device
        ids_NT = vqvae.encode(pictures_N3HW.to(device))
        return vqvae.decode(vqvae.quantize.decode(ids_NT)).cpu()

    return draw


def generated_pictures(model: ActVAR, sampling: Sampling, seed: int) -> Draw:
    """The model's pictures of one seed, as `generate` draws them."""

    def draw(numbers_N: np.ndarray, class_ids_N: np.ndarray) -> Tensor:
        generation = generate(model, class_ids_N.tolist(), sampling, seed, numbers_N.tolist())
        return generation.pictures_B3HW.cpu() * 2 - 1

    return draw
