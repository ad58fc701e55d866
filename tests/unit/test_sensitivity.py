"""Planted damage: the ranking, the choice that follows, and what it costs to find it."""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
import weakref
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.errors import InputError, OutputError
from sepvit_deploy.sensitivity import Measured, Sensitivity, Target, sensitivity

GROUPS = ("stage0.embed", "stage0.qkv", "stage1.fc1", "stage1.fc2", "head")
IMAGES = 40
CLASSES = 6
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((IMAGES, CLASSES)).astype(np.float32)
NOISE = {group: RNG.standard_normal((IMAGES, CLASSES)).astype(np.float32) for group in GROUPS}


class Fake:
    """Adds up the logits and the noise of the given groups; an image's pixels are its number."""

    def __init__(self, amounts: dict[str, float], name: str = "int8", batch: int | None = None) -> None:
        self.name, self.input_shape = name, (batch, 3, 2, 2)
        self.table = LOGITS + sum((np.float32(a) * NOISE[g] for g, a in amounts.items()), np.float32(0))
        self.runs = 0

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert self.input_shape[0] in (None, len(images))
        self.runs += 1
        return {"logits": self.table[images[:, 0, 0, 0].astype(int)]}


class Quantizer:
    """Makes runners with the damage of all groups but those kept, and remembers what it was asked for."""

    def __init__(self, batch: int | None = None, **amounts: float) -> None:
        self.amounts = {group.replace("_", "."): amount for group, amount in amounts.items()}
        self.batch, self.asked = batch, []  # type: int | None, list[frozenset[str]]
        self.alive: list[weakref.ref[Fake]] = []

    def __call__(self, kept: frozenset[str]) -> Fake:
        assert all(ref() is None for ref in self.alive), "two quantised runners at once"
        assert kept < set(self.amounts)
        self.asked.append(kept)
        runner = Fake({g: a for g, a in self.amounts.items() if g not in kept}, batch=self.batch)
        self.alive.append(weakref.ref(runner))
        return runner


def batches(size: int = 16, images: int = IMAGES) -> Iterator[np.ndarray]:
    numbers = np.arange(images, dtype=np.float32)
    for start in range(0, images, size):
        part = numbers[start : start + size]
        yield np.broadcast_to(part[:, None, None, None], (len(part), 3, 2, 2)).copy()


def measured(quantizer: Quantizer, **options: Any) -> Sensitivity:
    return sensitivity(Fake({}, "fp32"), list(quantizer.amounts), quantizer, batches, **options)


def truth(quantizer: Quantizer, kept: set[str]) -> Measured:
    left = {g: a for g, a in quantizer.amounts.items() if g not in kept}
    table = Fake(left).table.astype(np.float64)
    noise = ((table - LOGITS) ** 2).sum()
    signal = (LOGITS.astype(np.float64) ** 2).sum()
    agreement = float((table.argmax(1) == LOGITS.argmax(1)).mean())
    return Measured(10 * math.log10(signal / noise) if noise else math.inf, agreement)


def same(found: Measured, expected: Measured) -> bool:
    return found.agreement == expected.agreement and found.sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-6)


def test_a_planted_sensitive_group_ranks_first_and_keeping_it_is_enough() -> None:
    quantizer = Quantizer(stage0_embed=1e-3, stage0_qkv=0.8, stage1_fc1=2e-3, stage1_fc2=1e-4, head=0.0)
    result = measured(quantizer)
    assert result.rows[0].group == "stage0.qkv"
    gains = [row.gain_db for row in result.rows]
    assert gains == sorted(gains, reverse=True)
    assert result.everything.agreement < 0.9
    assert same(result.everything, truth(quantizer, set()))
    for row in result.rows:
        expected = truth(quantizer, {row.group})
        assert same(row.without, expected)
        assert row.gain_db == pytest.approx(expected.sqnr_db - result.everything.sqnr_db, abs=1e-6)
        assert row.gain_agreement == expected.agreement - result.everything.agreement
        assert row.alone is None
    assert result.rows[0].gain_db > 20
    assert next(row.gain_db for row in result.rows if row.group == "head") == 0
    assert (result.keep, result.reached) == (("stage0.qkv",), True)
    assert result.keep_options == "--keep stage0.qkv"
    assert same(result.kept, truth(quantizer, {"stage0.qkv"}))
    assert (result.reference, result.images) == ("fp32", IMAGES)
    assert len(quantizer.asked) == len(set(quantizer.asked)) == 6  # the choice had been measured already


def test_where_nothing_is_needed_nothing_is_kept() -> None:
    quantizer = Quantizer(stage0_qkv=1e-3, head=1e-4)
    result = measured(quantizer)
    assert (result.keep, result.keep_options, result.reached) == ((), "", True)
    assert result.kept == result.everything
    assert len(quantizer.asked) == 3


