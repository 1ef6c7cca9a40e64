"""Pictures drawn twice, and how many of their tokens are the same.

Knows pictures, not where they come from.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from actvar.bundle.contract import scale_name
from actvar.config import ModelConfig
from actvar.runtime.pictures import Order, Picture, PictureSource

SEED = 7


def orders(model: ModelConfig, pictures: int) -> list[Order]:
    """Pictures spread over the classes."""
    return [Order(number * model.num_classes // pictures, number) for number in range(pictures)]


def drawn(source: PictureSource, what: Sequence[Order]) -> list[Picture]:
    """The pictures of these orders."""
    return list(source.draw(what, source.model.sampling, SEED))


def agreement(found: Sequence[Picture], wanted: Sequence[Picture]) -> dict[str, Any]:
    """Of each scale how many tokens there are and how many are the same, and the largest difference of a pixel."""
    scales = {}
    for si in range(len(wanted[0].token_ids)):
        equal = [a.token_ids[si] == b.token_ids[si] for a, b in zip(found, wanted, strict=True)]
        scales[scale_name(si)] = {"tokens": int(np.size(equal)), "equal": int(np.sum(equal))}
    pixels = [
        np.abs(a.pixels_HW3.astype(int) - b.pixels_HW3.astype(int)).max() for a, b in zip(found, wanted, strict=True)
    ]
    return {"pictures": len(wanted), "scales": scales, "largest_pixel_difference": int(max(pixels))}


def all_equal(found: dict[str, Any]) -> bool:
    """Whether every token of an agreement is the same."""
    return all(scale["equal"] == scale["tokens"] for scale in found["scales"].values())


def same_bytes(found: Sequence[Picture], wanted: Sequence[Picture]) -> bool:
    """Whether tokens and pixels are the same, bit by bit."""
    return all(
        np.array_equal(a.pixels_HW3, b.pixels_HW3)
        and all(np.array_equal(*ids) for ids in zip(a.token_ids, b.token_ids, strict=True))
        for a, b in zip(found, wanted, strict=True)
    )
