"""Results, with what follows from them, to the page that people look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sepvit_deploy.latency import Results
from sepvit_deploy.pipeline.opened import Report
from sepvit_deploy.report import Found, Material, Part, collect, write


def report(sources: Sequence[Path], html: Path, *, command: str = "", report: Report = lambda step: None) -> Found:
    """Make a page of results, parity ladders and scale tables.

    Args:
        sources: files, or folders that hold them.
        command: that makes the page again.

    Returns:
        What was found.

    Raises:
        InputError: there is nothing to show, or a file is damaged.
        OutputError: the page cannot be written.
        MissingDependency: the library of the plots is not installed.
    """
    report("reading")
    found = collect(sources)
    report("drawing")
    parts = [Part.of(name, results) for name, results in found.results.items()]
    write(Material(parts, found.ladders, found.scales, command), html)
    return found


def report_of(results: Results, html: Path) -> None:
    """Make the page of one run; raises as `report`."""
    write(Material([Part.of("", results)], command=results.command), html)
