"""Draws what is missing in a run of numbered pictures, file by file.

Letters in shapes: N pictures, H W pixels down and across, 3 red green blue.
"""

from collections.abc import Callable
from itertools import islice

import numpy as np

from actvar.config import Sampling
from actvar.evaluation.picture_run import NumberedRun, Shard
from actvar.runtime.pictures import Order, PictureSource


def draw_missing(
    run: NumberedRun, shard: Shard, source: PictureSource, sampling: Sampling, advance: Callable[[int], None]
) -> None:
    """Draw the pictures of all files that are not there, in the memory of one file.

    A batch may reach from one file into the next: no picture depends on which others are drawn with it.

    Args:
        run: where they go.
        shard: the part of it that is this process's.
        source: what draws.
        sampling: with these settings.
        advance: told how many more pictures are drawn.

    Raises:
        ActVARError: a picture cannot be drawn, or a file not be written.
    """
    missing, spec = run.missing(shard), run.spec
    orders = (Order(spec.class_of(number), number) for piece in missing for number in piece.numbers)
    pictures = source.draw(orders, sampling, spec.seed)
    for piece in missing:
        pictures_NHW3 = np.empty((piece.count, *run.shape[1:]), np.uint8)
        for i, picture in enumerate(islice(pictures, piece.count)):
            pictures_NHW3[i] = picture.pixels_HW3
            advance(1)
        run.save(piece, pictures_NHW3)