def test_a_choice_of_several_groups_is_measured_together() -> None:
    quantizer = Quantizer(stage0_embed=0.5, stage0_qkv=0.001, stage1_fc1=0.6, stage1_fc2=0.4)
    result = measured(quantizer)
    assert result.keep == ("stage1.fc1", "stage0.embed", "stage1.fc2")
    assert result.keep_options == "--keep stage1.fc1 --keep stage0.embed --keep stage1.fc2"
    assert same(result.kept, truth(quantizer, set(result.keep)))
    assert result.reached
    assert frozenset(result.keep) in quantizer.asked


@settings(deadline=None, max_examples=25)
@given(
    amounts=st.lists(st.sampled_from([0.0, 1e-3, 0.05, 0.2, 0.5, 1.0]), min_size=5, max_size=5),
    agreement=st.sampled_from([0.9, 0.99, 1.0]),
)
def test_any_choice_is_measured_and_none_of_it_can_be_left_out(amounts: list[float], agreement: float) -> None:
    quantizer = Quantizer(**{g.replace(".", "_"): a for g, a in zip(GROUPS, amounts, strict=True)})
    target = Target(agreement=agreement)
    result = measured(quantizer, target=target)
    assert same(result.kept, truth(quantizer, set(result.keep)))
    assert result.reached is (result.kept.agreement >= agreement)
    assert len(quantizer.asked) == len(set(quantizer.asked)), "nothing is run twice"
    if result.reached and result.keep:
        for fewer in combinations(result.keep, len(result.keep) - 1):
            assert truth(quantizer, set(fewer)).agreement < agreement
    json.dumps(result.to_dict(), allow_nan=False)


def test_keeping_everything_is_the_reference_and_is_not_run() -> None:
    quantizer = Quantizer(stage0_qkv=3.0, head=3.0)
    result = measured(quantizer)
    assert sorted(result.keep) == ["head", "stage0.qkv"]
    assert result.kept == Measured(math.inf, 1.0)
    assert result.to_dict()["kept"] == {"sqnr_db": None, "agreement": 1.0}


def test_a_group_that_gains_too_little_is_not_kept() -> None:
    result = measured(Quantizer(stage0_qkv=1.0, stage1_fc1=1.0, head=0.1), target=Target(gain_db=60.0))
    assert (result.keep, result.reached) == ((), False)
    assert result.kept == result.everything


def test_each_group_alone() -> None:
    quantizer = Quantizer(stage0_embed=0.3, stage0_qkv=2.0, head=1.0)
    result = measured(quantizer, alone=True)
    for row in result.rows:
        assert row.alone is not None
        assert same(row.alone, truth(quantizer, set(quantizer.amounts) - {row.group}))


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("fixed", [None, 1, 8])
def test_batches_of_any_size(size: int, fixed: int | None) -> None:
    quantizer = Quantizer(fixed, stage0_qkv=0.8, head=0.1)
    reference = Fake({}, "fp32", fixed)
    result = sensitivity(reference, tuple(quantizer.amounts), quantizer, lambda: batches(size))
    assert same(result.everything, truth(quantizer, set()))
    width = fixed or size
    assert reference.runs == sum(-(-len(batch) // width) for batch in batches(size)), "the reference runs once"


def test_reference_outputs_move_to_a_file_when_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = measured(Quantizer(stage0_qkv=0.8, head=0.1))
    monkeypatch.setattr(sys.modules["sepvit_deploy.sensitivity"], "SPOOL_BYTES", 1000)
    assert measured(Quantizer(stage0_qkv=0.8, head=0.1)) == expected


def test_no_space_for_the_reference_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    class Full:
        def __init__(self, size: int) -> None: ...
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None: ...
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Full)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/tmp")
    text = (
        r"^the outputs of fp32 cannot be kept in /tmp \(.*No space left on device\); take fewer images, or set TMPDIR"
    )
    with pytest.raises(OutputError, match=text):
        measured(Quantizer(stage0_qkv=0.8))


def test_progress_grows_to_1() -> None:
    shares: list[float] = []
    measured(Quantizer(stage0_qkv=0.9, stage1_fc1=0.8, head=0.7), progress=shares.append, alone=True)
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] == 1.0


class Maps(Fake):
    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        values = super().run(images)["logits"]
        return {"stride4": np.repeat(values[:, :, None], 4, axis=2), "stride8": values[:, :, None]}


