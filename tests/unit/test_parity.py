"""Agreement of two runners: the numbers against numpy, and planted faults of every kind."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy import likeness, parity
from sepvit_deploy.cli.show import agreement_text
from sepvit_deploy.errors import InputError, ParityFailed
from sepvit_deploy.likeness import BLOCK, Sums, Worst
from sepvit_deploy.parity import FP32, Parity, TensorParity, Tolerance, compare, random_batches

SIZE = (4, 5)
NONE = Tolerance(relative=math.inf, sqnr_db=-math.inf, top1_agreement=0.0)


class Fake:
    """Gives prepared outputs, one dictionary for each batch."""

    input_shape = (None, 3, *SIZE)

    def __init__(self, name: str, *batches: dict[str, Any]) -> None:
        self.name = name
        self._batches = iter(batches)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        return {name: np.asarray(value, np.uint8 if name == "mask" else np.float32) for name, value in batch.items()}


def compared(want: Any, have: Any, **options: Any) -> Parity:
    """Compare batches of outputs; a single dictionary is one batch."""
    want, have = ([x] if isinstance(x, dict) else x for x in (want, have))
    sizes = tuple(len(next(iter(batch.values()))) for batch in want)
    options = {"outputs": ("logits",), "source": "random", **options}
    return compare(Fake("torch", *want), Fake("m.onnx", *have), random_batches(SIZE, sizes), **options)


def logits(*rows: list[float]) -> dict[str, Any]:
    return {"logits": np.array(rows, np.float32)}


def arrays(seed: int, scale: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    want = (scale * rng.standard_normal((3, 7))).astype(np.float32)
    return want, (want + noise * rng.standard_normal((3, 7))).astype(np.float32)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    scale=st.floats(1e-6, 1e6),
    noise=st.floats(0, 1e3),
    splits=st.lists(st.sampled_from([1, 2]), max_size=2).map(sorted),
)
def test_the_numbers_are_those_of_numpy_however_the_images_are_batched(
    seed: int, scale: float, noise: float, splits: list[int]
) -> None:
    want, have = arrays(seed, scale, noise)
    parts = [[{"logits": part} for part in np.split(side, sorted(set(splits)))] for side in (want, have)]
    result = compared(*parts, tolerance=NONE)
    (tensor,) = result.tensors
    a, b = want.astype(np.float64).ravel(), have.astype(np.float64).ravel()
    error = b - a
    assert tensor.max_difference == np.abs(error).max()
    assert tensor.relative == pytest.approx(np.abs(error).max() / max(1.0, np.abs(a).max()), rel=1e-12)
    assert tensor.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)
    if error.any():
        assert tensor.sqnr_db == pytest.approx(10 * np.log10((a @ a) / (error @ error)), rel=1e-9, abs=1e-9)
    else:
        assert tensor.sqnr_db == math.inf
    assert result.top1_agreement == np.mean(want.argmax(1) == have.argmax(1))
    assert (result.images, result.reference, result.candidate, result.source) == (3, "torch", "m.onnx", "random")


def test_equal_tensors() -> None:
    result = compared(logits([1, 2], [3, 0]), logits([1, 2], [3, 0]))
    assert result.tensors == (TensorParity("logits", 0.0, 0.0, math.inf, 1.0, finite=True),)
    assert result.passed
    assert result.first_out is None
    result.require_passed()


def test_two_zero_tensors_are_equal() -> None:
    result = compared(logits([0, 0]), logits([0, 0]))
    assert result.passed
    assert (result.tensors[0].sqnr_db, result.tensors[0].cosine) == (math.inf, 1.0)


@pytest.mark.parametrize(("want", "have", "sqnr"), [([0, 0], [1e-9, 0], -math.inf), ([1, 0], [0, 0], 0.0)])
def test_a_tensor_against_zero_fails(want: list[float], have: list[float], sqnr: float) -> None:
    result = compared(logits(want), logits(have))
    assert (result.tensors[0].sqnr_db, result.tensors[0].cosine) == (sqnr, 0.0)
    assert not result.passed


def failed(result: Parity, text: str) -> None:
    assert not result.passed
    with pytest.raises(ParityFailed, match=re.escape(text)) as caught:
        result.require_passed()
    assert str(caught.value).startswith("m.onnx does not compute what torch does: ")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_a_number_that_is_not_finite_fails_on_either_side(bad: float, side: str) -> None:
    good, spoilt = [logits([1, 2]), logits([3, 4])], [logits([1, 2]), logits([bad, 4])]
    want = spoilt if side != "candidate" else good
    have = spoilt if side != "reference" else good
    result = compared(want, have, tolerance=NONE)
    assert result.first_out == "logits"
    assert not result.tensors[0].finite
    assert math.isnan(result.tensors[0].sqnr_db)
    failed(result, "logits has numbers that are not finite")


def test_a_finite_batch_after_one_that_is_not_does_not_heal_it() -> None:
    spoilt, good = logits([math.nan, 1]), logits([1, 2])
    assert not compared([spoilt, good], [good, good]).passed


def test_a_large_difference_fails() -> None:
    result = compared(logits([100, 0]), logits([100, 0.2]), tolerance=replace(FP32, relative=1e-3, sqnr_db=0))
    failed(result, "logits differs by 2.0e-03 (SQNR 54.0 dB); expected at most 1e-03, at least 0 dB and equal top-1")


def test_a_difference_in_one_number_of_many_fails() -> None:
    want = np.zeros((1, 100_000), np.float32)
    want[0, 0] = 1
    have = want.copy()
    have[0, 500] = 0.001
    failed(
        compared({"logits": want}, {"logits": have}, tolerance=replace(FP32, sqnr_db=50)), "logits differs by 1.0e-03"
    )


def test_a_low_sqnr_alone_fails() -> None:
    want = np.full((1, 1000), 0.01, np.float32)
    have = want + np.float32(5e-5)
    result = compared({"logits": want}, {"logits": have})
    assert result.tensors[0].relative < FP32.relative
    failed(result, "logits differs by 5.0e-05 (SQNR 46.0 dB)")


def test_decisions_alone_fail() -> None:
    want = logits([1, 1 - 1e-6], [0, 1], [0, 1])
    have = logits([1 - 1e-6, 1], [0, 1], [0, 1])
    result = compared(want, have)
    assert result.first_out is None
    assert result.top1_agreement == pytest.approx(2 / 3)
    failed(result, "top-1 agrees on 66.67% of 3 images; expected at most 1e-04, at least 80 dB and equal top-1")
    assert compared(want, have, tolerance=replace(FP32, top1_agreement=0.6)).passed


@pytest.mark.parametrize(("factor", "passes"), [(1 + 1e-6, True), (1 + 2e-4, False), (-1, False), (0, False)])
def test_scaled_outputs(factor: float, passes: bool) -> None:
    want, _ = arrays(0, 3.0, 0)
    assert compared({"logits": want}, {"logits": want * np.float32(factor)}).passed is passes


def test_exchanged_images_fail() -> None:
    want, _ = arrays(0, 3.0, 0)
    assert not compared({"logits": want}, {"logits": want[::-1]}).passed


INNER = ("stage0.block0", "stage1.block0", "logits")


def taps(*values: float) -> dict[str, Any]:
    return {name: [[value, 0.0]] for name, value in zip(INNER, values, strict=True)}


def test_the_first_tensor_out_is_the_first_in_order_of_computation() -> None:
    result = compared(taps(1, 1, 1), dict(reversed(taps(1, 1.1, 2).items())))
    assert [tensor.name for tensor in result.tensors] == list(INNER)
    assert result.first_out == "stage1.block0"
    failed(result, "stage1.block0 differs by 1.0e-01 (SQNR 20.0 dB)")


def test_an_inner_tensor_out_of_tolerance_is_named_and_passes_where_the_outputs_agree() -> None:
    result = compared(taps(1, 1, 1), taps(1, 1.1, 1))
    assert result.first_out == "stage1.block0"
    assert result.passed


def test_inner_tensors_of_one_side_are_left_out() -> None:
    assert [t.name for t in compared(taps(1, 1, 1), logits([1, 0])).tensors] == ["logits"]
    assert [t.name for t in compared(logits([1, 0]), taps(1, 1, 1)).tensors] == ["logits"]


def test_feature_maps_have_no_top1() -> None:
    maps = {"stride4": np.ones((1, 2, 4, 4)), "stride8": np.ones((1, 2, 2, 2))}
    result = compared(maps, maps, outputs=tuple(maps))
    assert result.top1_agreement is None
    assert result.passed
    off = maps | {"stride8": 2 * maps["stride8"]}
    failed(compared(maps, off, outputs=tuple(maps)), "stride8 differs by 1.0e+00 (SQNR 0.0 dB)")


def pixel_logits(changed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(2, 3, 20, 50) logits on both sides, which are close but for the class of ``changed`` of their 2000 pixels."""
    want = np.zeros((2, 3, 1000), np.float32)
    want[:, 1] = 1e-6
    have = want.copy()
    have[0, 2, :changed] = 2e-6
    return tuple({"logits": values.reshape(2, 3, 20, 50)} for values in (want, have))


