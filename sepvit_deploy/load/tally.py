"""What became of each request."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

REFUSED = (429, 503)
LATE = 504
_LATE_WORDS = ("deadline", "timeout expired")
"""Of a server that says 503 of both: that it is full, and that a request waited too long."""


@dataclass
class Tally:
    """Requests by what became of them.

    Attributes:
        latencies_ms: of right answers, in order of their arrival here.
        failed: by what went wrong; examples: what was said the first time.
        late: the server gave up, because the deadline had passed; refused: it took no more.
    """

    latencies_ms: array[float] = field(default_factory=lambda: array("d"))
    sent: int = 0
    refused: int = 0
    late: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def answered(self, latency_ms: float) -> None:
        """A right answer."""
        self.latencies_ms.append(latency_ms)

    def fail(self, kind: str, words: str = "") -> None:
        """An answer that is lost or wrong."""
        self.failed[kind] += 1
        self.examples.setdefault(kind, words)

    def status(self, status: int, words: str) -> None:
        """An answer that is none: a refusal, a deadline that has passed, or a failure."""
        if status == LATE or (status in REFUSED and any(word in words.lower() for word in _LATE_WORDS)):
            self.late += 1
        elif status in REFUSED:
            self.refused += 1
        else:
            self.fail(f"HTTP {status}", words)
