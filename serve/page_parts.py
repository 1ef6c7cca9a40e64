"""The parts of the page as HTML, and how they look: scales, the picture, what reproduces it, what its blocks chose.

Knows HTML; all text is escaped, and all pictures are inside.
"""

import shlex
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlencode

from PIL import Image

from actvar.explain.page import png

STYLE = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
#scales .strip { display: grid; grid-template-columns: repeat(10, 1fr); gap: 8px; }
.strip figure, .panels figure, .made figure { margin: 0; }
.strip img, .strip .empty { width: 100%; aspect-ratio: 1; border-radius: 4px; display: block; }
.strip .empty { border: 1px dashed #cbd2d9; box-sizing: border-box; }
.strip img, .made img, .panels img { image-rendering: pixelated; }
.strip figcaption { font-size: 12px; text-align: center; color: #7b8794; }
.made { display: grid; grid-template-columns: minmax(0, 384px) minmax(0, 1fr); gap: 24px; }
.made img { width: 100%; border-radius: 6px; display: block; }
.made pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f0f3f6; color: #1f2933;
  padding: 10px 12px; border-radius: 6px; font-size: 13px; margin: 4px 0 12px; }
.made dt { font-weight: 600; } .made dd { margin: 0 0 12px; overflow-wrap: anywhere; }
.made a { padding: 0 !important; margin: 0 !important; }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; }
.panels img { width: 100%; border-radius: 4px; display: block; }
.panels figcaption { font-size: 13px; line-height: 1.35; margin-top: 4px; }
.told { color: #b42318; }
footer { display: none !important; }
@media (max-width: 700px) {
  #scales .strip { grid-template-columns: repeat(5, 1fr); }
  .made { grid-template-columns: minmax(0, 1fr); }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""


@dataclass(frozen=True)
class Shown:
    """A picture on the page: what reproduces it, in words for a link, for a shell and for Python.

    `chosen` is what names its class: a number, or "none".
    """

    model: str
    chosen: int | str
    label: str
    seed: int
    number: int
    guidance: float

    @property
    def link(self) -> str:
        """The page with this picture."""
        fields = {"class": self.chosen, "seed": self.seed, "guidance": f"{self.guidance:g}", "number": self.number}
        return f"/?{urlencode(fields)}"

    @property
    def command(self) -> str:
        """What draws it on the command line; where it is not the first of its seed, after those before it."""
        words = ["actvar-trt", "generate", "--model", self.model, "--class", str(self.chosen)]
        words += ["--seed", str(self.seed), "--cfg", f"{self.guidance:g}"]
        return shlex.join(words + (["--count", str(self.number + 1)] if self.number else []))

    @property
    def python(self) -> str:
        """What draws it in Python."""
        count = f", num_images_per_label={self.number + 1}" if self.number else ""
        return (
            f"from actvar import Pipeline\n\npipe = Pipeline.from_pretrained({self.model!r})\n"
            f"image = pipe({self.chosen!r}, {self.guidance:g}, seed={self.seed}{count}).images[{self.number}]"
        )


def strip(pictures: Sequence[str], scales: int) -> str:
    """The scales so far, as PNG files in base 64, and room for those to come."""
    cells = [f'<img alt="scale {i + 1}" src="{_data(one)}">' for i, one in enumerate(pictures)]
    cells += ['<div class="empty"></div>'] * (scales - len(cells))
    figures = (f"<figure>{cell}<figcaption>{i + 1}</figcaption></figure>" for i, cell in enumerate(cells))
    return f'<div class="strip">{"".join(figures)}</div>'


def result(picture: str, shown: Shown) -> str:
    """The picture, a PNG file in base 64, and what reproduces it."""
    what = f"class {shown.label}, seed {shown.seed}, picture {shown.number}"
    return (
        f'<div class="made"><figure><img id="picture" alt="{escape(what)}" src="{_data(picture)}"></figure><dl>'
        f"<dt>Picture</dt><dd>{escape(what)}</dd>"
        f'<dt>Link</dt><dd><a id="link" href="{escape(shown.link)}">{escape(shown.link)}</a></dd>'
        f'<dt>Command line</dt><dd><pre id="command">{escape(shown.command)}</pre></dd>'
        f'<dt>Python</dt><dd><pre id="python">{escape(shown.python)}</pre></dd></dl></div>'
    )


def explanation(scale: int, panels: Sequence[tuple[Image.Image, str]]) -> str:
    """What each block chose."""
    figures = (
        f'<figure><img alt="{escape(did)}" src="{_data(b64encode(png(image)).decode())}">'
        f"<figcaption>{escape(did)}</figcaption></figure>"
        for image, did in panels
    )
    heading = f"<h3>What was activated at scale {scale}</h3><p>Faded tokens were skipped by the block.</p>"
    return f'<div id="activated">{heading}<div class="panels">{"".join(figures)}</div></div>'


def message(text: str) -> str:
    """A sentence."""
    return f'<p class="told">{escape(text)}</p>'


def _data(picture: str) -> str:
    return f"data:image/png;base64,{picture}"
