"""Ray Serve, started from the configuration that the command writes: answers, batches, replicas and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sepvit_deploy import artifact
from sepvit_deploy.artifact import Parent, Passport, write_with_passport
from sepvit_deploy.contract import RAY_PROBE
from sepvit_deploy.errors import DeviceError, OptionError, PassportError
from sepvit_deploy.pipeline import ray_serving
from sepvit_deploy.predict import predict
from sepvit_deploy.ray_serve import Classifier, Loaded, Serving
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.spec import ModelSpec
from tests.cpu.commands import CLASSIFIER, call, environment, graph_file
from tests.cpu.serving import segmenter

# `serve run` itself, over a cluster that is small and stays on this machine.
START = """
import sys
import ray
from ray.serve.scripts import cli

config, folder = sys.argv[1:]
small = {"num_cpus": 2, "object_store_memory": 80_000_000, "include_dashboard": False}
ray.init("local", _node_ip_address="127.0.0.2", _temp_dir=folder, **small)
cli(["run", config], standalone_mode=False)
"""
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
SPEC = ModelSpec("t", "classify", (224, 224), 5)
LABELS = ["tench", "shark", "ray", "hen", "jay"]
LIMIT_S = 90
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 40), (10, 10, 10), (250, 250, 250)]


def model(folder: Path) -> Path:
    """A classifier that tells colours apart, with a passport."""
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    path = graph_file(
        folder / "tiny.onnx", CLASSIFIER, axes=np.array([2, 3], np.int64), weight=weight, bias=np.zeros(5, np.float32)
    )
    facts = {"precision": "fp32", "batch": "dynamic"}
    passport = Passport("export", (Parent("weights", "random", seed=0),), SPEC.to_dict(), facts)
    write_with_passport(path, path.read_bytes(), passport)
    return path


def picture(colour: tuple[int, int, int], side: int = 256, width: int | None = None, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width or side, side), colour).save(content, kind)
    return content.getvalue()


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: dict[str, str]

    @property
    def document(self) -> dict[str, Any]:
        document = json.loads(self.text)
        assert isinstance(document, dict)
        return document


@dataclass(frozen=True)
class Server:
    port: int
    folder: Path

    def ask(
        self, body: bytes = b"", path: str = "/v1/classify", method: str = "POST", kind: str = "image/png", **more: str
    ) -> Answer:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body=body, headers={"Content-Type": kind} | more)
            return read(connection)

    def ask_at_once(self, bodies: list[bytes]) -> list[Answer]:
        """Send every request before any answer is read."""
        with contextlib.ExitStack() as stack:
            connections = []
            for body in bodies:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                connections.append(stack.enter_context(contextlib.closing(connection)))
                connection.request("POST", "/v1/classify", body=body)
            return [read(connection) for connection in connections]


def read(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    return Answer(response.status, response.read().decode(), {k.lower(): v for k, v in response.getheaders()})


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path
    (folder / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    port = free_port()
    command = ("manifests", model(folder), "--for", "ray", "--output", folder / "out", "--name", "colours")
    options = ("--port", str(port), "--labels", folder / "labels.txt", "--min-replicas", "2", "--max-batch", "4")
    limits = ("--batch-wait-ms", "100", "--max-ongoing", "4", "--max-queued", "8", "--max-body-mb", "1")
    done = call(*command, *options, *limits, "--max-megapixels", "1")
    assert done.code == 0, done
    assert f"probes: GET http://127.0.0.1:{port}/-/healthz" in done.out
    short = tempfile.mkdtemp(prefix="ray-")  # sockets lie in it, whose addresses have 107 characters at most
    log = folder / "log.txt"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(folder / "out" / "serve_config.yaml"), short],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(**QUIET),
            start_new_session=True,
        )
    try:
        served = Server(port, folder)
        await_ready(served, child, log)
        yield served
    finally:
        child.send_signal(signal.SIGINT)  # as Ctrl-C ends `serve run`
        try:
            child.wait(12)  # what is left of it then is killed
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(10)
        shutil.rmtree(short, ignore_errors=True)


def await_ready(server: Server, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        assert child.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        try:
            if server.ask(path="/v2/health/ready", method="GET").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(log.read_text(encoding="utf-8", errors="replace")[-3000:])


def test_ray_serves_as_the_configuration_says(server: Server) -> None:
    """One test, for a cluster takes most of its time to start, and tests may be dealt to several processes."""
    pictures_get_the_classes_of_our_own_runner(server)
    clients_at_once_are_answered_in_batches_by_both_replicas(server)
    what_is_asked_wrongly_is_refused_with_a_reason(server)
    more_than_may_wait_are_sent_away(server)


def pictures_get_the_classes_of_our_own_runner(server: Server) -> None:
    for k, colour in enumerate(COLOURS):
        (server.folder / f"{k}.png").write_bytes(picture(colour))
    paths = sorted(server.folder.glob("*.png"))
    expected = predict(OnnxRuntimeRunner(server.folder / "tiny.onnx"), SPEC.preprocessing, paths, labels=LABELS)
    for path, prediction in zip(paths, expected, strict=True):
        answer = server.ask(path.read_bytes()).document
        assert answer["model"] == "colours"
        rows = [(row["class"], row["label"]) for row in answer["classes"]]
        assert rows == [(k, label) for k, label, _ in prediction.classes]
        scores = [row["score"] for row in answer["classes"]]
        assert scores == pytest.approx([score for _, _, score in prediction.classes], rel=1e-5)
    assert len({prediction.classes[0][0] for prediction in expected}) > 1


def clients_at_once_are_answered_in_batches_by_both_replicas(server: Server) -> None:
    bodies = [picture(colour) for colour in COLOURS]
    alone = [server.ask(body).document["classes"] for body in bodies]
    batches, replicas = set(), set()
    for _ in range(8):
        answers = [answer.document for answer in server.ask_at_once(bodies)]
        for answer, classes in zip(answers, alone, strict=True):
            assert [row["class"] for row in answer["classes"]] == [row["class"] for row in classes]
        batches |= {answer["batch"] for answer in answers}
        replicas |= {answer["replica"] for answer in answers}
    assert max(batches) in (2, 3, 4)
    assert len(replicas) == 2


def what_is_asked_wrongly_is_refused_with_a_reason(server: Server) -> None:
    whole = picture(COLOURS[0])
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    large = io.BytesIO()
    Image.fromarray(noise).save(large, "PNG")
    refused = [
        (server.ask(b""), 400, "is empty"),
        (server.ask(b"no picture at all"), 400, "is not a picture"),
        (server.ask(whole[: len(whole) // 2]), 400, "cannot be read"),
        (server.ask(picture(COLOURS[0], side=1200)), 413, "at most 1 megapixels"),
        (server.ask(large.getvalue()), 413, "the body is larger than 1 MB"),
        (server.ask(picture(COLOURS[0], side=1, width=1500)), 413, "256x384000 pixels; expected at most 1 megapixels"),
        (server.ask(whole, kind="application/json"), 415, "is not taken"),
        (server.ask(gzip.compress(whole), **{"Content-Encoding": "gzip"}), 415, "Content-Encoding 'gzip' is not taken"),
        (server.ask(whole, path="/v1/classify?top=none"), 400, "top is 'none'"),
        (server.ask(whole, path="/v1/classify?top=0"), 400, "expected 1 to 1000"),
        (server.ask(whole, path="/v1/other"), 404, "there is no '/v1/other'"),
        (server.ask(method="GET"), 405, "takes POST"),
    ]
    for answer, status, words in refused:
        assert answer.status == status, answer
        assert words in answer.document["error"]
    assert server.ask(method="GET").headers["allow"] == "POST"
    assert len(server.ask(whole, path="/v1/classify?top=2").document["classes"]) == 2
    assert server.ask(path="/v2/health/live", method="GET").document == {"model": "colours"}
    assert server.ask(path=RAY_PROBE, method="GET").status == 200


def more_than_may_wait_are_sent_away(server: Server) -> None:
    answers = server.ask_at_once([picture(COLOURS[k % len(COLOURS)]) for k in range(80)])
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 8
    assert server.ask(picture(COLOURS[0])).status == 200


class Failing:
    """A runner whose device is lost at a bright picture, and that gives no numbers at any other."""

    name = "failing"
    input_shape = (None, 3, 224, 224)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if images.mean() > 1:
            raise DeviceError("the device is lost")
        return {"logits": np.full((len(images), 5), np.nan, np.float32)}


def one_by_one(**settings: Any) -> Callable[..., Any]:
    """Ray's batching without Ray."""

    def decorate(function: Callable[[list[Any]], Awaitable[list[Any]]]) -> Callable[[Any], Awaitable[Any]]:
        async def of_one(item: Any) -> Any:
            return (await function([item]))[0]

        return of_one

    return decorate


