"""What a server is told, with what it takes where it is told nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sepvit_deploy.contract import HTTP_PORT, require_name
from sepvit_deploy.errors import OptionError
from sepvit_deploy.images import MAX_PIXELS, MAX_UPLOAD_PIXELS


@dataclass(frozen=True)
class Settings:
    """Limits and times of one server.

    Attributes:
        max_batch: images that are computed at once; a model that takes fewer lowers it.
        queue_delay_ms: the longest that an idle device waits for more images.
        max_queue: images that wait, those being decoded among them; beyond it the answer is 503.
        max_body_mb: of one request, encoded and decoded.
        held_mb: of all requests at once; beyond it the answer is 503.
        deadline_ms: from a request's head to its answer, of which a body that comes slowly leaves half; a request may
            ask for less.
        max_megapixels: of a picture, refused before it is decoded.
        max_connections: beyond it the answer is 503; at twice as many a connection is closed at once.
        head_s: for the head of a request, from its first byte or the connection's begin.
        body_s: for the body of a request; shorter than drain_s, or one that stalls would hold up the end.
        keep_alive_s: an idle connection is kept that long; longer than the 60 s of usual load balancers.
        drain_s: the longest that the end waits for requests under way.
        linger_s: within the end, the longest that idle connections may still bring a request.
        poll_s: between two looks at the model's file.

    Raises:
        OptionError: a value is unusable; the message names the option.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = HTTP_PORT
    max_batch: int = 8
    queue_delay_ms: float = 2.0
    max_queue: int = 256
    max_body_mb: float = 32
    held_mb: float = 512
    deadline_ms: float = 10_000
    max_megapixels: float = MAX_UPLOAD_PIXELS / 1e6
    max_connections: int = 1000
    head_s: float = 10
    body_s: float = 20
    keep_alive_s: float = 75
    drain_s: float = 30
    linger_s: float = 2
    poll_s: float = 1

    def __post_init__(self) -> None:
        require_name(self.name)
        _within("--port", self.port, 0, 65535)
        _within("--max-batch", self.max_batch, 1, 4096)
        _within("--queue-delay-ms", self.queue_delay_ms, 0, 10_000)
        _within("--max-queue", self.max_queue, self.max_batch, 1_000_000)
        _within("--max-body-mb", self.max_body_mb, 0.001, 2000)
        _within("--deadline-ms", self.deadline_ms, 1, 3_600_000)
        _within("--max-megapixels", self.max_megapixels, 1, MAX_PIXELS / 1e6)

    @property
    def max_body(self) -> int:
        """In bytes."""
        return int(self.max_body_mb * 1_000_000)


def _within(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails, too
        raise OptionError(f"{option} {value:.10g}", expected=f"{low:.10g} to {high:.10g}")
