"""A v2 server that answers at once, and wrongly where it is told to: what a load must notice.

A model ``NAME`` takes images (B, 3, side, side) and gives logits: the mean of each channel, times what tells images
apart. ``NAME_classify`` takes encoded pictures and gives classes by their length.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

HEADER_LENGTH = "Inference-Header-Content-Length"
SIDE = 8


@dataclass
class Fake:
    """What the server is to do, changed while it runs.

    Attributes:
        faults: of the requests after ``after``, what each n-th one meets: ``wrong``, ``nan``, ``shape``, ``reset``,
            ``cut``, ``503``, ``504``, ``500``, ``garbage``, ``hang``.
        delay_s: before each answer; stall: from which request on nothing is answered, once, for so many seconds.
        no_index, nameless: what it does not have; same: every image has the same answer.
        url, count, images, timeouts: set by the server: where it is, and what it was asked.
    """

    models: tuple[str, ...] = ("tiny",)
    faults: dict[str, int] = field(default_factory=dict)
    after: int = 100
    delay_s: float = 0.0
    stall: tuple[int, float] | None = None
    no_index: bool = False
    nameless: bool = False
    same: bool = False
    url: str = ""
    count: int = 0
    images: int = 0
    timeouts: set[int] = field(default_factory=set)
    stalled: asyncio.Event | None = None

    def fault(self, k: int) -> str | None:
        if k < self.after:
            return None
        return next((name for name, every in self.faults.items() if k % every == 0), None)


def _routes(fake: Fake) -> list[Route]:
    def metadata(name: str) -> dict[str, Any]:
        if name.endswith("_classify"):
            inputs = [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
        else:
            inputs = [{"name": "images", "datatype": "FP32", "shape": [-1, 3, SIDE, SIDE]}]
        return {"name": name, "versions": ["1"], "platform": "fake", "inputs": inputs, "outputs": []}

    async def server(request: Request) -> Response:
        return JSONResponse({} if fake.nameless else {"name": "fake", "version": "1", "extensions": []})

    async def index(request: Request) -> Response:
        if fake.no_index:
            return JSONResponse({"error": "no such thing"}, 404)
        return JSONResponse([{"name": name, "version": "1", "state": "READY"} for name in fake.models])

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in fake.models:
            return JSONResponse({"error": f"unknown model {name}"}, 404)
        return JSONResponse(metadata(name))

    async def stats(request: Request) -> Response:
        row = {"name": "tiny", "version": "1", "inference_count": fake.images, "execution_count": fake.count}
        return JSONResponse({"model_stats": [row]})

    async def infer(request: Request) -> Response:
        body = await request.body()
        length = int(request.headers[HEADER_LENGTH])
        asked = json.loads(body[:length])
        if timeout := asked.get("parameters", {}).get("timeout"):
            fake.timeouts.add(timeout)
        k, fake.count = fake.count, fake.count + 1
        shape = asked["inputs"][0]["shape"]
        fake.images += shape[0]
        if fake.stall is not None and k >= fake.stall[0]:
            if fake.stalled is None:
                fake.stalled = asyncio.Event()
                asyncio.get_running_loop().call_later(fake.stall[1], fake.stalled.set)
            await fake.stalled.wait()
        if fake.delay_s:
            await asyncio.sleep(fake.delay_s)
        fault = fake.fault(k)
        if fault in ("503", "504", "500"):
            return JSONResponse({"error": f"told to answer {fault}"}, int(fault))
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "reset":
            raise ConnectionResetError("told to")
        if fault == "garbage":
            return Response(b"\x00\x01 no json", headers={HEADER_LENGTH: "4"})
        outputs = _classes(body[length:], shape[0]) if asked["inputs"][0]["datatype"] == "BYTES" else None
        if outputs is None:
            images = np.frombuffer(body[length:], np.float32).reshape(shape)
            logits = images.mean(axis=(2, 3)) * 10  # (B, 3)
            if fake.same:
                logits = logits * 0 + 1
            if fault == "wrong":
                logits = logits + np.float32(5)
            if fault == "nan":
                logits = logits * np.float32("nan")
            if fault == "shape":
                logits = logits[:, :2]
            outputs = {"logits": logits.astype(np.float32)}
        elif fault == "wrong":
            outputs["class"] = outputs["class"][:, ::-1]
        return _answer(outputs, cut=fault == "cut")

    return [
        Route("/v2", server),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/models/{name}", model),
        Route("/v2/models/{name}/stats", stats),
        Route("/v2/models/{name}/infer", infer, methods=["POST"]),
    ]


def _classes(content: bytes, images: int) -> dict[str, Any]:
    """The classes of pictures (B, 1), each of them its length and then its bytes: by the length alone."""
    rows = []
    while content:
        size = int.from_bytes(content[:4], "little")
        rows.append(size % 97)
        content = content[4 + size :]
    classes = np.array([[k, k + 100] for k in rows], np.int64)
    assert len(classes) == images
    labels = np.array([[f"label {k}".encode() for k in row] for row in classes], np.object_)
    return {"class": classes, "label": labels, "score": np.tile(np.float32([0.75, 0.25]), (images, 1))}


def _answer(outputs: dict[str, Any], *, cut: bool = False) -> Response:
    described, content = [], b""
    for name, values in outputs.items():
        if values.dtype == np.object_:
            raw = b"".join(len(item).to_bytes(4, "little") + item for item in values.ravel())
            datatype = "BYTES"
        else:
            raw, datatype = values.tobytes(), {"f": "FP32", "i": "INT64"}[values.dtype.kind]
        parameters = {"binary_data_size": len(raw)}
        described.append({"name": name, "datatype": datatype, "shape": list(values.shape), "parameters": parameters})
        content += raw
    header = json.dumps({"model_name": "tiny", "model_version": "1", "outputs": described}).encode()
    whole = header + content
    if cut:
        return Response(whole[:-1], headers={HEADER_LENGTH: str(len(header)), "Content-Length": str(len(whole))})
    return Response(whole, headers={HEADER_LENGTH: str(len(header))})


@contextlib.contextmanager
def fake_v2(fake: Fake | None = None) -> Iterator[Fake]:
    """A server in a thread of this process, at ``fake.url`` until the context ends."""
    fake = fake or Fake()
    # Of protocol TCP by name: only then does asyncio turn Nagle's algorithm off, which would cost 40 ms an answer.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    started = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        started.set()
        yield

    app = Starlette(routes=_routes(fake), lifespan=lifespan)
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    assert started.wait(10)
    fake.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


if __name__ == "__main__":  # in a process of its own, where the speed of the two sides matters
    import time

    with fake_v2() as running:
        print(running.url, flush=True)
        time.sleep(3600)
