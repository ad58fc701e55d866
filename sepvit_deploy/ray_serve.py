"""A classifier as a deployment of Ray Serve: pictures over HTTP, answered in batches by as many replicas as there are.

    POST /v1/classify        a picture as the body; ?top=K for another number of classes
    GET  /v2/health/ready    200, once the model is loaded; /v2/health/live likewise
    GET  /-/healthz          Ray's own, of the node: for the probes of a load balancer

The first two wait in a replica's queue as pictures do: under overload they are answered 503, and a probe of them would
take the busy nodes out of service. Ray answers /-/healthz before any queue.

    400  no picture, a damaged one, or an unusable top
    404  405  no such address; another method
    413  a body, or a picture, beyond its limit
    415  a type or an encoding that is not taken
    500  the model failed
    408  503  no answer in time; more requests wait than may (Ray's own answers, whose bodies are no JSON)

B batch, H x W the model's input, C classes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sepvit_deploy import uploads
from sepvit_deploy.classes import ranked
from sepvit_deploy.contract import require_name
from sepvit_deploy.errors import DeviceError, ImageError, InputError, OptionError, SepvitError
from sepvit_deploy.images import decode_image, preprocess
from sepvit_deploy.optional import require
from sepvit_deploy.records import plain, record
from sepvit_deploy.runners.batches import InBatches
from sepvit_deploy.spec import MAX_BATCH
from sepvit_deploy.uploads import CLASSIFY

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from sepvit_deploy.runners.base import Array, Runner
    from sepvit_deploy.spec import Preprocessing

HEALTH = ("/v2/health/live", "/v2/health/ready")
METHODS = {CLASSIFY: "POST"} | dict.fromkeys(HEALTH, "GET")


@dataclass(frozen=True)
class Serving:
    """What a replica is told: the ``args`` of an application in Ray Serve's configuration.

    Attributes:
        model: file that lies at this path on every node, and ``sha256`` its digest, so that it is the same one there.
        labels: file of the classes' names; None for their numbers.
        max_batch: images that are computed at once.
        batch_wait_ms: the longest that an image waits for others.
        threads: of ONNX Runtime on a CPU; None for its own choice.

    Raises:
        OptionError: a value is unusable.
    """

    model: Path
    sha256: str
    name: str
    labels: Path | None
    max_batch: int
    batch_wait_ms: float
    provider: Literal["cpu", "cuda"]
    threads: int | None
    max_body_mb: float
    max_megapixels: float

    def __post_init__(self) -> None:
        require_name(self.name)
        for option, value, most in (
            ("--max-batch", self.max_batch, MAX_BATCH),
            ("--max-body-mb", self.max_body_mb, 2000),
            ("--max-megapixels", self.max_megapixels, 100),
        ):
            if not 1 <= value <= most:
                raise OptionError(f"{option} {value}", expected=f"1 to {most}")
        if not 0 <= self.batch_wait_ms <= 10_000:
            raise OptionError(f"--batch-wait-ms {self.batch_wait_ms}", expected="0 to 10000")

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that YAML can hold."""
        return plain(self)

    @classmethod
    def from_dict(cls, values: object) -> Serving:
        """The inverse of `to_dict`; ValueError or TypeError on anything else."""
        return record(cls, values)


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run, and what stands before and behind it."""

    runner: Runner
    preprocessing: Preprocessing
    labels: list[str] | None


Load = Callable[[Serving], AbstractContextManager[Loaded]]


class _Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Classifier:
    """One replica: it opens the model once, and runs it in one thread, which is the one that the device knows.

    Nothing is given back at the end: a replica is a process, and ends as one.
    """

    def __init__(self, serving: Serving, load: Load) -> None:
        serve = require("ray.serve", extra="ray")
        self._serving = serving
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._held = contextlib.ExitStack()
        self._model = self._device.submit(self._held.enter_context, load(serving)).result()
        self._runner = InBatches(self._model.runner)
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._lost: DeviceError | None = None

        @serve.batch(max_batch_size=serving.max_batch, batch_wait_timeout_s=serving.batch_wait_ms / 1000)  # type: ignore[untyped-decorator]
        async def logits_of(images: list[Array]) -> list[tuple[Array, int]]:
            logits = await asyncio.get_running_loop().run_in_executor(self._device, self._run, images)
            return [(row, len(images)) for row in logits]

        self._logits_of = logits_of

    def check_health(self) -> None:
        """Tell Ray to replace this replica once its device has failed: it does not come back.

        Raises:
            DeviceError: it has.
        """
        if self._lost is not None:
            raise self._lost

    async def __call__(self, request: Request) -> Response:
        """Answer a request; what goes wrong is a status and a line of text."""
        from starlette.responses import JSONResponse

        path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
        method = METHODS.get(path)
        try:
            if method is None:
                raise _Refusal(404, f"there is no {path!r:.80}, expected {', '.join(METHODS)}")
            if request.method != method:
                refusal = {"error": f"{path} takes {method}"}
                return JSONResponse(refusal, 405, headers={"Allow": method})
            return JSONResponse(await self._classify(request) if path == CLASSIFY else {"model": self._serving.name})
        except _Refusal as refused:
            return JSONResponse({"error": str(refused)}, refused.status)
        except SepvitError as error:
            return JSONResponse({"error": str(error)}, 500)

    async def _classify(self, request: Request) -> dict[str, Any]:
        try:
            top = uploads.parse_top(request.query_params.get("top"))
        except InputError as error:
            raise _Refusal(400, str(error)) from None
        kind = uploads.media_type(request.headers.get("content-type"))
        if not uploads.is_taken(kind):
            raise _Refusal(415, f"Content-Type {kind!r:.60} is not taken, expected a picture's")
        encoding = request.headers.get("content-encoding")
        if not uploads.is_plain(encoding):
            raise _Refusal(415, f"Content-Encoding {encoding!r:.60} is not taken, expected none")
        image = await asyncio.to_thread(self._image, await self._body(request))
        logits, batch = await self._logits_of(image)
        classes, scores = ranked(logits[None], top)
        rows = uploads.rows(classes, scores, self._model.labels)
        return {"model": self._serving.name, "classes": rows, "batch": batch, "replica": self._replica}

    async def _body(self, request: Request) -> bytes:
        most = int(self._serving.max_body_mb * 1_000_000)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise _Refusal(413, f"the body is larger than {self._serving.max_body_mb:g} MB")
        return bytes(body)

    def _image(self, content: bytes) -> Array:
        """A picture as an input (3, H, W)."""
        most = int(self._serving.max_megapixels * 1_000_000)
        try:
            return preprocess(decode_image(content, max_pixels=most), self._model.preprocessing, max_pixels=most)
        except ImageError as error:
            raise _Refusal(uploads.refusal_status(error), str(error)) from None

    def _run(self, images: list[Array]) -> Array:
        """Inputs (3, H, W) to logits (B, C), in the device's thread."""
        import numpy as np

        try:
            outputs = self._runner.run(np.stack(images))
        except DeviceError as error:
            self._lost = error
            raise
        if "logits" not in outputs:
            raise InputError(f"{self._model.runner.name} gives {', '.join(outputs)}", expected="logits")
        return outputs["logits"]


def application(serving: Serving, load: Load) -> Any:
    """The application that Ray Serve runs; how many replicas of it is for the configuration to say.

    Args:
        load: opens the model, in each replica.
    """
    return require("ray.serve", extra="ray").deployment(Classifier).bind(serving, load)
