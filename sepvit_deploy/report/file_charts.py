"""Charts of files beside latency: the parity ladder, calibrated ranges."""

from __future__ import annotations

import math
from typing import Any

from sepvit_deploy.report import sentences
from sepvit_deploy.report.charts import COLOURS, FOCUS, Spec, log_axis, of_engine, rounded, spec, symbols
from sepvit_deploy.report.rungs import Ladder
from sepvit_deploy.report.words import number, percent
from sepvit_deploy.scales import ScaleTable


def ladder(found: Ladder) -> Spec:
    """Signal to noise of each rung, with a mark at the least that is asked of it."""
    ends = [end for rung in found.rungs for end in (rung.sqnr_db, rung.limit_db) if math.isfinite(end)]
    most = max([1.0, *ends])
    values = []
    for rung in found.rungs:
        verdict = "excused" if rung.excused else "within" if rung.passed else "out of tolerance"
        values.append(
            {
                "rung": rung.name,
                "db": max(rung.sqnr_db, 0.0) if math.isfinite(rung.sqnr_db) else 0,
                "limit": rung.limit_db,
                "passed": rung.passed,
                "label": f"{sentences.decibels(rung.sqnr_db)}, {verdict}",
                "say": f"{rung.name} against {rung.against}: {sentences.decibels(rung.sqnr_db)}, {verdict}; "
                f"{number(rung.limit_db)} dB are asked",
            }
        )
    y = {
        "field": "rung",
        "type": "nominal",
        "sort": None,
        "axis": {"title": None, "grid": False},
        "scale": {"paddingInner": 0.55, "paddingOuter": 0.4},
    }
    x = {
        "field": "db",
        "type": "quantitative",
        "scale": {"domain": [0, 1.1 * most]},
        "axis": {"title": "signal to noise, dB: more is closer", "tickCount": 5},
    }
    fill = {"condition": {"test": "datum.passed", "value": "var(--fine)"}, "value": "var(--bad)"}
    bar = {
        "name": FOCUS,
        "mark": {"type": "bar", "cornerRadiusEnd": 2},
        "encoding": {"y": y, "x": x, "color": fill, "description": {"field": "say"}},
    }
    least = {
        "mark": {"type": "tick", "thickness": 2, "color": "var(--ink)", "aria": False},
        "encoding": {"y": y, "x": {"field": "limit", "type": "quantitative"}},
    }
    text = {
        "mark": {"type": "text", "align": "left", "dx": 0, "dy": -18, "fontSize": 11, "aria": False},
        "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "label"}},
    }
    return spec(values, "", [bar, least, text], height=50 * len(found.rungs))


def depth(found: Ladder) -> Spec:
    """Signal to noise of every shared tensor against the first rung, through the model."""
    values = [
        {
            "engine": rung.name,
            "place": place,
            "db": rounded(tensor.sqnr_db),
            "say": f"{rung.name}, {tensor.name}: {sentences.decibels(tensor.sqnr_db)}",
        }
        for rung in found.rungs
        for place, tensor in enumerate(rung.tensors, 1)
        if math.isfinite(tensor.sqnr_db)
    ]
    names = [rung.name for rung in found.rungs]
    x = {
        "field": "place",
        "type": "quantitative",
        "scale": {"nice": False, "zero": False, "padding": 12},
        "axis": {"title": "tensor, in the order of computation", "grid": False, "format": "d", "tickMinStep": 1},
    }
    y = {"field": "db", "type": "quantitative", "scale": {"zero": True}, "axis": {"title": None, "tickCount": 5}}
    colour = of_engine(names, COLOURS)
    line = {
        "mark": {"type": "line", "strokeWidth": 2, "aria": False},
        "encoding": {"x": x, "y": y, "color": colour},
    }
    points = symbols(names, x, y, size=36)
    return spec(values, f"signal to noise against {found.reference}, dB", [line, points], height=220)


def calibration(table: ScaleTable) -> Spec:
    """A strip: of each tensor the end of its 8-bit grid, and the largest |x| where that is further out."""
    values: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    before = None
    for place, (name, found) in enumerate(table.tensors.items(), 1):
        largest = max(-found.minimum, found.maximum)
        values.append(
            {
                "place": place,
                "threshold": rounded(found.threshold),
                "largest": rounded(largest),
                "say": f"{name}: grid to {number(found.threshold)}, largest |x| {number(largest)}, "
                f"{percent(found.threshold / largest)} kept",
            }
        )
        stage = name.split("/")[0].split(".")[0]
        if stage != before and stage.startswith(("stage", "head", "norm")):
            label = f"s{stage[5:]}" if stage.startswith("stage") else ""  # short: on a phone, stage 0 has 30 pixels
            stages.append({"place": place - 0.5, "label": label})
        before = stage
    x = {
        "field": "place",
        "type": "quantitative",
        "scale": {"domain": [0, len(values) + 1], "nice": False},
        "axis": {"title": "tensor, in the order of computation", "grid": False, "tickCount": 6, "format": "d"},
    }
    y = log_axis("threshold", [end for value in values for end in (value["threshold"], value["largest"])])
    borders = {
        "data": {"values": stages},
        "mark": {"type": "rule", "stroke": "var(--line)", "aria": False},
        "encoding": {"x": x},
    }
    labels = {
        "data": {"values": [item for item in stages if item["label"]]},
        "mark": {
            "type": "text",
            "align": "left",
            "baseline": "bottom",
            "dx": 1,
            "dy": -2,
            "fontSize": 11,
            "aria": False,
        },
        "encoding": {"x": x, "y": {"value": 0}, "text": {"field": "label"}},
    }
    rule = {
        "mark": {"type": "rule", "stroke": "var(--theirs)", "strokeWidth": 1.5, "aria": False},
        "encoding": {"x": x, "y": y, "y2": {"field": "largest"}},
    }
    largest_mark = {
        "mark": {
            "type": "point",
            "shape": "stroke",
            "size": 40,
            "stroke": "var(--theirs)",
            "opacity": 1,
            "aria": False,
        },
        "encoding": {"x": x, "y": {"field": "largest", "type": "quantitative"}},
    }
    ends = {
        "name": FOCUS,
        "mark": {"type": "point", "size": 34, "fill": "var(--s1)", "stroke": "var(--s1)", "opacity": 1},
        "encoding": {"x": x, "y": y, "description": {"field": "say"}},
    }
    return spec(values, "|x|", [borders, labels, rule, largest_mark, ends], height=240)
