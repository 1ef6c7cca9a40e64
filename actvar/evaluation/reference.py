"""What pictures are held against: others in a folder or an .npz, stored statistics, or a stream of Glyphs-100.

Letters in shapes: N pictures, 3 H W their pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actvar.data.glyphs import HELD_OUT_SEED, PICTURE_SIZE, TRAIN_SEED, glyph_batch
from actvar.data.preprocessing import Preprocessing
from actvar.errors import ActVARError, UsageError, counted
from actvar.evaluation.frechet import FeatureStatistics
from actvar.evaluation.judges import Judge
from actvar.evaluation.picture_sets import ARRAY, PictureSet, Shape, npz_names, open_folder, open_npz
from actvar.evaluation.protocol import HeldAgainst
from actvar.evaluation.statistics_file import has_statistics, read_statistics
from actvar.files import hash_file

STREAMS = {"glyphs-train": TRAIN_SEED, "glyphs-held-out": HELD_OUT_SEED}
_ADM_SHAPE, _ADM_ARRAYS = (10_000, 256, 256, 3), {ARRAY, "mu", "sigma", "mu_s", "sigma_s"}
NEIGHBOURS = 3
"""Precision and recall ask whether a picture lies as near to another as that one's third neighbour does."""


@dataclass(frozen=True)
class GlyphStream:
    """The first pictures of a seed of Glyphs-100; see `actvar.evaluation.picture_sets.PictureSet`."""

    seed: int
    count: int

    @property
    def shape(self) -> Shape:
        """N, H, W, 3."""
        return self.count, PICTURE_SIZE, PICTURE_SIZE, 3

    def batches(self, at_once: int) -> Iterator[np.ndarray]:
        """In bytes as generated pictures are, truncated."""
        for first in range(0, self.count, at_once):
            pictures_N3HW, _ = glyph_batch(np.arange(first, min(first + at_once, self.count)), self.seed)
            yield ((pictures_N3HW + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class Reference:
    """Pictures, or statistics, or both: the ADM suite's files hold 10,000 pictures and the statistics of all."""

    name: str
    pictures: PictureSet | None
    statistics: FeatureStatistics | None
    cropped: Preprocessing | None = None
    """What made the pictures of a folder what they are here, if anything did."""
    file: Path | None = None
    """That it was read from, if it is one."""

    @property
    def described(self) -> HeldAgainst:
        """As a report names it; its file is read to the end.

        Raises:
            ActVARError: the file cannot be read.
        """
        return HeldAgainst(
            name=self.name,
            sha256=hash_file(self.file.resolve()).sha256 if self.file else None,
            pictures=self.count,
            fitted=self.statistics.count if self.statistics else self.count,
            resizing=self._resizing or "not at all",
            is_adm=_is_adm_batch(self),
        )

    @property
    def in_words(self) -> str:
        """Its name, and what was done to its pictures."""
        return f"{self.name}, {self._resizing}" if self._resizing else self.name

    @property
    def _resizing(self) -> str:
        if not self.cropped:
            return ""
        return f"cropped in the middle and resized to {self.cropped.size}×{self.cropped.size}"

    @property
    def count(self) -> int:
        """Pictures that will be looked at."""
        return self.pictures.shape[0] if self.pictures else 0


def open_reference(given: str, stream_count: int, judge: Judge, side: int, crop: bool = False) -> Reference:
    """What `--reference` names, of which little is read yet.

    Args:
        given: a stream, a folder, or an .npz.
        stream_count: how many pictures of a stream.
        judge: who will look.
        side: of the pictures that will be held against it.
        crop: make squares of that side of a folder's pictures, as `encode --split val` does.

    Raises:
        UsageError: what is to be cropped is no folder.
        ActVARError: there is no such thing, it is of another size, too small, or of another judge.
    """
    if crop and not Path(given).is_dir():
        raise UsageError(f"--crop-reference is for a folder of pictures, and {given} is none. Leave it out.")
    if given in STREAMS:
        reference = Reference(given, GlyphStream(STREAMS[given], stream_count), None)
    else:
        reference = _open_path(Path(given), judge, Preprocessing(side, "center") if crop else None)
    if reference.pictures is not None:
        count, height, width, _ = reference.pictures.shape
        if (height, width) != (side, side):
            raise ActVARError(
                f"{given} holds pictures of {width}×{height}, and the model draws {side}×{side}. "
                "Name a reference of the same size; of a folder, --crop-reference makes one."
            )
        if count <= NEIGHBOURS:
            raise ActVARError(
                f"{given} holds {counted(count, 'picture')}, expected {NEIGHBOURS + 1} or more. Name a larger one."
            )
    return reference


def _open_path(path: Path, judge: Judge, cropped: Preprocessing | None) -> Reference:
    if path.is_dir():
        return Reference(str(path), open_folder(path, cropped), None, cropped)
    if not path.is_file():
        streams = " or ".join(STREAMS)
        raise ActVARError(f"--reference {path} is not there. Name a folder of pictures, an .npz, or {streams}.")
    if not has_statistics(path):
        return Reference(str(path), open_npz(path), None, file=path)
    pictures = open_npz(path) if ARRAY in npz_names(path) else None
    return Reference(str(path), pictures, read_statistics(path, judge.name, judge.features), file=path)


def _is_adm_batch(reference: Reference) -> bool:
    """Whether an .npz has the arrays of the ADM suite's batch of ImageNet at 256×256."""
    return (
        reference.file is not None
        and reference.pictures is not None
        and reference.pictures.shape == _ADM_SHAPE
        and set(npz_names(reference.file)) == _ADM_ARRAYS
    )
