"""A picture with the colours of its mask laid over it, and a legend of the classes in it.

Lengths are in pixels, sizes (height, width); H x W the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from sepvit_deploy.masks import Colour

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from sepvit_deploy.masks import Mask

MOST_CLASSES = 20
"""In a legend: the largest ones."""
LEAST_SIDE = 320
"""Smaller pictures are enlarged by a whole factor, as far as their longer side stays within this."""
OPACITY = 0.55
"""Of the colours over the picture."""
_NAME = 28
"""Characters of a class's name."""
_PANEL, _INK, _EDGE = (250, 250, 250), (25, 25, 25), (120, 120, 120)


class Part(NamedTuple):
    """A class in a picture: its number, its name, and its share of the pixels, 0 to 1."""

    number: int
    name: str
    share: float


def parts(mask: Mask, names: Sequence[str] | None) -> tuple[Part, ...]:
    """The classes in a mask, the largest first; without names they are called ``class 17``."""
    import numpy as np

    counts = np.bincount(mask.ravel())
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    return tuple(Part(k, names[k] if names else f"class {k}", float(counts[k] / mask.size)) for k in order)


def overlay(image: Image.Image, mask: Mask, found: Sequence[Part], colours: Sequence[Colour]) -> Image.Image:
    """The picture under its colours, and the legend beside it, or below where it is more than twice as wide as high.

    Args:
        image: RGB, H x W.
        mask: (H, W).
        found: what is in the mask, as `parts` gives it.
        colours: one for each class.
    """
    import numpy as np
    from PIL import Image

    painted = Image.fromarray(np.array(colours, np.uint8)[mask])
    blended = Image.blend(image, painted, OPACITY)
    factor = max(1, LEAST_SIDE // max(image.size))
    if factor > 1:
        blended = blended.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    legend = _Legend.of(found, blended.size)
    beside = blended.width <= 2 * blended.height
    if beside:
        size = (blended.width + legend.width, max(blended.height, legend.height))
    else:
        size = (max(blended.width, legend.width), blended.height + legend.height)
    canvas = Image.new("RGB", size, _PANEL)
    canvas.paste(blended, (0, 0))
    legend.draw(canvas, (blended.width, 0) if beside else (0, blended.height), colours)
    return canvas


class _Row(NamedTuple):
    """A line of a legend; of the one that says how many more there are, the class is None."""

    number: int | None
    name: str
    share: str


@dataclass(frozen=True)
class _Legend:
    """Rows of a colour, a name and a share, in columns of equal width.

    Attributes:
        text: height of a line's letters; name, share: width of the longest of either.
    """

    rows: tuple[_Row, ...]
    columns: int
    text: int
    name: int
    share: int

    @classmethod
    def of(cls, found: Sequence[Part], picture: tuple[int, int]) -> _Legend:
        """For a picture of (width, height); text that twenty rows of are as high as the picture, 13 to 96 pixels."""
        from PIL import ImageFont

        width, height = picture
        wide = width > 2 * height
        text = min(96, max(13, (width // 60 if wide else height // 33)))
        font = ImageFont.load_default(text)
        shown = found if len(found) <= MOST_CLASSES + 1 else found[:MOST_CLASSES]
        rows = [_Row(part.number, _short(part.name), percent(part.share)) for part in shown]
        if more := len(found) - len(shown):
            rest = sum(part.share for part in found[len(shown) :])
            rows.append(_Row(None, f"{more} more", percent(rest)))
        name = round(max(font.getlength(row.name) for row in rows))
        share = round(max(font.getlength(row.share) for row in rows))
        legend = cls(tuple(rows), 1, text, name, share)
        columns = min(len(rows), max(1, width // legend.width)) if wide else 1
        return replace(legend, columns=columns)

    @property
    def line(self) -> int:
        """Height of a row."""
        return round(1.5 * self.text)

    @property
    def column(self) -> int:
        """Width of a column: patch, name, gap and share."""
        return 3 * self.text + self.name + self.share

    @property
    def width(self) -> int:
        """Of the panel: with a margin around it, and twice that between columns."""
        return self.columns * (self.column + 2 * self.text)

    @property
    def height(self) -> int:
        """Of the panel."""
        return -(-len(self.rows) // self.columns) * self.line + 2 * (self.text // 2)

    def draw(self, canvas: Image.Image, corner: tuple[int, int], colours: Sequence[Colour]) -> None:
        """Onto ``canvas``, from the panel's upper left ``corner`` (x, y) on, column after column."""
        from PIL import ImageDraw, ImageFont

        pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(self.text)
        each = -(-len(self.rows) // self.columns)
        for place, (number, name, share) in enumerate(self.rows):
            left = corner[0] + self.text + place // each * (self.column + 2 * self.text)
            middle = corner[1] + self.text // 2 + place % each * self.line + self.line // 2
            if number is not None:
                self._patch(pen, left, middle, colours[number])
            at, end = left + 2 * self.text, left + self.column
            pen.text((at, middle), name, fill=_INK, font=font, anchor="lm")
            pen.text((end, middle), share, fill=_INK, font=font, anchor="rm")

    def _patch(self, pen: ImageDraw.ImageDraw, left: int, middle: int, colour: Colour) -> None:
        half = self.text // 2
        box = (left, middle - half, left + round(1.4 * self.text), middle + half)
        pen.rectangle(box, fill=colour, outline=_EDGE, width=max(1, self.text // 16))


def _short(name: str) -> str:
    """A name on one line, cut where it is long."""
    line = "".join(c if c.isprintable() else " " for c in name[: 4 * _NAME]).strip()
    return line if len(line) <= _NAME else line[: _NAME - 3].rstrip() + "..."


def percent(share: float) -> str:
    """A share of the pixels as text; what is there is never 0."""
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
