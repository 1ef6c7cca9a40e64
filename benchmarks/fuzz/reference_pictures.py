"""Picture folders as `actvar-trt evaluate --reference` reads them."""

import random
from pathlib import Path

from actvar.benchmarks.fuzz.encoded_pictures import SIDE, mutate_pictures, write_pictures
from actvar.benchmarks.fuzz.references import look

FOLLOWS_LINKS = True


def samples(folder: Path) -> list[Path]:
    """Twelve pictures in two folders."""
    for number in range(2):
        write_pictures(folder / "reference" / f"part{number}", number)
    return [folder / "reference"]


def mutate(path: Path, rng: random.Random) -> None:
    """Change one picture, or where it lies."""
    mutate_pictures(path, rng)


def read(path: Path) -> None:
    """Look at every picture."""
    look(path, SIDE)