def test_feature_maps_have_no_agreement_and_a_target_in_db() -> None:
    amounts = {"stage0.qkv": 0.5, "stage1.fc1": 0.03, "head": 0.01}
    result = sensitivity(
        Maps({}, "fp32"),
        list(amounts),
        lambda kept: Maps({g: a for g, a in amounts.items() if g not in kept}),
        batches,
    )
    assert {row.without.agreement for row in result.rows} == {None} == {row.gain_agreement for row in result.rows}
    assert result.everything.sqnr_db < 20 <= result.kept.sqnr_db
    assert (result.keep, result.reached) == (("stage0.qkv",), True)


def test_the_result_as_a_dictionary() -> None:
    result = measured(Quantizer(stage0_qkv=0.8, head=0.0)).to_dict()
    assert result == json.loads(json.dumps(result, allow_nan=False))
    assert [row["group"] for row in result["rows"]] == ["stage0.qkv", "head"]
    assert result["rows"][0]["without"] == {"sqnr_db": None, "agreement": 1.0}
    assert result["rows"][0]["gain_db"] is None
    assert (result["keep"], result["keep_options"]) == (["stage0.qkv"], "--keep stage0.qkv")
    assert result["target"] == {"agreement": 0.99, "sqnr_db": 20.0, "gain_db": 0.1}


def refused(text: str, quantized: Any = Fake, groups: Any = ("a", "b"), images: Any = batches, **runner: Any) -> None:
    reference = runner.get("reference", Fake({}, "fp32"))
    with pytest.raises(InputError, match=f"^{re.escape(text)}"):
        sensitivity(reference, groups, quantized, images)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    spoilt = Fake({}, "spoilt")
    spoilt.table[3, 3] = bad
    refused("spoilt gives logits that is not finite; check the file first", lambda kept: spoilt)
    refused("spoilt gives logits that is not finite; check the file first", reference=spoilt)


def test_outputs_of_another_name_or_shape() -> None:
    narrow = Fake({}, "narrow")
    narrow.table = narrow.table[:, :5]
    refused("narrow gives logits of shape (16, 5); expected logits of shape (16, 6)", lambda kept: narrow)
    refused("maps gives stride4, stride8; expected logits of shape (16, 6)", lambda kept: Maps({}, "maps"))


def test_nothing_to_measure() -> None:
    refused("fp32 has no groups to measure; expected one or more products to quantise", groups=())
    refused("there are no images to measure on; expected one or more", images=lambda: iter(()))


@pytest.mark.parametrize("later", [39, 41, 16, 0])
def test_images_that_change_while_they_are_measured(later: int) -> None:
    counts = iter([IMAGES, later])
    refused(
        "the images changed while they were measured", lambda kept: Fake({}), images=lambda: batches(16, next(counts))
    )


class Segments:
    """Gives (B, 3, 4, 4) logits, or their classes: the pixels of an image are its number."""

    def __init__(self, noise: float, *, mask: bool) -> None:
        self.name, self.input_shape = "segments", (None, 3, None, None)
        rng = np.random.default_rng(0)
        shape = (IMAGES, 3, 4, 4)
        table = rng.standard_normal(shape) + noise * rng.standard_normal(shape)
        self.table = table.argmax(axis=1).astype(np.uint8) if mask else table.astype(np.float32)
        self.output = "mask" if mask else "logits"

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {self.output: self.table[images[:, 0, 0, 0].astype(int)]}


@pytest.mark.parametrize("mask", [False, True], ids=["logits", "mask"])
def test_pixels_are_the_decisions_of_segmentation(mask: bool) -> None:
    noise = {frozenset(): 1.0, frozenset({"fine"}): 1.0, frozenset({"coarse"}): 0.002}
    expected, changed = Segments(0, mask=mask), Segments(1.0, mask=mask)
    result = sensitivity(expected, ["fine", "coarse"], lambda kept: Segments(noise[kept], mask=mask), batches)
    want, have = (x.table if mask else x.table.argmax(axis=1) for x in (expected, changed))
    share = float((want == have).mean())
    assert result.everything.agreement == share < 0.9
    assert [row.group for row in result.rows] == ["coarse", "fine"]
    assert result.keep == ("coarse",)
    if mask:
        assert result.everything.sqnr_db == pytest.approx(-10 * math.log10(1 - share))


def test_a_mask_counts_pixels_and_not_how_far_apart_their_classes_numbers_are() -> None:
    result = sensitivity(Segments(0, mask=True), ["all"], lambda kept: Shifted(), batches)
    assert result.everything == Measured(0.0, 0.0)


class Shifted(Segments):
    """Another class for every pixel, by a number that is far from it."""

    def __init__(self) -> None:
        super().__init__(0, mask=True)
        self.table = self.table + np.uint8(200)
