"""An episode as a picture, for those who collect pictures of an environment: ``render_mode="rgb_array"``.

It shows what ``textenv.env.render`` shows. Pillow draws the characters, in the fonts that matplotlib brings: the same
pixels on every machine, in milliseconds. matplotlib's own text would read dollar signs as formulas and warn of every
character that its font lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from textenv.env.render import background, figures, shown_turns, visible
from textenv.types import Episode

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

__all__ = ["PICTURE_SIZE", "to_picture"]

PICTURE_SIZE = (480, 640)
"""Height and width of every picture in pixels, even numbers as video codecs want them."""

Color: TypeAlias = tuple[int, int, int]
_BLACK, _GRAY, _RULE, _WHITE = (0, 0, 0), (95, 102, 114), (205, 210, 218), (255, 255, 255)
_MARGIN, _FONT_SIZE = 16, 13
_CELL = (18, 8)  # height and width of a character of the font, with the space between lines
_LINES = (PICTURE_SIZE[0] - 2 * _MARGIN) // _CELL[0]
_COLUMNS = (PICTURE_SIZE[1] - 2 * _MARGIN) // _CELL[1]
_MOST = _LINES * _COLUMNS  # characters that a picture holds


class _Part(NamedTuple):
    """A part of a text, drawn in one way."""

    text: str
    ink: Color
    paper: Color = _WHITE
    bold: bool = False


class _Glyph(NamedTuple):
    """A character as it is drawn.

    Attributes:
        text: The character.
        shape: How much of each pixel is ink, of 255, shape ``_CELL``, or twice as wide.
        ink: Its color.
        paper: The color behind it.
    """

    text: str
    shape: NDArray[np.uint8]
    ink: Color
    paper: Color

    @property
    def cells(self) -> int:
        """How many cells of a line it takes."""
        return int(self.shape.shape[1]) // _CELL[1]


def to_picture(episode: Episode, *, finished: bool = True) -> NDArray[np.uint8]:
    """Draw an episode: its turns with their roles, the agent's tokens black on the color of their KL, the rest gray.

    Lines are broken where the picture ends, and of a text that is too long the end is shown. A character that the fonts
    lack is a box with its code.

    Args:
        episode: What to show.
        finished: Whether the episode is over, so that it has a score.

    Returns:
        Red, green and blue, shape ``(*PICTURE_SIZE, 3)``.
    """
    lines = _last_lines(episode, finished, _LINES - 2)
    lines += [[] for _ in range(_LINES - 1 - len(lines))]
    lines.append(next(_wrapped(_glyphs([_Part(figures(episode, finished=finished), _GRAY)]))))
    coverage = np.zeros((_LINES, _COLUMNS, *_CELL), dtype=np.uint16)
    ink, paper = np.full((2, _LINES, _COLUMNS, 1, 1, 3), _WHITE, dtype=np.uint16)
    for row, line in enumerate(lines):
        column = 0
        for glyph in line:
            for part in np.split(glyph.shape, glyph.cells, axis=1):
                coverage[row, column], ink[row, column], paper[row, column] = part, glyph.ink, glyph.paper
                column += 1
    covered = coverage[..., None]
    cells = (ink * covered + paper * (255 - covered)) // 255
    picture = np.full((*PICTURE_SIZE, 3), _WHITE, dtype=np.uint8)
    height, width = _LINES * _CELL[0], _COLUMNS * _CELL[1]
    text = cells.transpose(0, 2, 1, 3, 4).reshape(height, width, 3)
    picture[_MARGIN : _MARGIN + height, _MARGIN : _MARGIN + width] = text
    picture[_MARGIN + height - 3 * _CELL[0] // 2, _MARGIN : _MARGIN + width] = _RULE
    return picture


def _last_lines(episode: Episode, finished: bool, most: int) -> list[list[_Glyph]]:
    """Return the last lines of an episode, at most so many; the first one tells if there are others before."""
    lines: list[list[_Glyph]] = []
    for turn, pieces in reversed(shown_turns(episode, finished=finished)):
        role, said = (f"{visible(turn.role)}: ", turn.text.strip("\n")) if turn.role else ("", turn.text)
        said = visible(said[_hidden(len(said)) :], keep="\n")
        parts = [_Part(role, _GRAY, bold=True), _Part(said, _GRAY)]
        parts += [_Part(text, _BLACK, background(kl)) for text, kl in pieces]
        lines = [*_wrapped(_glyphs(parts)), *lines]
        if len(lines) > most:
            return [_glyphs([_Part("…", _GRAY)]), *lines[1 - most :]]
    return lines


def _hidden(size: int) -> int:
    """Return how much of the beginning of a text can be left out.

    What is left fills a picture, and it begins at the same place while the text grows a little, so that its lines stay.
    """
    return max(0, size // _MOST - 1) * _MOST


def _glyphs(parts: Sequence[_Part]) -> list[_Glyph]:
    """Return the characters of a text, or of its end where it is too long for a picture."""
    found: list[_Glyph] = []
    hidden = _hidden(sum(len(part.text) for part in parts))
    for text, ink, paper, bold in parts:
        found += [_Glyph(character, _shape(character, bold), ink, paper) for character in text[hidden:]]
        hidden = max(0, hidden - len(text))
    return found


def _wrapped(glyphs: Iterable[_Glyph]) -> Iterator[list[_Glyph]]:
    """Yield lines no wider than a picture, broken at line ends, behind spaces, and else within words."""
    line: list[_Glyph] = []
    width = 0
    for glyph in glyphs:
        if glyph.text == "\n":
            yield line
            line, width = [], 0
            continue
        if width + glyph.cells > _COLUMNS:
            end = next((place for place in range(len(line), 0, -1) if line[place - 1].text == " "), len(line))
            yield line[:end]
            line = line[end:]
            width = sum(other.cells for other in line)
        line.append(glyph)
        width += glyph.cells
    yield line


@functools.lru_cache(maxsize=8192)
def _shape(character: str, bold: bool) -> NDArray[np.uint8]:
    """Return how much of each pixel a character covers; it is two cells wide unless the font for text has it."""
    from PIL import Image, ImageDraw  # noqa: PLC0415 (slow, and most environments draw nothing)

    mono, other = ("DejaVuSansMono-Bold" if bold else "DejaVuSansMono"), "DejaVuSans"
    narrow = character == "\n" or ord(character) in _characters(mono)
    height, width = _CELL[0], _CELL[1] * (1 if narrow else 2)
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    if narrow or ord(character) in _characters(other):
        draw.text((0, 1), character, fill=255, font=_font(mono if narrow else other, _FONT_SIZE))
    else:
        code = f"{ord(character):04x}"
        code = code.zfill(len(code) + len(code) % 2)
        half = len(code) // 2
        draw.rectangle((0, 0, width - 2, height - 2), outline=255)
        for line, digits in enumerate((code[:half], code[half:])):
            draw.text((1, 7 * line), digits, fill=255, font=_font(mono, 8))
    return np.asarray(image)


@functools.cache
def _font(name: str, size: int) -> FreeTypeFont:
    from PIL import ImageFont  # noqa: PLC0415

    # The other layout engine is not everywhere, and joins characters.
    return ImageFont.truetype(_file(name), size, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _characters(name: str) -> frozenset[int]:
    """Return the codes of the characters that a font has."""
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415

    return frozenset(FT2Font(str(_file(name))).get_charmap())


def _file(name: str) -> Path:
    import matplotlib  # noqa: PLC0415

    return Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
