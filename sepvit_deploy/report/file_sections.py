"""The sections beside latency: conditions of a run, parity ladders, calibrated ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sepvit_deploy.latency import Conditions, Range, Results
from sepvit_deploy.report import file_charts, sentences
from sepvit_deploy.report.charts import Spec
from sepvit_deploy.report.markup import Table, details, facts, figure, keys, legend, paragraphs, table, text
from sepvit_deploy.report.rungs import Ladder
from sepvit_deploy.report.words import listed, number, percent
from sepvit_deploy.scales import ScaleTable

_NOT_SEEN = "not seen"


def conditions(results: Results) -> str:
    """The machine at every point, its versions, notes and failures, and how to measure again."""
    seen = [(point, point.conditions) for point in results.points if point.conditions.looks]
    on_gpu = any(found.gpu_sm_mhz or found.gpu_power_w or found.gpu_temperature_c for _, found in seen)
    columns = ["engine", "batch", "looks"]
    columns += ["GPU, MHz", "memory, MHz", "power, W", "temperature, °C", "held back"] if on_gpu else []
    columns += ["CPU, MHz", "load", "steal"]
    rows = [(point.engine, str(point.batch), str(found.looks), *_cells(found, on_gpu)) for point, found in seen]
    machine = results.machine
    gpu = f"{machine.gpu.name}, driver {machine.driver or 'unknown'}, CUDA {machine.gpu.driver}" if machine.gpu else ""
    least = f"{number(results.seconds)} s and {results.least} runs of each point, in rounds in random order"
    parts = [
        f"<p>{text(sentences.conditions(results))}</p>" if seen else "",
        facts(
            [
                ("GPU", gpu),
                ("processor", f"{machine.processor}, {machine.cores} cores"),
                ("platform", machine.platform),
                ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
                ("asked for", least),
                ("pace", results.pace or ""),
            ]
        ),
    ]
    if rows:
        held = columns.index("held back") if on_gpu else -1
        right = frozenset(set(range(1, len(columns))) - {held})
        every = Table("Conditions of every point: median (least to most)", columns, rows, right)
        parts.append(details("Conditions of every point", table(every), keep=True))
    engines = Table(
        "What was timed",
        ("engine", "file", "runtime", "precision", "builder", "threads", "CUDA graph", "size, MB", "SHA-256"),
        [
            (
                e.name,
                e.file,
                e.runtime,
                e.precision.upper(),
                e.builder_version or "none",
                "the runtime's choice" if e.threads is None else str(e.threads),
                "yes" if e.cuda_graph else "no",
                f"{e.bytes / 1e6:.1f}" if e.bytes else "unknown",
                e.sha256[:12] if e.sha256 else "unknown",
            )
            for e in results.engines
        ],
        frozenset({7}),
    )
    parts.append(details("What was timed", table(engines), keep=True))
    if results.notes:
        parts.append("<h3>Notes</h3>" + paragraphs(results.notes))
    if results.failures:
        failed = [f"{item.engine} at batch {item.batch}: {item.error}" for item in results.failures]
        parts.append("<h3>Failures</h3>" + paragraphs(failed))
    return "".join(parts)


def reproduce(command: str) -> str:
    """A command to type again."""
    return f'<pre tabindex="0"><code>{text(command)}</code></pre>'


def _cells(found: Conditions, on_gpu: bool) -> list[str]:
    gpu = [_range(found.gpu_sm_mhz), _range(found.gpu_memory_mhz), _range(found.gpu_power_w)]
    gpu += [_range(found.gpu_temperature_c), _held(found)]
    steal = _NOT_SEEN if found.steal is None else percent(found.steal)
    return [*(gpu if on_gpu else []), _range(found.cpu_mhz), _range(found.load), steal]


def _held(found: Conditions) -> str:
    if found.throttled is None:
        return _NOT_SEEN
    reasons = [f"{name} at {percent(share)} of the looks" for name, share in found.throttled.items() if share]
    return f"THROTTLED: {listed(reasons)}" if reasons else "no"


def _range(found: Range | None) -> str:
    if found is None:
        return _NOT_SEEN
    middle = number(found.median)
    return middle if found.low == found.high else f"{middle} ({number(found.low)} to {number(found.high)})"


def ladder(name: str, found: Ladder, place: int, specs: dict[str, Spec]) -> str:
    """A climb: each rung against what it is held to, and every tensor through the model."""
    key = f"ladder{place}"
    rows = [
        (
            rung.name,
            rung.runner,
            rung.against,
            sentences.decibels(rung.sqnr_db),
            number(rung.limit_db),
            "not finite" if math.isnan(rung.relative) else f"{rung.relative:.1e}",
            "no classes" if rung.top1_agreement is None else percent(rung.top1_agreement),
            "excused: no more than builds differ" if rung.excused else "yes" if rung.passed else "NO",
        )
        for rung in found.rungs
    ]
    columns = ("rung", "file", "held to", "signal to noise", "asked, dB", "relative", "top-1 agrees", "within")
    caption = sentences.ladder(found)
    specs[key] = file_charts.ladder(found) | {"description": caption}
    html = figure(
        key,
        f"Parity ladder, {name}",
        caption,
        note=f"From {found.reference} to the engine: each form of the model on the same images, against the rung that "
        "it is held to. Stroke: the least that is asked of it.",
        tables=[Table("The ladder", columns, rows, frozenset({3, 4, 5, 6}))],
    )
    return f'<div class="pair">{html}{_depth(f"{key}-depth", found, specs)}</div>'


def _depth(key: str, found: Ladder, specs: dict[str, Spec]) -> str:
    longest = max((rung.tensors for rung in found.rungs), key=len, default=())
    if len(longest) < 3 or not any(math.isfinite(t.sqnr_db) for rung in found.rungs for t in rung.tensors):
        return ""
    caption = sentences.depth(found)
    specs[key] = file_charts.depth(found) | {"description": caption}
    places = {tensor.name: place for place, tensor in enumerate(longest, 1)}
    by_rung = {rung.name: {tensor.name: tensor.sqnr_db for tensor in rung.tensors} for rung in found.rungs}
    rows = [
        (
            str(place),
            name,
            *(sentences.decibels(of[name]) if name in of else "not shared" for of in by_rung.values()),
        )
        for name, place in places.items()
    ]
    return figure(
        key,
        "Through the model",
        caption,
        legend=legend([rung.name for rung in found.rungs]),
        note="Tensors that are equal, or not finite, have no point.",
        tables=[Table("Signal to noise of each tensor", ("", "tensor", *by_rung), rows, frozenset({0}))],
    )


def calibration(name: str, found: ScaleTable, place: int, specs: dict[str, Spec]) -> str:
    """A scale table: where each tensor's grid ends."""
    key = f"scales{place}"
    caption = sentences.calibration(found)
    specs[key] = file_charts.calibration(found) | {"description": caption}
    rows: Sequence[tuple[str, ...]] = [
        (
            tensor,
            number(r.minimum),
            number(r.maximum),
            number(r.threshold),
            percent(r.threshold / max(-r.minimum, r.maximum)),
            f"{r.scale:.3g}",
        )
        for tensor, r in found.tensors.items()
    ]
    columns = ("tensor", "smallest", "largest", "grid ends at", "of largest |x|", "step")
    return figure(
        key,
        f"Calibrated ranges, {name}",
        caption,
        legend=keys((("--s1", "end of the 8-bit grid"), ("--theirs", "largest |x|, where it is clipped"))),
        note="A long line between the two: a few large values, which are clipped so that the rest has a finer grid. "
        "s0 to s3: where a stage begins.",
        tables=[Table("Ranges of the activations", columns, rows, frozenset({1, 2, 3, 4, 5}))],
    )