def test_a_replica_whose_device_is_lost_says_that_it_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve
    from starlette.requests import Request

    @contextlib.contextmanager
    def load(serving: Serving) -> Iterator[Loaded]:
        yield Loaded(Failing(), SPEC.preprocessing, None)

    def request(colour: tuple[int, int, int]) -> Request:
        scope = {"type": "http", "method": "POST", "path": "/v1/classify", "query_string": b"", "headers": []}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": picture(colour), "more_body": False}

        return Request(scope, receive)

    async def answers() -> None:
        dark, bright = await classifier(request((0, 0, 0))), await classifier(request((255, 255, 255)))
        assert (dark.status_code, bright.status_code) == (500, 500)
        assert "not finite" in json.loads(dark.body)["error"]
        assert json.loads(bright.body)["error"] == "the device is lost"

    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(serve, "batch", one_by_one)
    classifier = Classifier(Serving(Path("m"), "ab", "m", None, 4, 1.0, "cpu", None, 1.0, 1.0), load)
    classifier.check_health()
    asyncio.run(answers())
    with pytest.raises(DeviceError, match="the device is lost"):
        classifier.check_health()


def test_a_replica_takes_the_file_of_the_configuration_and_no_other(tmp_path: Path) -> None:
    path = model(tmp_path)
    serving = Serving(path, artifact.sha256(path), "m", None, 4, 1.0, "cpu", 1, 1.0, 1.0)
    with ray_serving.loaded(serving) as found:
        assert found.runner.run(np.zeros((2, 3, 224, 224), np.float32))["logits"].shape == (2, 5)
    wrong = replace(serving, sha256="cd" * 32)
    with pytest.raises(PassportError, match=r"tiny\.onnx on this node is another file"), ray_serving.loaded(wrong):
        pass
    masks = segmenter(tmp_path / "masks.onnx")
    other = replace(serving, model=masks, sha256=artifact.sha256(masks))
    with pytest.raises(OptionError, match=r"masks\.onnx is for the task segment"), ray_serving.loaded(other):
        pass


def test_arguments_that_are_none_of_a_configuration(tmp_path: Path) -> None:
    known = Serving(tmp_path / "m.onnx", "ab", "m", None, 4, 1.0, "cpu", 1, 1.0, 1.0).to_dict()
    assert Serving.from_dict(known).to_dict() == known
    for wrong in (known | {"max_bach": 4}, known | {"max_batch": "4"}, known | {"provider": "tpu"}, {}):
        with pytest.raises(OptionError, match=r"^the application's args: .*type: sepvit-deploy manifests --for ray"):
            ray_serving.app(wrong)