@pytest.mark.parametrize(("changed", "passed"), [(0, True), (2, True), (3, False)])
def test_the_pixels_of_logits_are_decisions_and_a_few_of_them_may_be_ties(changed: int, passed: bool) -> None:
    result = compared(*pixel_logits(changed), tolerance=replace(FP32, sqnr_db=-200.0))
    assert (result.top1_agreement, result.pixel_agreement) == (None, 1 - changed / 2000)
    assert result.passed == passed
    assert result.first_out is None
    assert f"{1 - changed / 2000:.2%} of logit cells with the same class" in agreement_text(result)
    if not passed:
        expected = "at most 1e-04, at least -200 dB and 99.9% of logit cells with the same class"
        failed(result, f"99.85% of the logit cells of 2 images have the same class; expected {expected}")


def masks(changed: int, *, to: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """(2, 20, 50) masks on both sides, of which ``changed`` pixels differ."""
    want, have = np.ones(2000, np.uint8), np.ones(2000, np.uint8)
    have[np.r_[1000:2000, :1000][:changed]] = to  # those of the second image first
    return tuple({"mask": values.reshape(2, 20, 50)} for values in (want, have))


@pytest.mark.parametrize(
    ("tolerance", "most"), [(FP32, 2), (parity.FP16, 20), (parity.INT8, 1000)], ids=["fp32", "fp16", "int8"]
)
@pytest.mark.parametrize("to", [2, 255])
def test_a_mask_is_judged_by_the_share_of_pixels_alone(tolerance: Tolerance, most: int, to: int) -> None:
    result = compared(*masks(most, to=to), outputs=("mask",), tolerance=tolerance)
    assert result.passed
    assert result.pixel_agreement == 1 - most / 2000
    assert agreement_text(result) == f", {1 - most / 2000:.2%} of pixels with the same class"
    result = compared(*masks(most + 1, to=to), outputs=("mask",), tolerance=tolerance)
    assert (result.passed, result.first_out) == (False, "mask")
    least = f"at least {tolerance.pixel_agreement:.1%} of pixels with the same class"
    failed(result, f"{(most + 1) / 2000:.2%} of the pixels of mask have another class; expected {least}")


def test_classes_differ_as_one_hot_vectors_do() -> None:
    (mask,) = compared(*masks(5, to=200), outputs=("mask",)).tensors
    assert (mask.max_difference, mask.relative, mask.classes) == (1.0, 5 / 2000, True)
    assert mask.sqnr_db == pytest.approx(10 * math.log10(2000 / 10))
    assert mask.cosine == pytest.approx(1 - 5 / 2000)
    (equal,) = compared(*masks(0), outputs=("mask",)).tensors
    assert (equal.relative, equal.sqnr_db, equal.cosine) == (0.0, math.inf, 1.0)


def test_the_worst_pixel_of_a_mask_is_the_first_of_another_class() -> None:
    sums = Sums()
    want, have = (batch["mask"] for batch in masks(5, to=9))
    for image in range(2):
        sums.add(want[image : image + 1], have[image : image + 1])
    assert sums.worst == Worst((1, 0, 0), 1.0, 9.0)


def test_a_mask_of_another_size() -> None:
    with pytest.raises(ParityFailed, match=re.escape("mask of m.onnx has shape (2, 10, 50); expected (2, 20, 50)")):
        compared(masks(0)[0], {"mask": masks(0)[0]["mask"][:, :10]}, outputs=("mask",))


@pytest.mark.parametrize(
    ("want", "have", "name"), [({"x": [[1]]}, logits([1]), "torch"), (logits([1]), {"x": [[1]]}, "m.onnx")]
)
def test_a_missing_output(want: dict[str, Any], have: dict[str, Any], name: str) -> None:
    with pytest.raises(ParityFailed, match=f"^{name} has no output logits; expected logits$"):
        compared(want, have)


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (1, 2, 1), (2,)])
def test_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParityFailed, match=re.escape(f"logits of m.onnx has shape {shape}; expected (1, 2)")):
        compared(logits([1, 2]), {"logits": np.ones(shape)})


