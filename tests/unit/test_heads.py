"""The published decode heads are counted as the paper counts them."""

from __future__ import annotations

import json

import pytest

from sepvit_deploy.cli import run
from sepvit_deploy.errors import OptionError
from sepvit_deploy.heads import (
    PUBLISHED,
    Head,
    count_segmentation_macs,
    count_segmentation_parameters,
    require_head,
)
from sepvit_deploy.variants import VARIANTS

INFERENCE = {
    ("t", "fpn"): 38_028_534,
    ("s", "fpn"): 54_595_830,
    ("b", "fpn"): 93_709_078,
    ("t", "upernet"): 65_152_758,
    ("s", "upernet"): 81_720_054,
    ("b", "upernet"): 122_529_046,
}


@pytest.mark.parametrize(("name", "head"), PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name: str, head: Head) -> None:
    variant, published = VARIANTS[name], PUBLISHED[name, head]
    assert round(count_segmentation_parameters(variant, head) / 1e6, 1) == published.parameters_m
    assert round(count_segmentation_macs(variant, head, attention=False) / 1e9) == published.macs_g


@pytest.mark.parametrize(("name", "head"), PUBLISHED)
def test_what_inference_needs_is_less(name: str, head: Head) -> None:
    assert count_segmentation_parameters(VARIANTS[name], head, published=False) == INFERENCE[name, head]


def test_the_products_of_attention_are_what_the_published_macs_leave_out() -> None:
    with_them = count_segmentation_macs(VARIANTS["t"], "fpn")
    assert round(with_them / 1e9) == 199
    assert round((with_them - count_segmentation_macs(VARIANTS["t"], "fpn", attention=False)) / 1e9, 1) == 17.8


@pytest.mark.parametrize(
    ("head", "found"), [(None, "--task segment without --head"), ("psp", "there is no head 'psp'")]
)
def test_a_head_that_is_none(head: str | None, found: str) -> None:
    with pytest.raises(OptionError, match=found):
        require_head(head)


def test_the_command_prints_them_beside_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["variants", "--heads", "--json"]) == 0
    rows = {(row["name"], row["head"]): row for row in json.loads(capsys.readouterr().out)["heads"]}
    assert rows.keys() == PUBLISHED.keys()
    assert rows["t", "fpn"]["parameters_to_infer"] == INFERENCE["t", "fpn"]
    assert run(["variants", "--heads"]) == 0
    assert "38.799 (38.8)" in capsys.readouterr().out
    assert run(["variants", "--heads", "--ablations"]) == 2
