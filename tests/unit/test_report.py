"""The report page without a browser: sentences, tables, what is left out, and that no name becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sepvit_deploy.comparison import Crossover, Ratio
from sepvit_deploy.errors import MissingDependency, OutputError
from sepvit_deploy.latency import Accuracy, Conditions, Failure, Point, Results
from sepvit_deploy.report import Material, Part, html, page, sentences, write
from sepvit_deploy.report.figures import best, figures
from sepvit_deploy.report.markup import script_json
from sepvit_deploy.report.model_charts import FAMILIES, OWN
from sepvit_deploy.report.rungs import ladder
from sepvit_deploy.report.words import counted, listed, ms, number, percent
from sepvit_deploy.variants import VARIANTS
from tests.unit.report_material import (
    HOSTILE,
    climb_document,
    hostile,
    material,
    part,
    point,
    results,
)


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The charts' library is of an extra; its script ends early here, were it not closed."""
    fake = SimpleNamespace(javascript_bundle=lambda: "/* '</script>' */")
    monkeypatch.setattr(page, "require", lambda module, extra: fake)


class Page(HTMLParser):
    """Tags, and the text beside scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said: list[str] = []
        self.scripts: list[str] = []
        self.feed(source)
        self.text = " ".join(" ".join(self.said).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        inside = self.tags[-1] in ("script", "style") and self.cdata_elem is not None
        (self.scripts if inside else self.said).append(data)

    @property
    def charts(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[1])["specs"])


def shown(found: Material) -> Page:
    return Page(html(found))


def alone(found: Results) -> Material:
    return Material((Part("results.json", found),))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (0.24, "0.240"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_words() -> None:
    assert ms(1.5) == "1.50\u00a0ms"
    assert percent(0.082) == "8.2\u00a0%"
    assert percent(0.82) == "82\u00a0%"
    assert number(float("nan")) == "not a number"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([]) == ""
    assert counted(1, "point") == "1 point"
    assert counted(2000, "point") == "2,000 points"


def test_the_paper_own_points_are_those_of_the_variants() -> None:
    own = next(family for family in FAMILIES if family.name == OWN)
    paper = [variant.published for variant in VARIANTS.values() if variant.name != "lite"]
    assert own.points == tuple((found.latency_ms, found.top1) for found in paper)
    assert all(list(family.points) == sorted(family.points) for family in FAMILIES)


def test_every_section_is_there() -> None:
    found = shown(material())
    for title in (
        "SepViT on NVIDIA L4",
        "Latency against batch",
        "Throughput against batch",
        "Time against sepvit_t.fp32.plan",
        "Crossover",
        "Share of what the device allows",
        "Time of each block",
        "Precision mix: time",
        "Precision mix: products",
        "Accuracy against latency, on imagenet-val",
        "Published, other hardware",
        "Conditions",
        "Measure again",
        "Parity ladder, check.json",
        "Calibrated ranges, digits.scales.json",
    ):
        assert title in found.text, title
    assert "the device alone" in found.text
    assert "INT8 is faster than FP16 from batch 2 on" in found.text
    assert "sepvit-deploy report build --html report.html" in found.text


def test_every_chart_has_its_place_its_caption_and_its_table() -> None:
    source = html(material())
    charts = Page(source).charts
    assert len(charts) == 12
    for name, spec in charts.items():
        figure = re.search(f'<figure id="{name}">(.*?)</figure>', source, re.DOTALL)
        assert figure, name
        assert f'id="chart-{name}"' in figure[1]
        assert re.search(r"<figcaption>.{20,}?</figcaption>", figure[1], re.DOTALL), name
        assert "<details" in figure[1] and "<table>" in figure[1], name
        assert spec["description"]
        layers = [layer for layer in spec["layer"] if layer.get("name") == "focus"]
        assert len(layers) == 1, name
        assert layers[0]["encoding"]["description"] == {"field": "say"}


def test_the_page_asks_nothing_of_a_network() -> None:
    found = shown(material())
    assert not {name for name, _ in found.attributes} & {"src", "action", "srcset", "poster", "data"}
    assert all(value and value.startswith("#") for name, value in found.attributes if name == "href")
    policy = next(value for name, value in found.attributes if name == "content" and value and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "eval" not in policy
    assert not re.search(r"@import|url\(", html(material()))


def test_names_are_text_and_never_markup() -> None:
    source = html(hostile())
    found = Page(source)
    assert "img" not in found.tags
    assert found.tags.count("script") == 3
    assert HOSTILE not in source
    assert HOSTILE in found.text
    assert "onerror" not in {name for name, _ in found.attributes}
    values = found.charts["p1-latency"]["data"]["values"]
    assert values[0]["engine"] == HOSTILE


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028", "&lt;", "\ud800"])
def test_data_in_a_script_holds_no_markup(text: str) -> None:
    found = script_json({"name": text})
    assert not set(found) & set("<>&\u2028")
    assert json.loads(found) == {"name": text}


def test_half_a_character_does_not_stop_the_page(tmp_path: Path) -> None:
    write(alone(results(notes=("\ud800",))), tmp_path / "report.html")
    assert "\\ud800" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write(material(), tmp_path / "none" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(MissingDependency, match=r"sepvit-deploy\[report\]"):
        html(material())


def test_level_engines_are_not_ranked() -> None:
    found = results((1, 8))
    same = tuple(replace(p, engine=name) for name in ("a", "b") for p in [point("a", 1, 2.0)])
    engines = tuple(replace(found.engines[0], name=name) for name in ("a", "b"))
    points = figures(replace(found, engines=engines, points=same))
    assert "At batch 1 a and b are level" in sentences.latency(points)
    apart = figures(replace(found, engines=engines, points=(point("a", 1, 2.0), point("b", 1, 3.0))))
    assert sentences.latency(apart) == "At batch 1 a takes least: 2.00\u00a0ms."
    assert best(apart, 4) is None


def test_few_rounds_have_no_interval() -> None:
    found = results((1,))
    few = Point("sepvit_t.fp32.plan", 1, (1.0, 1.1, 1.2), (1, 1, 1))
    assert figures(replace(found, points=(few,)))[0].low is None
    assert "too few rounds" in shown(alone(replace(found, points=(few,)))).text


def test_what_is_not_to_be_trusted_is_said() -> None:
    found = results((1, 8))
    first = replace(found.points[0], complete=False)
    failures = (Failure("sepvit_t.int8.plan", 64, "out of memory"),)
    text = shown(alone(replace(found, points=(first, *found.points[1:]), interrupted=True, failures=failures))).text
    assert "Beware: the warm-up never settled for torch-compile:t at batch 1." in text
    assert "Beware: the run was stopped before all was measured; 1 point cut off." in text
    assert "Beware: 1 failure: sepvit_t.int8.plan at batch 64." in text
    assert "sepvit_t.int8.plan at batch 64: out of memory" in text


def test_throttling_is_said_in_words() -> None:
    text = shown(material()).text
    assert "The GPU was held back at 2 of 28 points: power cap." in text
    assert "THROTTLED: power cap at 18 % of the looks" in text
    for throttled, sentence in (
        ({}, "Nothing was seen to hold the GPU back."),
        (None, "Whether anything held the GPU back is not known: it did not say."),
    ):
        conditions = Conditions(looks=3, throttled=throttled)
        calm = replace(results((1,)), points=(point("sepvit_t.fp32.plan", 1, 1.0, conditions=conditions),))
        assert sentence in shown(alone(calm)).text


def test_unresolved_ratios_are_named_so() -> None:
    found = Ratio("b", "a", 8, 0.99, 0.97, 1.02, False)
    assert "not resolved" in sentences.ratio(found)
    assert sentences.ratios([found]) == "0 of 1 comparison is resolved."


def test_a_sentence_of_a_comparison_gets_its_full_stop() -> None:
    found = Part(
        "", results((1,)), crossovers=(Crossover("a", "b", "INT8", "FP16", 8, "INT8 is faster from batch 8 on"),)
    )
    assert "INT8 is faster from batch 8 on." in shown(Material((found,))).text


def test_what_is_missing_is_left_out_or_said() -> None:
    found = results((1,))
    engines = tuple(
        replace(e, work=None, blocks_ms={}, precision_shares={}, products={}, accuracy=None, precision="fp32")
        for e in found.engines
    )
    bare = shown(alone(replace(found, engines=engines, rates=(), notes=())))
    assert "What the device allows is not known" in bare.text
    assert "No accuracy is known of these engines" in bare.text
    assert "time an FP16 and an INT8 file in one run" in bare.text
    assert "Inside the engines" not in bare.text
    assert "Notes" not in bare.text
    assert set(bare.charts) == {"p1-latency", "p1-throughput", "p1-published"}
    assert "Nothing was measured." in shown(alone(replace(found, points=()))).text
    assert "There are no latencies" in shown(Material(ladders={"a": ladder(climb_document())})).text


def test_numbers_that_are_none_do_not_stop_the_page() -> None:
    found = results((1,))
    nan = float("nan")
    odd = replace(found.engines[1], blocks_ms={"a": nan, "b": 1.0})
    text = shown(alone(replace(found, engines=(found.engines[0], odd, *found.engines[2:])))).text
    assert "SepViT on NVIDIA L4" in text


def test_accuracy_is_set_beside_times_of_one_batch() -> None:
    found = results((1, 4, 16))
    points = tuple(p for p in found.points if p.engine != "sepvit_t.int8.plan" or p.batch == 1)
    charts = shown(alone(replace(found, points=points))).charts
    values = charts["p1-accuracy0"]["data"]["values"]
    assert len(values) == 4, "all four have batch 1, and three the batch that is nearer to the paper's"
    sets = tuple(replace(e, accuracy=Accuracy(e.name, e.name, 10, 9)) for e in found.engines)
    assert sum(name.startswith("p1-accuracy") for name in shown(alone(replace(found, engines=sets))).charts) == 4


def test_published_figures_are_marked_as_theirs_and_apart() -> None:
    found = shown(material())
    assert "nothing here was measured by this package" in found.text
    charts = found.charts
    assert all(value["say"].startswith("published: ") for value in charts["p1-published"]["data"]["values"])
    assert not any("published" in json.dumps(spec) for name, spec in charts.items() if name != "p1-published")


def test_several_runs_are_parts_that_links_lead_to() -> None:
    first, second = results((1, 8)), results((1, 8))
    second = replace(second, machine=replace(second.machine, device="AMD EPYC", gpu=None))
    found = shown(Material((part(first, "a.json"), part(second, "b.json"))))
    targets = {value for name, value in found.attributes if name == "id"}
    links = [value[1:] for name, value in found.attributes if name == "href" and value]
    assert {"part1", "part2"} <= set(links) <= targets
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert "SepViT on NVIDIA L4 and AMD EPYC" in found.text


def test_more_engines_than_colours_begin_again() -> None:
    found = results((1, 2))
    engines = tuple(replace(found.engines[0], name=f"e{k}") for k in range(11))
    points = tuple(point(e.name, b, 1.0 + k + b) for k, e in enumerate(engines) for b in (1, 2))
    spec = shown(alone(replace(found, engines=engines, points=points))).charts["p1-latency"]
    scale = spec["layer"][0]["encoding"]["color"]["scale"]
    assert len(scale["range"]) == len(scale["domain"]) == 11
    assert scale["range"][8] == scale["range"][0]


def test_a_million_samples_cost_seconds_and_kilobytes() -> None:
    import time

    from sepvit_deploy import report

    found = results((1,))
    samples = tuple(1.0 + (k * 7919 % 1000) / 20_000 for k in range(20_000))
    names = [engine.name for engine in found.engines]
    points = tuple(Point(names[k % 4], 1 + k // 4, samples, (1000,) * 20) for k in range(50))
    start = time.process_time()
    text = report.html(Material((part(replace(found, points=points)),)))
    assert time.process_time() - start < 10
    assert len(text) < 500_000, "the charts' library comes on top, of 0.9 MB"
