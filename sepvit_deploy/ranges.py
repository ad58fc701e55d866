"""Where to clip a tensor before it becomes INT8: a histogram of |x|, and the four methods over it.

A threshold t stands for the symmetric 8-bit grid of the 255 values k * t / 127, k = -127 .. 127; beyond t is clipped.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, get_args

from sepvit_deploy.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Method = Literal["percentile", "entropy", "mse", "minmax"]
METHODS: tuple[Method, ...] = get_args(Method)
BINS = 1 << 13
"""Of a histogram. Its range is a power of two below twice the largest |x|, so more than half of them are in use."""
ENTROPY_BINS = 2048
ENTROPY_LEVELS = 128
MSE_CANDIDATES = 2048
LEAST_PERCENTILE = 90.0
BLOCK = 1 << 16
"""Values counted at a time: with their indices, few enough to stay in a cache."""
_FLOOR = -112
"""Exponent of the smallest range: 2 ** 125, the factor from values to bins, is still a float32."""


class Histogram:
    """Smallest and largest value of a tensor, and how often each |x| occurs, over any number of arrays.

    The bins divide [0, 2**e) evenly, e as small as the values allow. Where a value lies beyond, bins are merged in
    pairs, which is exact: the counts depend on the values alone, not on the order or the arrays in which they came.

    Attributes:
        minimum: the smallest value, infinity before any; maximum: the largest.
        count: how many values were seen.
        counts: of each bin; empty where ``bins`` is 0, for the two extremes alone.
    """

    def __init__(self, bins: int = BINS) -> None:
        import numpy as np

        if bins < 0 or bins & (bins - 1):
            raise ValueError(f"{bins} bins: not a power of two")
        self.minimum, self.maximum, self.count = math.inf, -math.inf, 0
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self._exponent = _FLOOR

    @property
    def largest(self) -> float:
        """The largest |x|."""
        return max(-self.minimum, self.maximum)

    @property
    def width(self) -> float:
        """Of one bin."""
        return math.ldexp(1.0, self._exponent) / len(self.counts)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count the values of an array of any shape.

        Raises:
            ValueError: a value is not finite.
        """
        import numpy as np

        bins = len(self.counts)
        flat = values.reshape(-1)
        scaled, whole = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            low, high = float(block.min()), float(block.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError("a value is not finite")
            self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
            self.count += block.size
            if not bins:
                continue
            self._cover(max(-low, high))
            x, index = scaled[: block.size], whole[: block.size]
            # A power of two: the product is exact, so no value falls into a neighbouring bin.
            np.multiply(block, np.float32(math.ldexp(bins, -self._exponent)), out=x)
            np.abs(x, out=x)
            np.copyto(index, x, casting="unsafe")  # truncates; by way of int32, which vectorises
            self.counts += np.bincount(index, minlength=bins)

    def _cover(self, value: float) -> None:
        if value < math.ldexp(1.0, self._exponent):
            return
        exponent = math.frexp(value)[1]
        factor = 1 << min(exponent - self._exponent, len(self.counts).bit_length() - 1)
        merged = self.counts.reshape(-1, factor).sum(axis=1)
        self.counts[:] = 0
        self.counts[: len(merged)] = merged
        self._exponent = exponent


def method_named(name: str) -> Method:
    """The method of this name.

    Raises:
        OptionError: there is none.
    """
    for method in METHODS:
        if method == name:
            return method
    raise OptionError(f"--method {name}", expected=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}")


def threshold(histogram: Histogram, method: Method, percentile: float = 99.99) -> float:
    """Where ``method`` clips |x|: above 0, and at most the largest |x|.

    ``histogram`` holds a value other than zero and, except for ``minmax``, has bins.
    """
    if method == "percentile":
        found = _percentile(histogram, percentile)
    elif method == "entropy":
        found = _entropy(histogram)
    elif method == "mse":
        found = _mse(histogram)
    else:
        found = histogram.largest
    return min(found, histogram.largest)


def settings(method: Method, percentile: float) -> dict[str, Any]:
    """What besides the histogram decides a threshold, for the record."""
    if method == "percentile":
        return {"bins": BINS, "percentile": percentile}
    return {} if method == "minmax" else {"bins": ENTROPY_BINS if method == "entropy" else BINS}


def _percentile(histogram: Histogram, percentile: float) -> float:
    """Upper edge of the bin of the smallest |x| that at least ``percentile`` per cent of the values do not exceed."""
    import numpy as np

    rank = math.ceil(Fraction(str(percentile)) * histogram.count / 100)  # exact: 99.99 is no binary fraction
    return float(np.searchsorted(np.cumsum(histogram.counts), rank) + 1) * histogram.width


def _entropy(histogram: Histogram) -> float:
    """The threshold whose 128 levels keep most of the information about the distribution of |x|, as TensorRT has it.

    For each number i of kept bins: P is the first i bins with all that lies beyond in the last of them; Q is the same
    bins without it, in 128 levels, each spread evenly over its bins that are not empty. The smallest KL(P || Q) wins,
    of equals the largest i. As sums over levels, all i are computed at once.
    """
    import numpy as np

    counts = _rebinned(histogram, ENTROPY_BINS)
    # Zeros are exact at every threshold; uncorrected, a spike of them outweighs everything else.
    counts[0] = counts[1]
    kept = np.arange(ENTROPY_LEVELS, ENTROPY_BINS + 1)  # i
    # Level l of i kept bins begins at bin ceil(l * i / 128).
    starts = -(-np.arange(ENTROPY_LEVELS + 1) * kept[:, None] // ENTROPY_LEVELS)
    inside = _differences(counts, starts)  # (candidates, levels)
    filled = _differences((counts > 0).astype(np.float64), starts)
    density = _log(inside / np.maximum(filled, 1))  # log of a bin of Q, before it is normalised
    total = counts.sum()
    last = counts[kept - 1]
    beyond = total - inside.sum(axis=1)
    own = np.cumsum(counts * _log(counts))[kept - 1] - last * _log(last) + (last + beyond) * _log(last + beyond)
    cross = (inside * density).sum(axis=1) + beyond * density[:, -1]
    divergence = (own - cross) / total - np.log(total) + _log(total - beyond)
    divergence[last == 0] = np.inf  # P has there what Q has not
    best = len(kept) - 1 - int(np.argmin(divergence[::-1]))
    return float(kept[best]) * histogram.largest / ENTROPY_BINS


def _mse(histogram: Histogram) -> float:
    """The threshold with the least expected squared error: of rounding below it, of clipping beyond it.

    Values are taken as spread evenly within their bin. The error of the values between a and b that become v is
    M2 - 2 v M1 + v**2 M0, from the moments of the histogram between a and b.
    """
    import numpy as np

    candidates = histogram.largest * np.arange(1, MSE_CANDIDATES + 1) / MSE_CANDIDATES
    values = candidates[:, None] / 127 * np.arange(128)  # (candidates, levels)
    edges = np.concatenate(
        [np.zeros((len(candidates), 1)), (values[:, 1:] + values[:, :-1]) / 2, np.full((len(candidates), 1), np.inf)],
        axis=1,
    )
    zeroth, first, second = (np.diff(moment, axis=1) for moment in _moments(histogram, edges))
    error = (second - 2 * values * first + values**2 * zeroth).sum(axis=1)
    return float(candidates[int(np.argmin(error))])


def _moments(histogram: Histogram, edges: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Sums of 1, |x| and |x|**2 over the values below each edge."""
    import numpy as np

    counts, width = histogram.counts.astype(np.float64), histogram.width
    bounds = np.arange(len(counts) + 1) * width
    edges = np.minimum(edges, bounds[-1])
    index = np.minimum((edges / width).astype(np.int64), len(counts) - 1)
    sums = []
    for power in (1, 2, 3):
        parts = np.diff(bounds**power) / power * counts / width
        below = np.concatenate([[0.0], np.cumsum(parts)])
        sums.append(below[index] + (edges**power - bounds[index] ** power) / power * (counts / width)[index])
    return sums


def _rebinned(histogram: Histogram, bins: int) -> NDArray[np.float64]:
    """Whole counts of ``bins`` even bins from 0 to the largest |x|; values are taken as even within their old bin."""
    import numpy as np

    total = np.concatenate([[0], np.cumsum(histogram.counts)])
    edges = np.linspace(0, histogram.largest, bins + 1)
    below = np.rint(np.interp(edges, np.arange(len(total)) * histogram.width, total))
    below[-1] = total[-1]
    return np.diff(below)


def _differences(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of ``values`` from each start to the next, along the last axis."""
    import numpy as np

    return np.diff(np.concatenate([[0.0], np.cumsum(values)])[starts], axis=-1)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm, 0 where the value is 0: for x log x."""
    import numpy as np

    return np.log(np.where(values > 0, values, 1.0))
