"""What a server counts: Triton's statistics of each model, and a page for Prometheus.

Counters that Triton has keep its names and meaning, so that its dashboards and autoscalers go on working; what it has
not begins with ``sepvit_``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sepvit_deploy.optional import require

if TYPE_CHECKING:
    from prometheus_client import Metric

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass
class Counts:
    """Of one version of a model; times in nanoseconds, as in Triton's statistics.

    Attributes:
        success: requests answered with a result; fail, those that were not.
        images: inferences, as Triton calls them; executions, batches.
        batches: by images of a batch, how many were run, and nanoseconds.
    """

    success: int = 0
    fail: int = 0
    images: int = 0
    executions: int = 0
    request_ns: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    last_ms: int = 0
    batches: dict[int, list[int]] = field(default_factory=dict)


_TRITON: tuple[tuple[str, str, Callable[[Counts], float]], ...] = (
    ("nv_inference_request_success", "Requests answered with a result", lambda c: c.success),
    ("nv_inference_request_failure", "Requests refused or failed", lambda c: c.fail),
    ("nv_inference_count", "Images computed", lambda c: c.images),
    ("nv_inference_exec_count", "Batches computed", lambda c: c.executions),
    ("nv_inference_request_duration_us", "Of successful requests, summed", lambda c: c.request_ns // 1000),
    ("nv_inference_queue_duration_us", "Waiting of successful requests, summed", lambda c: c.queue_ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Computing of successful requests", lambda c: c.infer_ns // 1000),
)


class Metrics:
    """The counters of one server, in a registry of their own.

    Args:
        models: names that are served; a request for another counts as of no model.
        waiting: images in the queue.
        version: of the model that serves.
        sha256: of its file.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        max_batch: int,
        *,
        waiting: Callable[[], int],
        version: Callable[[], int],
        sha256: Callable[[], str],
    ) -> None:
        prometheus = require("prometheus_client", extra="serving")
        self._models = models
        self._counts: dict[tuple[str, int], Counts] = {}
        self._waiting, self._version, self._sha256 = waiting, version, sha256
        self._render = prometheus.generate_latest
        self._metric: type[Metric] = require("prometheus_client.core", extra="serving").Metric
        self.content_type: str = prometheus.CONTENT_TYPE_PLAIN_0_0_4
        prometheus.disable_created_metrics()  # a second series for each counter, which nobody asked for
        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        registry.register(self)
        sizes = sorted({min(1 << k, max_batch) for k in range(max_batch.bit_length() + 1)})

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
            return prometheus.Histogram(name, text, registry=registry, buckets=buckets)

        self.requests = prometheus.Counter(
            "sepvit_requests", "Requests by model and status code", ["model", "code"], registry=registry
        )
        self.reloads = prometheus.Counter("sepvit_reloads", "New model files", ["result"], registry=registry)
        for result in ("done", "refused"):
            self.reloads.labels(result)
        self.batch = histogram("sepvit_batch_images", "Images of the batches that were computed", tuple(sizes))
        self.queue_s = histogram("sepvit_queue_seconds", "Waiting of requests for the device", SECONDS)
        self.compute_s = histogram("sepvit_compute_seconds", "Computing of batches", SECONDS)
        self.total_s = histogram("sepvit_request_seconds", "Answered inference requests, head to answer", SECONDS)

    def of(self, model: str, version: int) -> Counts:
        """The counters of one version of a model."""
        return self._counts.setdefault((model, version), Counts())

    def forget(self, before: int) -> None:
        """Drop what was counted of versions below ``before``: a server that reloads for years has thousands."""
        self._counts = {key: counts for key, counts in self._counts.items() if key[1] >= before}

    def batched(self, model: str, version: int, images: int, seconds: float) -> None:
        """Count a batch."""
        counts = self.of(model, version)
        counts.executions += 1
        counts.images += images
        entry = counts.batches.setdefault(images, [0, 0])
        entry[0] += 1
        entry[1] += int(seconds * 1e9)
        self.batch.observe(images)
        self.compute_s.observe(seconds)

    def page(self) -> bytes:
        """What Prometheus reads."""
        found = self._render(self._registry)
        assert isinstance(found, bytes)
        return found

    def collect(self) -> Iterator[Metric]:
        """What is read when the page is asked for; part of the interface of a collector."""
        for model in self._models:
            self.of(model, self._version())  # from 0 on, so that a rate has a begin
        for name, text, value in _TRITON:
            # Triton's counters have no _total, which a Counter of this library would get.
            metric = self._metric(name, text, "unknown")
            for (model, version), counts in self._counts.items():
                metric.add_sample(name, {"model": model, "version": str(version)}, value(counts))
            yield metric
        for name, text, found in (
            ("sepvit_queue_images", "Images that wait, those being decoded among them", self._waiting()),
            ("sepvit_model_version", "Counts the model files of this server", self._version()),
        ):
            gauge = self._metric(name, text, "gauge")
            gauge.add_sample(name, {}, found)
            yield gauge
        info = self._metric("sepvit_model_info", "The model that serves", "gauge")
        info.add_sample("sepvit_model_info", {"sha256": self._sha256(), "version": str(self._version())}, 1)
        yield info


def statistics(name: str, version: int, counts: Counts) -> dict[str, Any]:
    """A model in the words of Triton's statistics extension."""

    def duration(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    nothing = duration(0, 0)
    return {
        "name": name,
        "version": str(version),
        "last_inference": counts.last_ms,
        "inference_count": counts.images,
        "execution_count": counts.executions,
        "inference_stats": {
            "success": duration(counts.success, counts.request_ns),
            "fail": duration(counts.fail, 0),
            "queue": duration(counts.success, counts.queue_ns),
            "compute_input": nothing,
            "compute_infer": duration(counts.success, counts.infer_ns),
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": nothing,
                "compute_infer": duration(count, ns),
                "compute_output": nothing,
            }
            for size, (count, ns) in sorted(counts.batches.items())
        ],
    }
