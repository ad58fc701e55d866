"""Histograms and thresholds, against numpy and against slow implementations that follow the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.errors import OptionError
from sepvit_deploy.ranges import BINS, BLOCK, METHODS, Histogram, Method, method_named, threshold
from sepvit_deploy.ranges import settings as settings_of


def long_tailed(seed: int, size: int = 20_000, freedom: float = 3.0) -> np.ndarray:
    """Float32 numbers of Student's t: most near 0, a few far out."""
    return np.random.default_rng(seed).standard_t(freedom, size).astype(np.float32)


def seen(*arrays: np.ndarray, bins: int = BINS) -> Histogram:
    histogram = Histogram(bins)
    for array in arrays:
        histogram.add(array)
    return histogram


def exact_counts(values: np.ndarray, width: float) -> np.ndarray:
    return np.bincount((np.abs(values.astype(np.float64)) / width).astype(np.int64), minlength=BINS)


seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, exponents=st.lists(st.integers(-60, 60), min_size=1, max_size=5), data=st.data())
def test_counts_depend_on_the_values_alone_however_the_range_grows(
    seed: int, exponents: list[int], data: st.DataObject
) -> None:
    arrays = [long_tailed(seed + k, 500) * np.float32(2.0**e) for k, e in enumerate(exponents)]
    arrays.append(np.zeros(7, np.float32))
    values = np.concatenate(arrays)
    one, other = seen(*data.draw(st.permutations(arrays))), seen(values.reshape(1, -1))
    assert one.counts.sum() == one.count == values.size
    assert (one.counts == other.counts).all() and one.width == other.width
    assert (one.counts == exact_counts(values, one.width)).all()
    assert (one.minimum, one.maximum) == (values.min(), values.max())
    assert one.counts[BINS // 2 :].any()  # the range is below twice the largest


def test_an_array_of_several_blocks_is_counted_like_its_parts() -> None:
    values = long_tailed(1, 3 * BLOCK + 5)
    assert (seen(values).counts == seen(*np.array_split(values, 11)).counts).all()


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1.0, 2.0, 65504.0, float(np.finfo(np.float32).max)])
def test_the_ends_of_float32_are_counted(largest: float) -> None:
    values = np.array([0, -largest, largest / 3], np.float32)
    histogram = seen(values)
    assert histogram.counts.sum() == 3
    assert histogram.largest == np.abs(values).max()
    assert 0 < threshold(histogram, "percentile") <= histogram.largest
    assert threshold(seen(values, bins=0), "minmax") == histogram.largest


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bins", [0, BINS])
def test_a_number_that_is_not_finite_is_refused(bad: float, bins: int) -> None:
    with pytest.raises(ValueError, match="not finite"):
        seen(np.array([0.5] * BLOCK + [bad], np.float32), bins=bins)


def test_without_bins_only_the_extremes_are_kept() -> None:
    histogram = seen(np.array([-3, 1], np.float32), np.array([2], np.float32), bins=0)
    assert (histogram.minimum, histogram.maximum, histogram.largest, histogram.count) == (-3, 2, 3, 3)
    assert histogram.counts.size == 0


def test_bins_that_do_not_halve_are_refused() -> None:
    with pytest.raises(ValueError, match="1000 bins"):
        Histogram(1000)


@settings(deadline=None, max_examples=60)
@given(seed=seeds, size=st.integers(2, 5000), percentile=st.floats(90, 100))
def test_percentile_is_within_one_bin_of_the_exact_one(seed: int, size: int, percentile: float) -> None:
    values = long_tailed(seed, size)
    histogram = seen(values)
    exact = np.percentile(np.abs(values.astype(np.float64)), percentile, method="inverted_cdf")
    found = threshold(histogram, "percentile", percentile)
    assert exact <= found <= exact + histogram.width
    assert found <= histogram.largest


def test_the_rank_of_a_percentile_is_exact() -> None:
    """99.9 % of 1,000 values are 999 of them; in binary fractions 99.9 / 100 * 1000 is a little more, hence all."""
    values = np.ones(1000, np.float32)
    values[-1] = 1000
    assert threshold(seen(values), "percentile", 99.9) < 2
    assert threshold(seen(values), "percentile", 99.901) == 1000


