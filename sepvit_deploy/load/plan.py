"""What a load is to be: validated options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sepvit_deploy.errors import OptionError
from sepvit_deploy.load.answers import TOLERANCE
from sepvit_deploy.spec import MAX_BATCH, MAX_DENSE_SIDE

CLIENTS = 8
SECONDS = 10.0
IN_FLIGHT = 512
"""Of an open loop: a server that stalls must not take this machine's memory and ports along."""
TIMEOUT_S = 30.0
SIZE = (512, 512)
WARM_UP_S, WARM_UP_SHARE = 2.0, 0.2


@dataclass(frozen=True)
class Plan:
    """What is to be sent.

    Attributes:
        clients: of a closed loop; None for an open one at ``rate_per_s``.
        images: a folder of pictures to send; None for random images.
        size: of random images, height and width, where the model takes any.
        timeout_s: after which an answer is lost.
        tolerance: how far an answer may be from that of the same request without a load, see `answers.difference`.
    """

    clients: int | None = CLIENTS
    rate_per_s: float | None = None
    seconds: float = SECONDS
    images: Path | None = None
    batch: int = 1
    deadline_ms: float | None = None
    in_flight: int = IN_FLIGHT
    timeout_s: float = TIMEOUT_S
    tolerance: float = TOLERANCE
    size: tuple[int, int] = SIZE

    def __post_init__(self) -> None:
        limits = (
            ("--clients", self.clients, 1, 10_000),
            ("--rate", self.rate_per_s, 0.01, 100_000),
            ("--seconds", self.seconds, 0.1, 86_400),
            ("--batch", self.batch, 1, MAX_BATCH),
            ("--deadline-ms", self.deadline_ms, 0.1, 1e7),
            ("in flight", self.in_flight, 1, 100_000),
            ("--timeout", self.timeout_s, 0.1, 3600),
            ("--tolerance", self.tolerance, 0, 1),
            *(("--size", side, 1, MAX_DENSE_SIDE) for side in self.size),
        )
        for option, value, least, most in limits:
            if value is not None and not least <= value <= most:
                raise OptionError(f"{option} {value:g}", expected=f"{least:g} to {most:g}")
        if (self.clients is None) == (self.rate_per_s is None):
            raise OptionError("--rate with --clients", expected="one of them: an open loop, or a closed one")

    @property
    def warm_up_s(self) -> float:
        """Before the measured time, in no figure."""
        return min(WARM_UP_S, WARM_UP_SHARE * self.seconds)
