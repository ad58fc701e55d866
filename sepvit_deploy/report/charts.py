"""Charts of latency as Vega-Lite specifications: plain dictionaries, no library.

Colours are CSS custom properties, which the SVG hands on to the page: light, dark and print are the page's own affair.
An engine has a colour, a symbol and a dash, so that no difference is told by colour alone. The layer whose name is
`FOCUS` holds what the keyboard reaches; the text of its `say` is announced and shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sepvit_deploy.comparison import Ratio
from sepvit_deploy.report import sentences
from sepvit_deploy.report.figures import Figures, batches

Spec = dict[str, Any]
FOCUS = "focus"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES: tuple[list[int], ...] = ([], [7, 3], [3, 2], [8, 3, 2, 3])
COLOURS = tuple(f"var(--s{slot})" for slot in range(1, 9))
HEIGHT = 280
SIZE = 70
CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--ink-2)",
        "titleColor": "var(--ink-2)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--grid)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 5,
        "titlePadding": 8,
    },
    "axisY": {"domain": False, "ticks": False},
    "title": {
        "color": "var(--ink-2)",
        "fontSize": 12,
        "fontWeight": "normal",
        "anchor": "start",
        "frame": "group",
        "offset": 10,
    },
    "text": {"fill": "var(--ink)", "fontSize": 12},
    "header": {"labelColor": "var(--ink-2)", "labelFontSize": 12, "title": None},
}
"""What every chart shares."""


def spec(values: Sequence[Mapping[str, Any]], title: str, layers: Sequence[Spec], **more: Any) -> Spec:
    """A chart as wide as its box; its title, where it has one, says what is upward and in which unit."""
    head: Spec = {
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(values)},
    }
    return head | ({"title": title} if title else {}) | more | {"layer": list(layers)}


def of_engine(names: Sequence[str], values: Sequence[Any]) -> Spec:
    """A scale from the engines to colours, symbols or dashes, which begin again where there are more engines."""
    return {
        "field": "engine",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(names), "range": [values[k % len(values)] for k in range(len(names))]},
    }


def steps(values: Iterable[float]) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5, 10, ... around the values; more on a short one, fewer on a long."""
    found = [value for value in values if value > 0]
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    digits: tuple[float, ...] = (1, 2, 5) if high - low <= 4 else (1,)
    if max(found) < 15 * min(found):
        digits = (1, 1.5, 2, 3, 5, 7)
    return [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in digits]


def batch_axis(sizes: Sequence[int]) -> Spec:
    """Batches on a logarithmic axis with a label at each; a single one needs no axis of numbers."""
    axis = {"title": "images in a batch", "grid": False, "labelOverlap": "greedy", "labelSeparation": 6}
    if len(sizes) < 2:
        return {"field": "batch", "type": "ordinal", "axis": axis | {"labelAngle": 0}}
    scale = {"type": "log", "base": 2, "nice": False, "padding": 18}
    return {
        "field": "batch",
        "type": "quantitative",
        "scale": scale,
        "axis": axis | {"values": list(sizes), "format": "d"},
    }


def log_axis(name: str, values: Iterable[float], **scale: Any) -> Spec:
    """A logarithmic upward axis without a title: the chart's own says it."""
    axis = {"title": None, "values": steps(values), "format": "~g", "labelOverlap": "greedy"}
    return {
        "field": name,
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 12} | scale,
        "axis": axis,
    }


def _line(names: Sequence[str], x: Spec, y: Spec) -> Spec:
    colour, dash = of_engine(names, COLOURS), of_engine(names, DASHES)
    return {
        "mark": {"type": "line", "strokeWidth": 2, "aria": False},
        "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash},
    }


def symbols(names: Sequence[str], x: Spec, y: Spec, *, size: int = SIZE, more: Spec | None = None) -> Spec:
    """The points of a chart, each engine with its own colour and shape; Tab reaches them."""
    colour = of_engine(names, COLOURS)
    return {
        "name": FOCUS,
        "mark": {"type": "point", "size": size, "opacity": 1, "strokeWidth": 1.5},
        "encoding": {
            "x": x,
            "y": y,
            "stroke": colour,
            "fill": colour,
            "shape": of_engine(names, SHAPES),
            "description": {"field": "say"},
        }
        | (more or {}),
    }


def _bars(names: Sequence[str], x: Spec, low: str, high: str, **more: Spec) -> list[Spec]:
    """Intervals, with a stroke at either end."""
    colour = of_engine(names, COLOURS)
    shared = {"x": x, "color": colour} | more
    y = {"field": low, "type": "quantitative"}
    return [
        {
            "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
            "transform": [{"filter": f"isValid(datum.{low})"}],
            "encoding": shared | {"y": y, "y2": {"field": high}},
        },
        *(
            {
                "mark": {
                    "type": "point",
                    "shape": "stroke",
                    "size": 50,
                    "strokeWidth": 1.5,
                    "opacity": 1,
                    "aria": False,
                },
                "transform": [{"filter": f"isValid(datum.{end})"}],
                "encoding": shared | {"y": {"field": end, "type": "quantitative"}},
            }
            for end in (low, high)
        ),
    ]


