"""HTML pieces. Text of any origin goes in through `text` alone, data through `script_json`: neither gets out of it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sepvit_deploy.report.charts import COLOURS, DASHES, SHAPES

Marks = Literal["lines", "points", "bars"]
"""What a chart is drawn with."""
_OUTLINES = {
    "circle": '<circle cx="14" cy="7" r="4.2"/>',
    "square": '<path d="M10 3h8v8h-8z"/>',
    "triangle-up": '<path d="M14 2l5 9H9z"/>',
    "diamond": '<path d="M14 1.5l4.5 5.5-4.5 5.5-4.5-5.5z"/>',
    "cross": '<path d="M12.3 2.5h3.4v2.8h2.8v3.4h-2.8v2.8h-3.4V8.7H9.5V5.3h2.8z"/>',
    "triangle-down": '<path d="M14 12l5-9H9z"/>',
    "triangle-right": '<path d="M19 7l-9 5V2z"/>',
    "triangle-left": '<path d="M9 7l9 5V2z"/>',
}


@dataclass(frozen=True)
class Table:
    """Columns and rows of plain text; ``right`` are the columns that hold numbers, from 0."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()


def text(value: object) -> str:
    """Anything as text of a page or of an attribute."""
    return html.escape(str(value), quote=True)


def script_json(value: Any) -> str:
    """JSON that can stand in a script: it holds nothing that an HTML parser looks for."""
    found = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return found.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table(found: Table) -> str:
    """A table in a box of its own, which scrolls by keyboard where it is wider than the page."""
    name = text(found.caption)

    def cell(place: int, value: str, tag: str = "td", more: str = "") -> str:
        kind = ' class="n"' if place in found.right else ""
        return f"<{tag}{more}{kind}>{text(value)}</{tag}>"

    head = "".join(cell(place, value, "th", ' scope="col"') for place, value in enumerate(found.columns))
    body = "".join(
        "<tr>"
        + "".join(
            cell(place, value, *(("th", ' scope="row"') if place == 0 else ())) for place, value in enumerate(row)
        )
        + "</tr>"
        for row in found.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, content: str, *, keep: bool = False) -> str:
    """What is folded away; ``keep``: open in print, where the rest is left out."""
    return f'<details class="{"keep" if keep else "extra"}"><summary>{text(summary)}</summary>{content}</details>'


def figure(
    name: str, title: str, caption: str, *, legend: str = "", note: str = "", tables: Sequence[Table] = ()
) -> str:
    """A chart's place, its caption before it and its data beneath.

    Args:
        name: an identifier, which the chart's specification goes by.
        legend: HTML.
        note: how to read it.
    """
    data = "".join(map(table, tables))
    return (
        f'<figure id="{name}"><h3>{text(title)}</h3><figcaption>{text(caption)}</figcaption>{legend}'
        f'<div class="plot"><div class="chart" id="chart-{name}"></div><div class="tip" hidden></div></div>'
        + (f'<p class="note">{text(note)}</p>' if note else "")
        + (details("The data as a table", data) if data else "")
        + "</figure>"
    )


def legend(names: Sequence[str], shown: Iterable[str] | None = None, marks: Marks = "lines") -> str:
    """Colour, and symbol and dash, of each engine; ``shown`` are those that the chart has."""
    wanted = set(names if shown is None else shown)
    items = "".join(
        f"<li>{_swatch(place, marks)}{text(name)}</li>" for place, name in enumerate(names) if name in wanted
    )
    return f'<ul class="legend">{items}</ul>'


def _swatch(place: int, marks: Marks) -> str:
    colour = COLOURS[place % len(COLOURS)]
    dash = " ".join(map(str, DASHES[place % len(DASHES)]))
    line = f'<path d="M0 7h28" fill="none" stroke-width="2" stroke-dasharray="{dash}"/>' if marks == "lines" else ""
    outline = '<path d="M8 2h12v10H8z"/>' if marks == "bars" else _OUTLINES[SHAPES[place % len(SHAPES)]]
    return (
        f'<svg width="28" height="14" viewBox="0 0 28 14" aria-hidden="true" style="fill:{colour};stroke:{colour}">'
        f"{line}{outline}</svg>"
    )


def keys(items: Sequence[tuple[str, str]]) -> str:
    """A legend of plain colours: a custom property and what it stands for."""
    found = "".join(
        f'<li><svg width="14" height="14" aria-hidden="true"><rect width="14" height="14" rx="2" '
        f'style="fill:var({colour})"/></svg>{text(name)}</li>'
        for colour, name in items
    )
    return f'<ul class="legend">{found}</ul>'


def paragraphs(items: Iterable[str], kind: str = "") -> str:
    """A list of sentences."""
    found = "".join(
        f'<li class="beware">{text(item)}</li>' if item.startswith("Beware") else f"<li>{text(item)}</li>"
        for item in items
    )
    return f'<ul class="{kind}">{found}</ul>' if found else ""


def facts(items: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    return '<dl class="facts">' + "".join(f"<dt>{text(n)}</dt><dd>{text(v)}</dd>" for n, v in items if v) + "</dl>"
