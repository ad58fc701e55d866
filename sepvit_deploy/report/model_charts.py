"""Charts of what is inside a model: blocks, precisions, accuracy; and what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from sepvit_deploy.confidence import wilson
from sepvit_deploy.latency import Accuracy, Engine
from sepvit_deploy.published import PEERS, Family
from sepvit_deploy.report.charts import COLOURS, FOCUS, SIZE, Spec, log_axis, of_engine, rounded, spec, symbols
from sepvit_deploy.report.figures import Figures
from sepvit_deploy.report.words import interval, ms, percent, top1
from sepvit_deploy.variants import VARIANTS

OWN = "SepViT"
_PAPER = (variant.published for variant in VARIANTS.values())
FAMILIES = (Family(OWN, tuple((p.latency_ms, p.top1) for p in _PAPER if p.latency_ms is not None)), *PEERS)
"""What the paper reports: SepViT first."""
PRECISIONS = ("FP32", "FP16", "INT8")
OTHER = "other"
LABELLED = 0.09
"""The smallest share of a bar that has room for its number on a phone."""


def precision_slot(name: str) -> str:
    """A type as the colours know it: TF32 is FP32's, what is none of ours is other."""
    upper = {"TF32": "FP32", "FLOAT": "FP32", "HALF": "FP16"}.get(name.upper(), name.upper())
    return upper if upper in PRECISIONS else OTHER


def blocks(names: Sequence[str], engines: Sequence[Engine]) -> Spec:
    """Bars: each block's time, engines beside each other, in the order of computation."""
    order = list(dict.fromkeys(name for engine in engines for name in engine.blocks_ms))
    values = [
        {
            "engine": engine.name,
            "block": name,
            "ms": rounded(time),
            "say": f"{engine.name}, {name}: {ms(time)}, {percent(time / (sum(engine.blocks_ms.values()) or 1))} of it",
        }
        for engine in engines
        for name, time in engine.blocks_ms.items()
    ]
    own = [engine.name for engine in engines]
    y = {
        "field": "block",
        "type": "nominal",
        "sort": order,
        "axis": {"title": None, "labelLimit": 130, "grid": False},
        "scale": {"paddingInner": 0.3},
    }
    bar = {
        "name": FOCUS,
        "mark": {"type": "bar", "cornerRadiusEnd": 2},
        "encoding": {
            "y": y,
            "yOffset": {"field": "engine", "type": "nominal", "scale": {"domain": own, "paddingInner": 0.15}},
            "x": {"field": "ms", "type": "quantitative", "axis": {"title": "ms", "tickCount": 5}},
            "color": of_engine(names, COLOURS),
            "description": {"field": "say"},
        },
    }
    return spec(values, "", [bar], height=len(order) * (11 * len(own) + 6))


def mix(engines: Sequence[Engine], shares: Mapping[str, Mapping[str, float]], of: str) -> Spec:
    """One bar for each engine, cut by type; the number stands in each part that has room for it."""
    values = []
    for engine in engines:
        found = shares[engine.name]
        ends = list(accumulate(found.values()))
        for (name, share), end in zip(found.items(), ends, strict=True):
            values.append(
                {
                    "engine": engine.name,
                    "type": precision_slot(name),
                    "start": rounded(100 * (end - share)),
                    "end": rounded(100 * end),
                    "middle": rounded(100 * (end - share / 2)),
                    "label": f"{name} {percent(share)}" if share >= 2.5 * LABELLED else percent(share),
                    "shown": share >= LABELLED,
                    "say": f"{engine.name}: {percent(share)} of its {of} in {name}",
                }
            )
    kinds = [*PRECISIONS, OTHER]
    y = {
        "field": "engine",
        "type": "nominal",
        "sort": [engine.name for engine in engines],
        "axis": {"title": None, "labelLimit": 130, "grid": False},
        "scale": {"paddingInner": 0.35, "paddingOuter": 0.2},
    }
    colours = {"domain": kinds, "range": ["var(--p32)", "var(--p16)", "var(--p8)", "var(--p0)"]}
    inks = {"domain": kinds, "range": ["var(--on-p32)", "var(--on-p16)", "var(--on-p8)", "var(--on-p0)"]}
    bar = {
        "name": FOCUS,
        "mark": {"type": "bar", "stroke": "var(--page)", "strokeWidth": 2},
        "encoding": {
            "y": y,
            "x": {
                "field": "start",
                "type": "quantitative",
                "scale": {"domain": [0, 100]},
                "axis": {"title": f"% of {of}", "tickCount": 5, "grid": False},
            },
            "x2": {"field": "end"},
            "color": {"field": "type", "type": "nominal", "scale": colours, "legend": None},
            "description": {"field": "say"},
        },
    }
    text = {
        "transform": [{"filter": "datum.shown"}],
        "mark": {"type": "text", "fontSize": 11, "aria": False},
        "encoding": {
            "y": y,
            "x": {"field": "middle", "type": "quantitative"},
            "text": {"field": "label"},
            "fill": {"field": "type", "type": "nominal", "scale": inks, "legend": None},
        },
    }
    more: Spec = {"height": 34 * len(engines), "resolve": {"scale": {"fill": "independent", "color": "independent"}}}
    return spec(values, "", [bar, text], **more)