def _values(points: Sequence[Figures]) -> list[dict[str, Any]]:
    return [
        {
            "engine": found.name,
            "batch": found.batch,
            "p50": rounded(found.p50),
            "p99": rounded(found.p99),
            "low": rounded(found.low),
            "high": rounded(found.high),
            "rate": rounded(found.rate),
            "slow": rounded(found.high and 1000 * found.batch / found.high),
            "fast": rounded(found.low and 1000 * found.batch / found.low),
            "share": rounded(found.share and 100 * found.share),
            "say": sentences.point(found),
        }
        for found in points
    ]


def rounded(value: float | None) -> float | None:
    """To five digits, more than a plot shows; None, which JSON can hold, for what is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def latency(names: Sequence[str], points: tuple[Figures, ...]) -> Spec:
    """p50 against batch on two logarithmic axes, with its interval and a mark at p99."""
    x, y = batch_axis(batches(points)), log_axis("p50", [v for p in points for v in (p.least, p.p50, p.p99)])
    tail = {
        "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.45, "aria": False},
        "encoding": {"x": x, "y": y, "y2": {"field": "p99"}, "color": of_engine(names, COLOURS)},
    }
    p99 = {
        "mark": {"type": "point", "shape": "stroke", "size": 110, "strokeWidth": 1.5, "opacity": 0.8, "aria": False},
        "encoding": {"x": x, "y": {"field": "p99", "type": "quantitative"}, "color": of_engine(names, COLOURS)},
    }
    layers = [_line(names, x, y), tail, p99, *_bars(names, x, "low", "high"), symbols(names, x, y)]
    return spec(_values(points), "ms a batch", layers)


def throughput(names: Sequence[str], points: tuple[Figures, ...]) -> Spec:
    """Images a second against batch, from 0."""
    x = batch_axis(batches(points))
    y = {
        "field": "rate",
        "type": "quantitative",
        "scale": {"zero": True, "nice": True},
        "axis": {"title": None, "tickCount": 5, "format": ",~r"},
    }
    layers = [_line(names, x, y), *_bars(names, x, "slow", "fast"), symbols(names, x, y)]
    return spec(_values(points), "images/s", layers)


def limit(names: Sequence[str], points: Sequence[Figures]) -> Spec:
    """The share of what the device allows against batch, with a line at all of it."""
    x = batch_axis(batches(tuple(points)))
    top = max([100.0, *(100 * found.share for found in points if found.share is not None)])
    y = {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [0, top]},
        "axis": {"title": None, "tickCount": 5},
    }
    edge = {
        "data": {"values": [{"all": 100}]},
        "mark": {"type": "rule", "stroke": "var(--ink-2)", "strokeDash": [4, 4], "aria": False},
        "encoding": {"y": {"field": "all", "type": "quantitative"}},
    }
    return spec(_values(points), "% of what the device allows", [edge, _line(names, x, y), symbols(names, x, y)])


def ratios(names: Sequence[str], found: Sequence[Ratio]) -> Spec:
    """Time over that of one baseline, by batch, engines side by side; hollow where it is not resolved."""
    values = [
        {
            "engine": item.engine,
            "batch": item.batch,
            "ratio": rounded(item.ratio),
            "low": rounded(item.low),
            "high": rounded(item.high),
            "resolved": item.resolved,
            "say": sentences.ratio(item),
        }
        for item in found
    ]
    own = [name for name in names if any(item.engine == name for item in found)]
    x = {
        "field": "batch",
        "type": "ordinal",
        "axis": {"title": "images in a batch", "labelAngle": 0, "grid": False},
        "scale": {"paddingInner": 0.15},
    }
    aside = {"xOffset": {"field": "engine", "type": "nominal", "scale": {"domain": own, "padding": 0.5}}}
    y = log_axis("ratio", [1.0, *(end for item in found for end in (item.low, item.high))])
    level = {
        "data": {"values": [{"level": 1}]},
        "mark": {"type": "rule", "stroke": "var(--ink-2)", "strokeDash": [4, 4], "aria": False},
        "encoding": {"y": {"field": "level", "type": "quantitative"}},
    }
    points = symbols(names, x, y, more=aside)
    colour = points["encoding"]["fill"]
    points["encoding"]["fill"] = {"condition": {"test": "datum.resolved", **colour}, "value": "var(--page)"}
    return spec(
        values,
        f"time over {found[0].baseline}'s (below 1 is faster)",
        [level, *_bars(names, x, "low", "high", **aside), points],
    )
