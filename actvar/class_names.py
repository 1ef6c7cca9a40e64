"""The names of classes: of Glyphs-100, which the mini models draw, and of ImageNet, which official VAR draws.

Knows words and their order; not how a glyph is drawn. Plain Python, so the command line may use it without torch.
"""

import re
from functools import cache
from importlib.resources import files

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring", "heart", "arrow", "crescent", "hourglass")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "white")

CLASS_NAMES = tuple(f"{colour}-{shape}" for shape in SHAPES for colour in COLOURS)
"""Name of every class; class_id = 10 * shape + colour, so class 88 is "brown-crescent"."""

IMAGENET_CLASSES = 1000


@cache
def imagenet_names() -> tuple[tuple[str, ...], ...]:
    """Every name of each of ImageNet's thousand classes, in the order of their numbers.

    The first name is the one to show, and no two classes share it. The others are WordNet's, which two classes may
    share; the last is the class's WordNet id, such as n02099601.
    """
    lines = (files("actvar") / "assets" / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple((*names.split(", "), wordnet_id) for wordnet_id, _, names in (line.partition(" ") for line in lines))


def normal(name: str) -> str:
    """A name as it is compared: capitals, blanks, hyphens and underscores do not matter."""
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())
