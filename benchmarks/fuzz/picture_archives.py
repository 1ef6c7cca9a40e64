"""Pictures in an .npz, as the ADM suite has them, packed or not."""

import random
from pathlib import Path

import numpy as np

from actvar.benchmarks.fuzz.archives import change_archive, undate
from actvar.benchmarks.fuzz.references import look
from actvar.evaluation.picture_sets import write_npz

_SIDE = 8

FOLLOWS_LINKS = True  # of the file itself, which a user names


def samples(folder: Path) -> list[Path]:
    """One that we wrote, and one that is packed."""
    pictures_NHW3 = np.random.default_rng(0).integers(0, 64, (12, _SIDE, _SIDE, 3), np.uint8)
    files = [folder / name for name in ("plain.npz", "packed.npz")]
    write_npz(files[0], (12, _SIDE, _SIDE, 3), [pictures_NHW3])
    np.savez_compressed(files[1], pictures_NHW3)
    for file in files:
        undate(file)
    return files


def mutate(path: Path, rng: random.Random) -> None:
    """Change the file."""
    change_archive(path, rng)


def read(path: Path) -> None:
    """Look at every picture."""
    look(path, _SIDE)
