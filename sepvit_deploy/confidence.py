"""How far a figure from some samples can be from the true one, and whether two files differ by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

RESAMPLES = 4000
"""Of a bootstrap."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval that holds the true share in about ``confidence`` of all samples; 0 to 1 where ``n`` is 0.

    Wilson's score interval, which stays sensible for shares near 0 and 1 (E. B. Wilson, "Probable inference, the law of
    succession, and statistical inference", Journal of the American Statistical Association 22, 1927).

    Raises:
        ValueError: not 0 <= successes <= n, or the confidence is not between 0 and 1.
    """
    if not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"{successes} of {n} at a confidence of {confidence}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, z2 = successes / n, z * z
    middle = share + z2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    scale = 1 + z2 / n
    # Exact at the ends, where rounding would leave the share itself just outside.
    low = 0.0 if successes == 0 else (middle - half) / scale
    high = 1.0 if successes == n else (middle + half) / scale
    return low, high


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value of: of the images that just one of two files gets right, each file gets as many.

    With no difference between the files, each of the ``b + c`` images falls to either side like a fair coin
    (Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947; exact binomial form). In integers, so nothing is lost at any size; a p-value below the
    smallest float is 0.

    Args:
        b: images that only the first file gets right.
        c: images that only the second file gets right.

    Raises:
        ValueError: a count below 0.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts of {b} and {c}")
    n = b + c
    term = tail = 1  # C(n, 0), and the sum of C(n, 0) .. C(n, k)
    for k in range(1, min(b, c) + 1):
        term = term * (n - k + 1) // k
        tail += term
    # Where b equals c, twice the tail counts the term in the middle twice, and exceeds 1.
    return 1.0 if 2 * tail >= 1 << n else 2 * tail / (1 << n)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval that holds the true median in about ``confidence`` of all samples, by the bootstrap.

    Percentile bootstrap with 4,000 resamples from a fixed seed (B. Efron, "Bootstrap methods: another look at the
    jackknife", Annals of Statistics 7, 1979).

    Raises:
        ValueError: there are no values.
    """
    return _quantiles(_resampled_medians(values, 0), confidence)


def ratio_interval(new: Sequence[float], old: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The same of the ratio of two medians, each of values of its own: ``new`` over ``old``, all above 0.

    Raises:
        ValueError: there are no values.
    """
    return _quantiles(_resampled_medians(new, 0) / _resampled_medians(old, 1), confidence)


def _resampled_medians(values: Sequence[float], seed: int) -> Any:
    """The medians of `RESAMPLES` resamples of n values, at a cost that does not grow with n.

    A resample's k-th smallest value is the one at floor(n U) of the sorted values, U being the k-th smallest of n
    uniform numbers, which has a beta distribution: so the middle ones are drawn, and not all n.
    """
    import numpy as np

    if not values:
        raise ValueError("no values")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    rng = np.random.default_rng(seed)
    upper = rng.beta(n // 2 + 1, (n + 1) // 2, RESAMPLES)
    lower = upper if n % 2 else upper * rng.beta(n // 2, 1, RESAMPLES)  # the largest of the n / 2 below it
    low, high = (ordered[np.minimum((n * u).astype(np.int64), n - 1)] for u in (lower, upper))
    return (low + high) / 2


def _quantiles(medians: Any, confidence: float) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
