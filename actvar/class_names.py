"""The names of Glyphs-100: ten shapes, ten colours, and the hundred classes that they make.

Knows words and their order; not how a glyph is drawn. Plain Python, so the command line may use it without torch.
"""

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring", "heart", "arrow", "crescent", "hourglass")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "white")

CLASS_NAMES = tuple(f"{colour}-{shape}" for shape in SHAPES for colour in COLOURS)
"""Name of every class; class_id = 10 * shape + colour, so class 88 is "brown-crescent"."""
