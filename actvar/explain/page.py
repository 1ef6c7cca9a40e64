"""An explanation as one HTML file that needs nothing else: its pictures are inside, and a browser may load no others.

Knows HTML; what it shows is drawn by `actvar.explain.figures` and `plots`. All text is escaped.
"""

import io
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from actvar.errors import counted
from actvar.explain.choices import Choices, coverage, load

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1400px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } p { max-width: 46rem; }
img { max-width: 100%; height: auto; border: 1px solid #e4e7eb; }
table { border-collapse: collapse; }
th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #e4e7eb; }
th { font-weight: 600; } footer { color: #7b8794; margin-top: 3rem; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

CAPTIONS = {
    "tokens": (
        "Tokens",
        "In each block a selector keeps the tokens that would gain most, and the others wait for the next block. "
        "Blocks choose differently, so that nearly every token is updated by some of them (the paper's Figure 6).",
    ),
    "experts": (
        "Experts that tokens like best",
        "The feed-forward network of a block is cut into experts, and a router scores them for each token. "
        "Here is whom it puts first, second and third (the paper's Figure 5).",
    ),
    "chosen": (
        "Tokens of each expert",
        "All the experts that a token is given to, not its best alone: a small map for each block and expert.",
    ),
    "batch": ("Over a batch", "How many tokens are reached, and whether experts share the work."),
}
"""Of the figures by name: a heading, and what one sees."""


def png(image: Image.Image) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def page(title: str, figures: Mapping[str, bytes], choices: Choices, batch: Sequence[Choices], made_by: str) -> str:
    """The whole file.

    Args:
        title: of the picture.
        figures: PNG files by the names of CAPTIONS, in the order to be shown.
        choices: of the picture.
        batch: of other pictures at the same scale.
        made_by: the command.
    """
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>Scale {choices.scale}, {choices.side}×{choices.side} tokens, the row that knows the class.</p>",
    ]
    for name, file in figures.items():
        heading, caption = CAPTIONS[name]
        source = f"data:image/png;base64,{b64encode(file).decode()}"
        parts.append(f"<h2>{escape(heading)}</h2>\n<p>{escape(caption)}</p>")
        parts.append(f'<img alt="{escape(heading)}" src="{source}">')
    parts += ["<h2>In figures</h2>", *_table(choices, batch)]
    parts.append(f"<footer><code>{escape(made_by)}</code></footer>\n</body>\n</html>\n")
    return "\n".join(parts)


def _table(choices: Choices, batch: Sequence[Choices]) -> Iterator[str]:
    """A row for each block: its own tokens, those reached so far, and how far experts are from a fair share."""
    tokens = choices.kept_DL.shape[1]
    headings = [
        "block",
        "tokens updated",
        "reached so far",
        f"reached so far, mean of {counted(len(batch), 'picture')}",
    ]
    if choices.rests_experts:
        headings += ["least load of an expert", "greatest load"]
    yield "<table>\n<tr>" + "".join(f"<th>{escape(heading)}</th>" for heading in headings) + "</tr>"
    reached_D, loads_DN = coverage(batch).mean(0), load(batch)
    for i, (kept_L, covered_L) in enumerate(zip(choices.kept_DL, choices.covered_DL, strict=True)):
        cells = [f"{i + 1}", f"{kept_L.sum()} of {tokens}", f"{covered_L.sum()} of {tokens}", f"{reached_D[i]:.1%}"]
        if choices.rests_experts:
            cells += [f"{np.min(loads_DN[i]):.2f}", f"{np.max(loads_DN[i]):.2f}"]
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table>"
