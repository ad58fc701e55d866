"""From a request to its answer: read, decode, wait, compute, rank or draw. B batch, C classes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from sepvit_deploy.contract import classify_name, segment_name
from sepvit_deploy.errors import InputError, SepvitError
from sepvit_deploy.masks import Colour, palette
from sepvit_deploy.server import catalogue, pictures, protocol, segments
from sepvit_deploy.server.batcher import Batcher, Result
from sepvit_deploy.server.bodies import Bodies
from sepvit_deploy.server.lane import Lane
from sepvit_deploy.server.metrics import Metrics
from sepvit_deploy.server.protocol import Signature
from sepvit_deploy.server.refusal import Refusal, malformed
from sepvit_deploy.server.settings import Settings
from sepvit_deploy.server.values import Values
from sepvit_deploy.uploads import CLASSIFY, SEGMENT, mask_type, parse_top

if TYPE_CHECKING:
    from starlette.requests import Request

    from sepvit_deploy.runners.base import Array

DEADLINE = "x-deadline-ms"
FAILURES = 3
"""Runs that fail one after the other until the server calls itself dead: a GPU that failed once often stays so."""


@dataclass
class Service:
    """One served model and everything that its requests share.

    Attributes:
        labels: names of the classes.
        ending: no new work is wanted; what comes is still answered.
        colours: of the classes of a segmentation model.
    """

    settings: Settings
    labels: list[str] | None
    lane: Lane
    workers: pictures.Workers
    log: Callable[[str], None]
    ending: bool = False
    batcher: Batcher = field(init=False)
    bodies: Bodies = field(init=False)
    metrics: Metrics = field(init=False)
    signatures: dict[str, Signature] = field(init=False)
    colours: Sequence[Colour] = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self._describe()
        self.metrics = Metrics(
            tuple(self.signatures),
            self.lane.max_batch,
            waiting=lambda: self.batcher.waiting,
            version=lambda: self.lane.version,
            sha256=lambda: self.lane.model.sha256,
        )
        self.batcher = Batcher(
            self.lane,
            delay_s=settings.queue_delay_ms / 1000,
            max_queue=settings.max_queue,
            batched=self._batched,
            failed=self._failed,
        )
        # At least what one request may take: its body, what that is decompressed to, and what its JSON becomes.
        json_bytes = min(settings.max_body, max(map(protocol.json_limit, self.signatures.values())))
        least = 2 * settings.max_body + protocol.JSON_COST * json_bytes + self._output_bytes(self.lane.max_batch)
        self.bodies = Bodies(settings.max_body, max(int(settings.held_mb * 1e6), least), settings.body_s)

    @property
    def alive(self) -> bool:
        """False where the model fails again and again."""
        return self.lane.failures < FAILURES

    @property
    def ready(self) -> bool:
        """Whether new work should be sent here."""
        return self.alive and not self.ending

    @property
    def max_pixels(self) -> int:
        """Of a picture."""
        return int(self.settings.max_megapixels * 1e6)

    def replace(self, lane: Lane) -> Lane:
        """Serve another model from the next batch on; gives back the one before."""
        before, self.lane = self.lane, lane
        self.batcher.lane = lane
        self._describe()
        self.metrics.forget(before.version)
        return before

    def _describe(self) -> None:
        model = self.lane.model
        self.signatures = catalogue.signatures(self.settings.name, self.lane)
        self.colours = model.palette or (palette(model.spec.num_classes) if model.spec.task == "segment" else ())

    @property
    def names(self) -> Sequence[str] | None:
        """Of the classes of a segmentation model: those that were given, or else the file's own."""
        return self.labels or self.lane.model.classes

    def signature(self, name: str, version: str | None = None) -> Signature:
        """The model of that name.

        Raises:
            Refusal: 404: there is none, or not in that version.
        """
        found = self.signatures.get(name)
        if found is None:
            raise Refusal(404, f"there is no model {name!r:.120}, expected {' or '.join(self.signatures)}")
        if version is not None and version != str(self.lane.version):
            raise Refusal(404, f"{name} has no version {version!r:.40}; version {self.lane.version} serves")
        return found

    async def infer(self, request: Request) -> tuple[bytes, int | None]:
        """A v2 inference request; gives what `protocol.answer` does."""
        arrived = time.perf_counter()
        name, version = request.path_params["model"], request.path_params.get("version")
        signature = self.signature(name, version)
        length = protocol.header_length(request.headers.get("inference-header-content-length"))
        self.batcher.require_room(1, self._deadline(request, arrived))  # before the body, which may be large
        async with self._body(request, arrived) as body:
            deadline = self._deadline(request, arrived)
            with self.bodies.holding(protocol.JSON_COST * min(length if length is not None else len(body), len(body))):
                asked = await self.workers.do(lambda: protocol.parse(body, length, signature), deadline)
            if asked.timeout_us is not None:
                deadline = min(deadline, time.perf_counter() + asked.timeout_us / 1e6)
            with self.bodies.holding(self._output_bytes(asked.shape[0])):
                with self.batcher.place(asked.shape[0], deadline) as place:
                    prepared: pictures.Prepared
                    if isinstance(asked.values, list):
                        prepared = await self.workers.do(lambda: self._decoded(asked.values), deadline)
                    else:
                        prepared = pictures.Prepared(asked.values, ())
                    # The version that was asked for: meanwhile another may serve.
                    result = await self.batcher.run(place, prepared.images, request.receive, version and int(version))
                if signature.input.datatype != "BYTES":
                    tensors = await self.workers.do(lambda: _finite(result.outputs), deadline)
                elif name == segment_name(self.settings.name):
                    tensors = await self.workers.do(
                        lambda: segments.tensors(result.outputs, prepared, self.colours, deadline), deadline
                    )
                else:
                    top = signature.outputs[0].shape[1]
                    tensors = pictures.tensors(result.outputs["logits"], top or 1, self.labels)
                answer = await self.workers.do(
                    lambda: protocol.answer(name, str(result.version), asked, tensors, signature), deadline
                )
        self._answered(name, asked.shape[0], result, arrived)
        return answer

    async def classify(self, request: Request) -> dict[str, Any]:
        """A picture's classes."""
        arrived = time.perf_counter()
        try:
            top = parse_top(request.query_params.get("top"))
        except InputError as error:
            raise malformed(str(error)) from None
        name = self._offering("classify")
        self.batcher.require_room(1, self._deadline(request, arrived))
        async with self._body(request, arrived) as body:
            deadline = self._deadline(request, arrived)
            content = await pictures.uploaded(body, request)
            with self.batcher.place(1, deadline) as place:
                prepared = await self.workers.do(lambda: self._prepared(content), deadline)
                result = await self.batcher.run(place, prepared.images, request.receive)
        classes = pictures.classes(result.outputs["logits"], top, self.labels)
        self._answered(name, 1, result, arrived)
        return {"classes": classes} | self._about(result, arrived)

    async def segment(self, request: Request) -> tuple[bytes, str]:
        """A picture's mask, and its media type."""
        arrived = time.perf_counter()
        try:
            kind = mask_type(",".join(request.headers.getlist("accept")).strip(", \t") or None)
        except InputError as error:
            raise Refusal(406, str(error)) from None
        name = self._offering("segment")
        self.batcher.require_room(1, self._deadline(request, arrived))
        async with self._body(request, arrived) as body:
            deadline = self._deadline(request, arrived)
            content = await pictures.uploaded(body, request)
            # What the model gives waits for a worker, and a few hundred of those would fill the memory.
            with self.bodies.holding(self._output_bytes(1)):
                with self.batcher.place(1, deadline) as place:
                    prepared = await self.workers.do(lambda: self._prepared(content), deadline)
                    result = await self.batcher.run(place, prepared.images, request.receive)

                found, about = result.outputs, partial(self._about, result, arrived)
                answer = await self.workers.do(
                    lambda: segments.answer(kind, found, prepared, self.names, self.colours, about, deadline), deadline
                )
        self._answered(name, 1, result, arrived)
        return answer, kind

    def _offering(self, what: Literal["classify", "segment"]) -> str:
        """The model that takes pictures for this.

        Raises:
            Refusal: 404, the file that serves is for something else.
        """
        own = self.settings.name
        name = {"classify": classify_name, "segment": segment_name}[what](own)
        if name in self.signatures:
            return name
        gives = {
            "classify": f"classes: send the picture to {CLASSIFY}",
            "segment": f"masks: send the picture to {SEGMENT}",
            "dense": f"feature maps, no {'classes' if what == 'classify' else 'masks'}: it answers v2 requests alone",
        }
        raise Refusal(404, f"{own} gives {gives[self.lane.model.spec.task]}")

    def _about(self, result: Result, arrived: float) -> dict[str, Any]:
        """What an answer of the two says besides."""
        return {
            "model": self.settings.name,
            "version": str(result.version),
            "batch": result.batch,
            "timings": {
                "queue_ms": round(result.queue_s * 1000, 3),
                "compute_ms": round(result.compute_s * 1000, 3),
                "total_ms": round((time.perf_counter() - arrived) * 1000, 3),
            },
        }

    def _output_bytes(self, images: int) -> int:
        """What the outputs of so many images take, and what their answer does."""
        return 2 * images * self.lane.output_bytes

    @contextlib.asynccontextmanager
    async def _body(self, request: Request, arrived: float) -> AsyncIterator[bytes]:
        """A request's body without its Content-Encoding; both count as held until the context ends."""
        encoding = request.headers.get("content-encoding")
        async with self.bodies.read(request) as sent:
            if encoding is None:
                yield sent
                return
            deadline = self._deadline(request, arrived)
            body = await self.workers.do(lambda: self.bodies.decoded(sent, encoding), deadline)
            with self.bodies.holding(len(body) if body is not sent else 0):
                yield body

    def _prepared(self, content: bytes) -> pictures.Prepared:
        return pictures.prepared(content, self.lane.model.preprocessing, max_pixels=self.max_pixels)

    def _decoded(self, values: Values) -> pictures.Prepared:
        assert isinstance(values, list)
        return pictures.batch(values, self.lane.model.preprocessing, max_pixels=self.max_pixels)

    def _deadline(self, request: Request, arrived: float) -> float:
        """Counted from the head; a body that comes slowly, which is no fault of the queue's, leaves half of it."""
        most_ms = self.settings.deadline_ms
        text = request.headers.get(DEADLINE)
        if text is not None:
            if not text.isascii() or not text.isdigit() or len(text) > 9 or not int(text):
                raise malformed(f"X-Deadline-Ms is {text!r:.40}, expected milliseconds as an integer")
            most_ms = min(most_ms, int(text))
        return max(arrived + most_ms / 1000, time.perf_counter() + most_ms / 2000)

    def _batched(self, version: int, images: int, seconds: float) -> None:
        self.metrics.batched(self.settings.name, version, images, seconds)

    def _failed(self, error: SepvitError) -> None:
        self.log(f"the model failed: {error}")

    def _answered(self, name: str, images: int, result: Result, arrived: float) -> None:
        total_s = time.perf_counter() - arrived
        self.metrics.queue_s.observe(result.queue_s)
        self.metrics.total_s.observe(total_s)
        # As in Triton, a request to the classify model counts for the model within it, too.
        for counted in {name, self.settings.name}:
            counts = self.metrics.of(counted, result.version)
            counts.success += 1
            if counted != self.settings.name:  # whose batches are counted when they are run
                counts.images += images
                counts.executions += 1
            counts.request_ns += int(total_s * 1e9)
            counts.queue_ns += int(result.queue_s * 1e9)
            counts.infer_ns += int(result.compute_s * 1e9)
            counts.last_ms = time.time_ns() // 1_000_000


def _finite(outputs: dict[str, Array]) -> dict[str, Values]:
    import numpy as np

    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise malformed("the model gives no finite numbers for this input")
    return dict(outputs)
