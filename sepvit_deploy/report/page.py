"""The page: one file that asks nothing of a network, and says so to the browser."""

from __future__ import annotations

from pathlib import Path

from sepvit_deploy.artifact import written
from sepvit_deploy.optional import require
from sepvit_deploy.report import file_sections, model_sections, speed_sections
from sepvit_deploy.report.charts import CONFIG, Spec
from sepvit_deploy.report.markup import script_json, text
from sepvit_deploy.report.material import Material, Part
from sepvit_deploy.report.run import Run

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""Of the browser: nothing is loaded, by whatever stands in the page; no text is run as a program."""
NO_SCRIPT = "Without JavaScript there are no charts; their data is in the tables beneath each heading."
_HERE = Path(__file__).parent


def write(material: Material, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        MissingDependency: the extra ``report`` is not installed.
        OutputError: the place cannot be written.
    """
    page = html(material)
    with written(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # a name may hold half a character


def html(material: Material) -> str:
    """The page as one self-contained HTML document.

    Raises:
        MissingDependency: the extra ``report`` is not installed.
    """
    specs: dict[str, Spec] = {}
    alone = len(material.parts) == 1
    sections = [
        _part(part, place, "At a glance" if alone else _part_name(part), specs)
        for place, part in enumerate(material.parts, 1)
    ]
    links = [(f"part{place}", _part_name(part)) for place, part in enumerate(material.parts, 1)]
    if material.ladders:
        climbs = enumerate(material.ladders.items(), 1)
        body = "".join(file_sections.ladder(name, found, place, specs) for place, (name, found) in climbs)
        sections.append(_section("ladder", "Does every form of the model agree?", body))
        links.append(("ladder", "Parity"))
    if material.scales:
        tables = enumerate(material.scales.items(), 1)
        body = "".join(file_sections.calibration(name, found, place, specs) for place, (name, found) in tables)
        sections.append(_section("calibration", "Calibration", body))
        links.append(("calibration", "Calibration"))
    if material.command and material.command not in (part.results.command for part in material.parts):
        again = "<p>This page again:</p>" + file_sections.reproduce(material.command)
        sections.append(_section("again", "Reproduce", again))
    if not material.parts:
        hint = "<p>There are no latencies: type <code>sepvit-deploy bench --output results.json</code>.</p>"
        sections.insert(0, hint)
    title = " and ".join(dict.fromkeys(part.results.machine.device for part in material.parts)) or "parity and ranges"
    return _document(f"SepViT on {title}" if material.parts else f"SepViT: {title}", links, sections, specs)


def _document(title: str, links: list[tuple[str, str]], sections: list[str], specs: dict[str, Spec]) -> str:
    bundle = require("vl_convert", extra="report").javascript_bundle()
    nav = "".join(f'<li><a href="#{place}">{text(name)}</a></li>' for place, name in links)
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">',
            f"<title>{text(title)}</title><style>{_beside('page.css')}</style></head><body>",
            f"<header><p class='kind'>sepvit-deploy report</p><h1>{text(title)}</h1></header>",
            f"<noscript><p class='beware'>{NO_SCRIPT}</p></noscript>",
            f'<nav aria-label="Parts"><ul>{nav}</ul></nav>' if len(links) > 1 else "",
            f"<main>{''.join(sections)}</main>",
            f'<script type="application/json" id="charts">{script_json({"config": CONFIG, "specs": specs})}</script>',
            # A module: its own names stay its own, where a plain script would share them with the page.
            f'<script type="module">{_closed(bundle)}</script>',
            f'<script type="module">{_beside("page.js")}</script></body></html>\n',
        )
    )


def _closed(script: str) -> str:
    """A script that cannot end its element: in a text of JavaScript a slash may follow a backslash and stays itself."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _beside(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _part_name(part: Part) -> str:
    device = part.results.machine.device
    return f"{device}, {part.name}" if part.name else device


def _part(part: Part, place: int, title: str, specs: dict[str, Spec]) -> str:
    run = Run(part, place, specs)
    bodies = (
        ("latency", "Latency and throughput", speed_sections.latency(run)),
        ("ratios", "Which engine is faster?", speed_sections.ratios(run)),
        ("limit", "How near to what the device allows?", speed_sections.limit(run)),
        ("inside", "Inside the engines", model_sections.inside(run)),
        ("accuracy", "Accuracy against latency", model_sections.accuracy(run)),
        ("conditions", "Conditions", file_sections.conditions(part.results)),
        ("reproduce", "Measure again", file_sections.reproduce(part.results.command)),
    )
    shown = [(f"{run.key}-{key}-part", what, body) for key, what, body in bodies if body]
    nav = "".join(f'<li><a href="#{key}">{text(what)}</a></li>' for key, what, _ in shown)
    return (
        f'<section class="part" id="part{place}"><h2>{text(title)}</h2>{run.head()}'
        f'<nav aria-label="{text(_part_name(part))}"><ul>{nav}</ul></nav>'
        + "".join(_section(key, what, body) for key, what, body in shown)
        + "</section>"
    )


def _section(key: str, title: str, body: str) -> str:
    return f'<section id="{key}"><h2>{text(title)}</h2>{body}</section>'
