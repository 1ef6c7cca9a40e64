"""Plots: one description of each, as PNG and as SVG, the same bytes every time.

Knows matplotlib and nothing of what is shown. It is loaded by the first plot, and without it a command goes on: see
`where_possible`. A description is a function that makes a `Figure`; its style is set here while it is called.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from actvar.console import say
from actvar.errors import ActVARError, needs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format: TypeAlias = Literal["png", "svg"]
Colour: TypeAlias = str | tuple[float, float, float]

INK, FAINT, GRID = "#1f2933", "#6b7785", "#e4e7eb"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#a9b3bf"
"""Of Okabe and Ito's palette, whose colours nobody confuses, and a grey for what stands beside them."""
SERIES = (BLUE, ORANGE, GREEN, PURPLE)

_PALE, _DARK = (0.78, 0.87, 0.95), (0.03, 0.27, 0.53)
_DOTS_PER_INCH, _MARGIN = 120, 0.1
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": _DOTS_PER_INCH,
    "font.size": 10,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "actvar-trt",
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
}
_METADATA: dict[Format, dict[str, None]] = {"png": {"Software": None}, "svg": {"Creator": None, "Date": None}}


class NoPlots(ActVARError):
    """matplotlib is not installed."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, whose parts make room for each other.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    _require_library()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=_MARGIN, h_pad=_MARGIN)
    return figure


def rendered(draw: Callable[[], "Figure"], *formats: Format) -> tuple[bytes, ...]:
    """A plot as files, one for each format.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    _require_library()
    import matplotlib

    files = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own settings would change the bytes
        matplotlib.rcParams.update(_STYLE)
        figure = draw()
        for name in formats:
            file = io.BytesIO()
            figure.savefig(file, format=name, metadata=_METADATA[name])
            files.append(file.getvalue())
    return tuple(files)


@contextmanager
def where_possible() -> Iterator[None]:
    """Leave out the plots of this block where matplotlib is missing, and say in a line what to install."""
    try:
        yield
    except NoPlots as missing:
        say(f"No plot was drawn. {missing}")


def plot_files(name: str, draw: Callable[[], "Figure"]) -> dict[str, bytes]:
    """PNG and SVG of a plot by their files' names; see `where_possible`."""
    found: dict[str, bytes] = {}
    with where_possible():
        png, svg = rendered(draw, "png", "svg")
        found = {f"{name}.png": png, f"{name}.svg": svg}
    return found


def shades(count: int) -> list[Colour]:
    """Blues from pale to dark, for things that come one after another."""
    return [_between_pale_and_dark(i / max(count - 1, 1)) for i in range(count)]


def _between_pale_and_dark(share: float) -> Colour:
    red, green, blue = (pale + (dark - pale) * share for pale, dark in zip(_PALE, _DARK, strict=True))
    return red, green, blue


def _require_library() -> None:
    try:
        with needs("plot", "to draw plots"):
            import matplotlib.figure  # noqa: F401
    except ActVARError as missing:
        raise NoPlots(str(missing)) from None
    except RuntimeError as homeless:  # it looks for a home folder as it is loaded
        raise NoPlots(f"matplotlib cannot be loaded: {homeless} Set MPLCONFIGDIR to a folder.") from None