def divergences(counts: np.ndarray) -> list[float]:
    """KL(P || Q) for each number of kept bins from 128 on, as TensorRT's method defines it, one at a time."""
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    found = []
    for kept in range(128, len(counts) + 1):
        p, own, level = counts[:kept].copy(), counts[:kept] > 0, np.arange(kept) * 128 // kept
        p[-1] += counts[kept:].sum()
        filled = np.maximum(np.bincount(level[own], minlength=128), 1)
        q = np.where(own, (np.bincount(level, counts[:kept], 128) / filled)[level], 0)
        if (q[p > 0] == 0).any():
            found.append(math.inf)
            continue
        p, q = p / p.sum(), q / q.sum()
        own = p > 0
        found.append(float((p[own] * np.log(p[own] / q[own])).sum()))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["t", "laplace", "normal", "outliers"])
def test_entropy_finds_the_least_divergence_of_all(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "t": rng.standard_t(3, 20_000),
        "laplace": rng.laplace(size=5000),
        "normal": rng.standard_normal(20_000),
        "outliers": np.concatenate([rng.uniform(0, 1, 5000), rng.uniform(1, 9, 30)]),
    }[kind]
    values = (np.abs(values) / np.abs(values).max()).astype(np.float32)
    # The largest is 1: the bins then divide [0, 1] evenly, so the slow way can count exactly the same.
    kept = threshold(seen(values), "entropy") * 2048
    slow = divergences(np.histogram(values, 2048, (0, 1))[0])
    assert kept == int(kept)
    assert slow[int(kept) - 128] == pytest.approx(min(slow), abs=1e-12)
    assert kind == "normal" or 128 <= kept < 2048, "where tails are long, the whole range is not the answer"


@settings(deadline=None, max_examples=20)
@given(seed=seeds, freedom=st.floats(1.5, 30), exponent=st.integers(-40, 40))
def test_entropy_scales_with_the_values(seed: int, freedom: float, exponent: int) -> None:
    values = long_tailed(seed, 4000, freedom)
    once = threshold(seen(values), "entropy")
    assert threshold(seen(values * np.float32(2.0**exponent)), "entropy") == pytest.approx(once * 2.0**exponent)
    assert once >= np.abs(values).max() * 128 / 2048 * (1 - 1e-6)


def test_entropy_does_not_drown_in_zeros() -> None:
    values = long_tailed(3)
    zeros = np.zeros(10 * values.size, np.float32)
    assert threshold(seen(values, zeros), "entropy") == threshold(seen(values), "entropy")


def squared_error(values: np.ndarray, clip: float) -> float:
    """Mean, as measured on the 8-bit grid."""
    values, step = values.astype(np.float64), clip / 127
    return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).mean())


@settings(deadline=None, max_examples=10)
@given(seed=seeds, freedom=st.floats(1.5, 30))
def test_mse_is_as_good_as_any_threshold_and_no_worse_than_the_whole_range(seed: int, freedom: float) -> None:
    values = long_tailed(seed, 5000, freedom)
    histogram = seen(values)
    found = squared_error(values, threshold(histogram, "mse"))
    slow = min(squared_error(values, histogram.largest * k / 256) for k in range(1, 257))
    # Within a bin values are taken as even: on the few that are far out this can miss by a little.
    assert found <= slow * 1.02
    assert found <= squared_error(values, histogram.largest) * 1.001


def test_mse_beats_min_and_max_where_tails_are_long() -> None:
    for seed in range(5):
        values = long_tailed(seed)
        histogram = seen(values)
        kept, whole = (squared_error(values, threshold(histogram, m)) for m in ("mse", "minmax"))
        assert kept < 0.95 * whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[3.0], [0.0, 3.0], [-3.0] * 5, [0.0] * 1000 + [3.0]])
def test_every_method_copes_with_few_values(method: Method, values: list[float]) -> None:
    assert threshold(seen(np.array(values, np.float32)), method, 100) == pytest.approx(3.0, rel=0.01)


def test_methods_go_by_their_names() -> None:
    assert [method_named(name) for name in METHODS] == list(METHODS)
    with pytest.raises(OptionError) as error:
        method_named("max")
    assert str(error.value) == "--method max; expected percentile, entropy, mse or minmax"


def test_settings_hold_what_decides() -> None:
    assert settings_of("percentile", 99.9) == {"bins": 8192, "percentile": 99.9}
    assert settings_of("entropy", 99.9) == {"bins": 2048}
    assert settings_of("mse", 99.9) == {"bins": 8192}
    assert settings_of("minmax", 99.9) == {}
