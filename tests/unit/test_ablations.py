"""The paper's ablations as variants: what they count beside what the paper prints, and where both are shown."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from sepvit_deploy.cli import ablations, latencies, show
from sepvit_deploy.comparison import beside_paper
from sepvit_deploy.variants import (
    ABLATION_ROWS,
    ABLATIONS,
    VARIANTS,
    block_macs,
    block_shapes,
    count_macs,
    count_parameters,
    variant_named,
)
from tests.unit.latencies import engine, point, results


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("t-plain", 30_112_744, 4_176_546_048),
        ("t-dssa", 32_057_608, 4_423_110_912),
        ("t-zero", 31_168_264, 4_518_998_784),
        ("t", 31_182_856, 4_518_998_784),
        ("t-average", 31_168_264, 4_506_368_256),
        ("t-depthwise", 31_278_088, 4_507_196_160),
    ],
)
def test_parameters_and_macs_of_each_row(name: str, parameters: int, macs: int) -> None:
    assert (count_parameters(variant_named(name)), count_macs(variant_named(name))) == (parameters, macs)


@pytest.mark.parametrize("row", ABLATION_ROWS, ids=lambda row: row.variant)
def test_they_count_what_is_printed_but_for_plain_patches(row: ablations.AblationRow) -> None:
    """A row of DSSA alone cannot have 29.3 M parameters: its record says so, and what we count instead."""
    variant = variant_named(row.variant)
    counted = (round(count_parameters(variant) / 1e6, 1), round(count_macs(variant) / 1e9, 1))
    printed = (row.millions, row.giga_macs)
    assert ablations.reproduced(row) == (counted == printed) == (row.variant != "t-plain") == (not row.note)
    if row.note:
        assert (counted, printed) == ((30.1, 4.2), (29.3, 4.3))


def test_each_row_of_the_first_table_adds_one_thing() -> None:
    steps = [variant_named(name) for name in ("t-plain", "t-dssa", "t-zero", "t")]
    choices = [(variant.embedding, variant.grouped, variant.representation) for variant in steps]
    for before, after in pairwise(choices):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert {row.variant for row in ABLATION_ROWS} == {"t", *ABLATIONS}
    assert not ABLATIONS.keys() & VARIANTS.keys()


def test_all_are_the_blocks_and_channels_of_t() -> None:
    for name, variant in ABLATIONS.items():
        assert (variant.name, variant.channels, variant.depths) == (name, VARIANTS["t"].channels, (1, 2, 6, 2))


def test_a_token_that_skips_dwa_costs_nothing_there() -> None:
    size = (224, 224)
    ours, theirs = (list(block_shapes(variant_named(name), "classify", size)) for name in ("t-average", "t"))
    for pooled, learned in zip(ours, theirs, strict=True):
        assert pooled.windows == learned.windows
        assert (pooled.tokens, learned.tokens) == (0, learned.windows)
        saved = block_macs(learned) - block_macs(pooled)
        c, k, n = learned.channels, learned.windows, learned.side**2
        assert saved == (3 * k * c * c + 2 * k * c * (2 * n + 1) if k else 0)


def test_the_table_has_every_row_with_the_papers_figures_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    ablations.ablations()
    printed = capsys.readouterr().out
    for row in ABLATION_ROWS:
        (line,) = (line for line in printed.splitlines() if f" {row.variant} " in line and "│" in line)
        for text in (f"({row.millions})", f"({row.giga_macs})", str(row.images_per_s), str(row.top1)):
            assert text in line
    assert "V100, PyTorch FP32, batch 192" in printed
    assert "t-plain does not count what is printed" in printed
    assert printed.count("does not count") == 1


def test_json_has_the_choices_the_counts_and_whose_figures_the_rest_are() -> None:
    rows = {row["name"]: row for row in json.loads(json.dumps(ablations.ablation_rows()))}
    plain = rows["t-plain"]
    assert (plain["embedding"], plain["representation"], plain["grouped_windows"]) == ("plain", "zero", False)
    assert plain["reproduced"] is False
    assert plain["published"] == {
        "source": "arXiv 2203.15380v3",
        "throughput_on": "V100, PyTorch FP32, batch 192",
        "millions": 29.3,
        "giga_macs": 4.3,
        "images_per_s": 755,
        "top1": 81.7,
    }
    assert rows["t"]["tables"] == [6, 7]
    assert [row["name"] for row in show.variant_rows()] == list(VARIANTS)


def test_a_benchmark_of_ablations_has_the_papers_throughput_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    made = (
        engine("t.plan"),
        engine("t_int8.plan", precision="int8"),
        engine("plain.plan", variant="t-plain"),
        engine("plain_int8.plan", variant="t-plain", precision="int8"),
        engine("zero.onnx", kind="onnx", variant="t-zero"),
        engine("other.plan", variant=""),
    )
    times = (10.0, 5.0, 9.0, 4.0, 30.0, 1.0)
    measured = results(*(point(e.name, ms=ms) for e, ms in zip(made, times, strict=True)), engines=made)
    found = {row.engine: row for row in beside_paper(measured)}
    assert {name: row.paper_images_per_s for name, row in found.items()} == {
        "t.plan": 738, "t_int8.plan": 738, "plain.plan": 755, "plain_int8.plan": 755, "zero.onnx": 738,
    }  # fmt: skip
    ratios = {name: row.over_t for name, row in found.items()}
    assert ratios["plain.plan"] is not None
    assert ratios["plain_int8.plan"] is not None
    assert ratios["plain.plan"].baseline == "t.plan"
    assert ratios["plain_int8.plan"].baseline == "t_int8.plan"
    assert ratios["plain_int8.plan"].ratio == pytest.approx(0.8, rel=0.02)
    assert ratios["t.plan"] is ratios["zero.onnx"] is None
    assert found["plain.plan"].paper_over_t == pytest.approx(738 / 755)
    latencies.measured(measured)
    printed = capsys.readouterr().out
    line = next(row for row in printed.splitlines() if "plain.plan" in row and "755" in row)
    assert "0.977" in line
    assert "V100, PyTorch FP32, batch 192, not measured here" in printed
    assert len(latencies.document(measured)["beside_paper"]) == 5


def test_a_benchmark_without_an_ablation_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    measured = results(point("t.plan"))
    latencies.measured(measured)
    assert "paper" not in capsys.readouterr().out
    assert latencies.document(measured)["beside_paper"] == []