def test_no_images() -> None:
    with pytest.raises(InputError, match=r"^there are no images to compare on; expected one or more$"):
        compared([], [])


def test_random_batches_are_normal_and_repeatable() -> None:
    batches = list(random_batches((32, 40), (1, 2, 3)))
    assert [batch.shape for batch in batches] == [(1, 3, 32, 40), (2, 3, 32, 40), (3, 3, 32, 40)]
    assert all(batch.dtype == np.float32 for batch in batches)
    assert all(abs(batch.mean()) < 0.05 and abs(batch.std() - 1) < 0.05 for batch in batches)
    assert all(np.array_equal(a, b) for a, b in zip(batches, random_batches((32, 40), (1, 2, 3)), strict=True))
    assert not np.array_equal(batches[0], next(iter(random_batches((32, 40), (1,), seed=1))))


def test_the_worst_element_is_the_first_of_the_largest_in_whatever_blocks_it_is_compared() -> None:
    want = np.zeros((3, BLOCK), np.float32)
    have = want.copy()
    have[1, 7] = have[2, 9] = -0.5
    sums = Sums()
    for image in range(3):
        sums.add(want[image : image + 1], have[image : image + 1])
    assert sums.worst == Worst((1, 7), 0.0, -0.5)
    whole = Sums()
    whole.add(want, have)
    assert (whole.worst, whole.result("x")) == (sums.worst, sums.result("x"))
    have[0, 3] = math.nan
    whole.add(want, have)
    assert whole.worst is not None
    assert whole.worst.index == (3, 3)
    whole.add(want, have - 9)
    assert whole.worst.index == (3, 3)


def test_the_names_that_comparisons_are_made_of_are_those_of_likeness() -> None:
    assert (parity.Tolerance, parity.TensorParity) == (likeness.Tolerance, likeness.TensorParity)
    assert (parity.FP32, parity.FP16, parity.INT8) == (likeness.FP32, likeness.FP16, likeness.INT8)