def accuracy(names: Sequence[str], engines: Sequence[tuple[Engine, Accuracy, Figures]]) -> Spec:
    """Top-1 against the time of a batch, with the intervals of both."""
    values = []
    for engine, right, found in engines:
        low, high = wilson(right.top1, right.images)
        share = right.top1 / right.images
        bounds = f"{100 * low:.1f} to {100 * high:.1f}"
        values.append(
            {
                "engine": engine.name,
                "ms": rounded(found.p50),
                "fast": rounded(found.low),
                "slow": rounded(found.high),
                "top1": rounded(100 * share),
                "low": rounded(100 * low),
                "high": rounded(100 * high),
                "say": f"{engine.name}: {top1(share)} top-1 (95 %: {bounds}), {ms(found.p50)} at batch "
                f"{found.batch}" + (f" (95 %: {interval(found.low, found.high)})" if found.low is not None else ""),
            }
        )
    times = [found.p50 for _, _, found in engines]
    wide = max(times) > 8 * min(times)
    x: Spec = {"field": "ms", "type": "quantitative", "scale": {"zero": False, "padding": 24}, "axis": {"grid": False}}
    if wide:
        x = log_axis("ms", times, padding=24)
        x["axis"] |= {"grid": False}
    x["axis"] |= {"title": f"ms a batch of {engines[0][2].batch}"}
    y = {
        "field": "top1",
        "type": "quantitative",
        "scale": {"zero": False, "padding": 14},
        "axis": {"title": None, "tickCount": 5},
    }
    colour = of_engine(names, COLOURS)
    rule = {"type": "rule", "strokeWidth": 1.5, "aria": False}
    upward = {
        "mark": rule,
        "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": colour},
    }
    across = {
        "transform": [{"filter": "isValid(datum.fast)"}],
        "mark": rule,
        "encoding": {"x": x | {"field": "fast"}, "x2": {"field": "slow"}, "y": y, "color": colour},
    }
    points = symbols(names, x, y, size=110)
    return spec(values, "top-1, % of pictures", [upward, across, points])


_LABEL_PLACES: dict[str, Spec] = {
    "right": {"align": "left", "dx": 8},
    "above": {"align": "center", "dy": -11},
    "below": {"align": "center", "dy": 13},
}
_PLACE_OF = {
    OWN: "above",
    "CSWin": "above",
    "Twins-SVT": "above",
    "PVT-v2": "below",
    "DeiT": "below",
    "RegionViT": "below",
}


def published() -> Spec:
    """The paper's own points, hollow and grey, SepViT's darker: nothing in it was measured here."""
    values = [
        {
            "family": family.name,
            "own": family.name == OWN,
            "ms": time,
            "top1": share,
            "label": family.name if number_ == len(family.points) - 1 else "",
            "place": _PLACE_OF.get(family.name, "right"),
            "say": f"published: {family.name}, {time:g} ms, {share:g} % top-1",
        }
        for family in FAMILIES
        for number_, (time, share) in enumerate(family.points)
    ]
    x = {
        "field": "ms",
        "type": "quantitative",
        "scale": {"domain": [0, 95], "nice": False},
        "axis": {"title": "ms a batch of 8, as published", "grid": False, "tickCount": 5},
    }
    y = {
        "field": "top1",
        "type": "quantitative",
        "scale": {"domain": [79, 85], "nice": False},
        "axis": {"title": None, "tickCount": 5},
    }
    ink = {"condition": {"test": "datum.own", "value": "var(--ink)"}, "value": "var(--theirs)"}
    line = {
        "mark": {"type": "line", "strokeWidth": 1, "aria": False},
        "encoding": {"x": x, "y": y, "detail": {"field": "family"}, "stroke": ink},
    }
    points = {
        "name": FOCUS,
        "mark": {"type": "point", "size": SIZE, "fill": "var(--page)", "opacity": 1, "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y, "stroke": ink, "description": {"field": "say"}},
    }
    labels = [
        {
            "transform": [{"filter": f"datum.place === '{place}' && datum.label"}],
            "mark": {"type": "text", "fontSize": 11, "aria": False} | offset,
            "encoding": {
                "x": x,
                "y": y,
                "text": {"field": "label"},
                "fill": {"condition": {"test": "datum.own", "value": "var(--ink)"}, "value": "var(--ink-2)"},
            },
        }
        for place, offset in _LABEL_PLACES.items()
    ]
    return spec(values, "ImageNet-1K top-1, %, as published", [line, points, *labels])
