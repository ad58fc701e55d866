"""Intervals and p-values against their definitions, written out."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.confidence import mcnemar_exact, median_interval, ratio_interval, wilson

COUNTS = st.integers(1, 50_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.floats(0.5, 0.999))
def test_a_wilson_bound_is_where_the_score_test_just_rejects(counts: tuple[int, int], confidence: float) -> None:
    """The definition: at a bound p, the share lies z standard errors of p away from p."""
    successes, n = counts
    low, high = wilson(successes, n, confidence)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    for bound, at_an_end in ((low, successes == 0), (high, successes == n)):
        if at_an_end:
            continue
        z = abs(share - bound) / math.sqrt(bound * (1 - bound) / n)
        assert math.erf(z / math.sqrt(2)) == pytest.approx(confidence, abs=1e-6)


@given(COUNTS)
def test_wilson_treats_failures_as_successes_of_the_opposite(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = wilson(successes, n)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # From the closed forms: z^2 / (n + z^2) at the ends, 1/2 -+ z / (2 sqrt(n + z^2)) in the middle; z = 1.959964.
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (50, 100, 0.403832, 0.596168), (0, 0, 0.0, 1.0)],
)
def test_wilson_at_known_counts(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-6)


@given(COUNTS)
def test_more_confidence_is_a_wider_interval(counts: tuple[int, int]) -> None:
    narrow, wide = wilson(*counts, 0.8), wilson(*counts, 0.99)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((3, 2), "3 of 2"),
        ((-1, 2), "-1 of 2"),
        ((1, 2, 1.0), "1 of 2 at a confidence of 1.0"),
        ((1, 2, math.nan), "nan"),
    ],
)
def test_wilson_of_impossible_counts(arguments: tuple[int, int], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        wilson(*arguments)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_twice_the_smaller_tail_of_a_fair_coin(b: int, c: int) -> None:
    n = b + c
    tail = sum((Fraction(math.comb(n, k), 2**n) for k in range(min(b, c) + 1)), Fraction(0))
    assert mcnemar_exact(b, c) == float(min(Fraction(1), 2 * tail))
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_wider_split_of_as_many_images_is_less_likely_by_chance(b: int, c: int) -> None:
    b, c = min(b, c), max(b, c)
    if b:
        assert mcnemar_exact(b - 1, c + 1) <= mcnemar_exact(b, c)


@pytest.mark.parametrize(("b", "c", "p"), [(0, 0, 1.0), (5, 5, 1.0), (4, 5, 1.0), (0, 5, 0.0625), (1, 7, 18 / 256)])
def test_mcnemar_at_known_counts(b: int, c: int, p: float) -> None:
    assert mcnemar_exact(b, c) == p


def test_mcnemar_of_50000_images() -> None:
    begin = time.process_time()
    z = 2.0  # continuity-corrected normal approximation: |b - c| - 1 = z sqrt(n)
    n, difference = 49_999, round(2.0 * math.sqrt(49_999)) + 1
    b = (n - difference) // 2
    assert mcnemar_exact(b, n - b) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    assert mcnemar_exact(0, 50_000) == 0.0
    assert 0 < mcnemar_exact(1000, 2000) < 1e-70
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(("b", "c"), [(-1, 0), (0, -1)])
def test_mcnemar_of_counts_below_0(b: int, c: int) -> None:
    with pytest.raises(ValueError, match=f"counts of {b} and {c}"):
        mcnemar_exact(b, c)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 21, 50])
def test_the_bootstrap_of_a_median_is_that_of_drawing_every_value(n: int) -> None:
    values = np.random.default_rng(n).lognormal(0, 0.3, n)
    drawn = np.median(np.random.default_rng(0).choice(values, (40_000, n)), axis=1)
    low, high = median_interval(values.tolist())
    spread = np.ptp(values) or 1.0
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.06 * spread)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.06 * spread)
    assert min(values) <= low <= np.median(values) <= high <= max(values)


def test_intervals_hold_the_true_median_and_the_true_ratio_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    held = ratio_held = 0
    for _ in range(300):
        new, old = rng.lognormal(0.1, 0.2, 20).tolist(), rng.lognormal(0, 0.2, 20).tolist()
        low, high = median_interval(new)
        held += low <= np.exp(0.1) <= high
        low, high = ratio_interval(new, old)
        ratio_held += low <= np.exp(0.1) <= high
    assert 0.9 <= held / 300 <= 1.0
    assert 0.9 <= ratio_held / 300 <= 1.0


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
