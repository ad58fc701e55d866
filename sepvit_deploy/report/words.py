"""Numbers and lists as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable

SPACE = "\u00a0"
"""Between a number and its unit, which stay on one line."""


def number(value: float) -> str:
    """Three digits that count, thousands set apart: 0.0123, 1.23, 123, 12,345."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 1:
        return f"{value:.{2 if size < 10 else 1}f}"
    return f"{value:#.3g}"


def ms(value: float) -> str:
    """A time."""
    return f"{number(value)}{SPACE}ms"


def rate(value: float) -> str:
    """A throughput."""
    return f"{number(value)}{SPACE}images/s"


def percent(share: float) -> str:
    """A share of 0 to 1; a decimal below ten percent."""
    return f"{100 * share:.{1 if 0 < abs(share) < 0.0995 else 0}f}{SPACE}%"


def top1(share: float) -> str:
    """An accuracy of 0 to 1, where tenths count."""
    return f"{100 * share:.1f}{SPACE}%"


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval; empty where there is none."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def listed(items: Iterable[str]) -> str:
    """``a, b and c``."""
    found = list(items)
    return " and ".join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else "".join(found)


def counted(count: int, one: str, many: str = "") -> str:
    """``1 point``, ``2 points``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
