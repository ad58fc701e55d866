"""One run of `bench` on the page: its figures, its charts, and what stands at its head."""

from __future__ import annotations

from functools import cached_property

from sepvit_deploy.latency import BOUNDARIES
from sepvit_deploy.report import sentences
from sepvit_deploy.report.charts import Spec
from sepvit_deploy.report.figures import Figures, figures
from sepvit_deploy.report.markup import Table, facts, figure, paragraphs, text
from sepvit_deploy.report.material import Part
from sepvit_deploy.report.words import listed, ms, number, percent, rate


class Run:
    """One run as HTML.

    Args:
        place: of the part on the page, from 1.
        specs: gets every chart by the name of its figure.
    """

    def __init__(self, part: Part, place: int, specs: dict[str, Spec]) -> None:
        self.part, self.results, self.key = part, part.results, f"p{place}"
        self.names = [engine.name for engine in part.results.engines]
        self._specs = specs

    @cached_property
    def points(self) -> tuple[Figures, ...]:
        """The figures of every point."""
        return figures(self.results)

    def draw(self, name: str, spec: Spec, title: str, caption: str, key: str, note: str, *tables: Table) -> str:
        """A figure, and its chart among the page's."""
        self._specs[f"{self.key}-{name}"] = spec | {"description": f"{title}. {caption}"}
        return figure(f"{self.key}-{name}", title, caption, legend=key, note=note, tables=tables)

    def head(self) -> str:
        """What was measured, where, and what is to be taken away."""
        results, machine = self.results, self.results.machine
        gpu = machine.gpu
        where = [machine.device]
        if gpu:
            where.append(f"compute capability {gpu.compute_capability}, {gpu.memory_bytes / 2**30:.0f} GiB")
        compared = listed(f"{e.name} ({e.runtime})" for e in results.engines)
        return (
            self._tiles()
            + facts(
                [
                    ("device", ", ".join(where)),
                    ("measured", f"{results.boundary}: {BOUNDARIES[results.boundary]}"),
                    ("started", f"{results.started.replace('T', ' ').removesuffix('Z').removesuffix('+00:00')} UTC"),
                    ("compared", compared),
                    ("from", self.part.name),
                ]
            )
            + paragraphs(sentences.findings(self.part, self.points), "findings")
        )

    def _tiles(self) -> str:
        """The figures that are asked for first."""
        if not self.points:
            return ""
        quick = min(self.points, key=lambda found: (found.batch, found.p50))
        wide = max(self.points, key=lambda found: found.rate)
        near = max(
            (found for found in self.points if found.share is not None), key=lambda f: f.share or 0, default=None
        )
        tiles = [
            (ms(quick.p50), f"p50 at batch {quick.batch}", quick.name),
            (rate(wide.rate), f"highest throughput, batch {wide.batch}", wide.name),
        ]
        gains = [item for item in self.part.ratios if item.resolved and item.ratio < 1]
        if gains:
            gain = min(gains, key=lambda item: item.ratio)
            tiles.append(
                (f"{number(1 / gain.ratio)} times", f"as fast as {gain.baseline}, batch {gain.batch}", gain.engine)
            )
        if near:
            tiles.append((percent(near.share or 0), f"of what the device allows, batch {near.batch}", near.name))
        items = "".join(
            f"<div><dt>{text(what)}</dt><dd><b>{text(value)}</b><span>{text(who)}</span></dd></div>"
            for value, what, who in tiles
        )
        return f'<dl class="tiles">{items}</dl>'
