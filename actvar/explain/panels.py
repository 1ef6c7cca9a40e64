"""Pictures put together into a figure: words, rows and columns on white.

Knows Pillow and nothing of what is shown. Pillow's own font has Latin letters alone, so anything else becomes "?".
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
TITLE, LABEL, SMALL = 30, 20, 15
_LONGEST = 160  # characters of one line


def words(text: str, size: int = LABEL, colour: str = INK) -> Image.Image:
    """One line of text, as high as any line of this size."""
    plain = "".join(c for c in text.encode("ascii", "replace").decode() if c.isprintable())[:_LONGEST]
    font = ImageFont.load_default(size)
    width = max(1, round(font.getlength(plain)) + 1)
    line = Image.new("RGB", (width, round(size * 1.35)), PAPER)
    ImageDraw.Draw(line).text((0, 0), plain, font=font, fill=colour)
    return line


def box(text: str, width: int, height: int = 0) -> Image.Image:
    """A line of text in an area of its own, so that rows of such are columns."""
    line = words(text)
    area = Image.new("RGB", (width, height or line.height), PAPER)
    area.paste(line, (0, (area.height - line.height) // 2))
    return area


def beside(parts: Sequence[Image.Image], gap: int = 16, centred: bool = False) -> Image.Image:
    """From left to right, their tops or their middles at one height."""
    height = max(part.height for part in parts)
    whole = Image.new("RGB", (sum(part.width for part in parts) + gap * (len(parts) - 1), height), PAPER)
    left = 0
    for part in parts:
        whole.paste(part, (left, (height - part.height) // 2 if centred else 0))
        left += part.width + gap
    return whole


def below(parts: Sequence[Image.Image], gap: int = 6, centred: bool = False) -> Image.Image:
    """From top to bottom, their left sides or their middles in one line."""
    width = max(part.width for part in parts)
    whole = Image.new("RGB", (width, sum(part.height for part in parts) + gap * (len(parts) - 1)), PAPER)
    top = 0
    for part in parts:
        whole.paste(part, ((width - part.width) // 2 if centred else 0, top))
        top += part.height + gap
    return whole


def in_rows(parts: Sequence[Image.Image], columns: int, gap: int = 24) -> Image.Image:
    """Parts of one size, left to right and top to bottom."""
    return below([beside(parts[i : i + columns], gap) for i in range(0, len(parts), columns)], gap)


def figure(title: str, note: str, parts: Sequence[Image.Image]) -> Image.Image:
    """Parts below each other under a title and a line about them, with a margin."""
    inside = below([below([words(title, TITLE), words(note, LABEL, FAINT)], 4), *parts], 28)
    margin = 32
    whole = Image.new("RGB", (inside.width + 2 * margin, inside.height + 2 * margin), PAPER)
    whole.paste(inside, (margin, margin))
    return whole
