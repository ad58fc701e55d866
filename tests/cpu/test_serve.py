"""The embedded server from outside: tritonclient, plain HTTP and raw sockets against `sepvit-deploy serve`."""

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
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tritonclient.utils import InferenceServerException

from sepvit_deploy.images import load_batch
from sepvit_deploy.pipeline import Running, open_model
from sepvit_deploy.spec import Preprocessing
from tests.cpu.commands import CLASSIFIER, PHOTO, call, classifier, complaint, spawn
from tests.cpu.serving import Answer, Served, program_with, served, small_model

LABELS = ("tench", "füchse", 'a "quoted" name', "<b>", "owl")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("served") / "small.onnx")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Served]:
    labels = model.with_name("labels.txt")
    labels.write_text("\n".join(LABELS), encoding="utf-8")
    limits = ("--max-batch", "4", "--max-queue", "64", "--max-body-mb", "4", "--queue-delay-ms", "5")
    with served(model, *limits, "--labels", str(labels)) as found:
        yield found
        assert found.stop() == 0
    assert len(found.said) == 3, found.said  # nothing that a client did is in the log
    assert "random weights" in found.said[0]
    assert f"curl --data-binary @photo.jpg {found.url}/v1/classify" in found.said[2]


@pytest.fixture(scope="module")
def patient(model: Path) -> Iterator[Served]:
    """One that waits half a second for a batch of four to fill: what a busy device looks like from outside."""
    with served(model, "--max-batch", "4", "--max-queue", "4", "--queue-delay-ms", "500") as found:
        yield found


@pytest.fixture(scope="module")
def strict(model: Path) -> Iterator[Served]:
    """One with little patience and little memory."""
    limits = program_with(head_s=0.4, body_s=0.4, keep_alive_s=0.5, held_mb=2)
    with served(model, "--max-body-mb", "1", program=limits) as found:
        yield found
        large = png(5000, 5000)
        with socket.create_connection(("127.0.0.1", found.port)) as raw:
            raw.sendall(
                b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(large) + large
            )
            time.sleep(0.1)
        assert found.stop() == 0  # while the picture is decoded, for nobody
    assert len(found.said) == 3, found.said


def tensor(images: np.ndarray, binary: bool = True) -> Any:
    found = tritonclient.http.InferInput("images", images.shape, "FP32")
    found.set_data_from_numpy(images, binary_data=binary)
    return found


def encoded(*pictures: bytes) -> Any:
    found = tritonclient.http.InferInput("image", [len(pictures), 1], "BYTES")
    found.set_data_from_numpy(np.array([[picture] for picture in pictures], dtype=np.object_))
    return found


def counts(server: Served, name: str = "small") -> tuple[int, int]:
    (found,) = server.get(f"/v2/models/{name}/stats").document["model_stats"]
    return found["inference_count"], found["execution_count"]


def infer_body(images: np.ndarray) -> tuple[bytes, dict[str, str]]:
    body, length = tritonclient.http.InferenceServerClient.generate_request_body([tensor(images)])
    return body, {"Inference-Header-Content-Length": str(length)}


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 199)).save(buffer, "PNG")
    return buffer.getvalue()


# What is answered


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_gets_what_the_runner_gives(
    server: Served, model: Path, binary: bool, compression: str | None
) -> None:
    images = RNG.normal(size=(1 + binary, 3, 224, 224)).astype(np.float32).round(3)
    with open_model(model).running(Running(threads=1)) as runner:
        expected = runner.run(images)["logits"]
    with tritonclient.http.InferenceServerClient(server.address) as client:
        how = {"request_id": "7", "request_compression_algorithm": compression}
        found = client.infer("small", [tensor(images, binary)], **how)
        assert np.abs(found.as_numpy("logits") - expected).max() < 1e-6
        assert found.get_response()["id"] == "7"
        asked = [tritonclient.http.InferRequestedOutput("logits", binary_data=False)]
        found = client.infer("small", [tensor(images, binary)], outputs=asked, model_version="1", timeout=5_000_000)
        assert np.abs(found.as_numpy("logits") - expected).max() < 1e-6


def test_the_exported_model_is_served_as_it_is_run(exported: Any) -> None:
    file = exported("--variant", "lite")
    images = load_batch([PHOTO] * 2, Preprocessing.for_task("classify", (224, 224)))
    with open_model(file).running(Running(threads=1)) as runner:
        expected = runner.run(images)["logits"]
    with served(file, "--name", "lite") as found, tritonclient.http.InferenceServerClient(found.address) as client:
        logits = client.infer("lite", [tensor(images)]).as_numpy("logits")
        assert np.array_equal(logits, expected)
        assert client.get_model_metadata("lite")["outputs"][0]["shape"] == [-1, 1000]


def test_what_tritonclient_asks_besides(server: Served, model: Path) -> None:
    with tritonclient.http.InferenceServerClient(server.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("small")
        assert client.is_model_ready("small_classify", "1")
        assert not client.is_model_ready("small", "2")
        assert client.get_server_metadata()["name"] == "sepvit-deploy"
        found = client.get_model_metadata("small", "1")
        assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]
        assert found["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 5]}]
        passport = json.loads(Path(f"{model}.json").read_text(encoding="utf-8"))
        assert found["parameters"]["sha256"] == passport["sha256"]
        outputs = client.get_model_metadata("small_classify")["outputs"]
        assert [(o["name"], o["datatype"], o["shape"]) for o in outputs] == [
            ("class", "INT64", [-1, 5]),
            ("label", "BYTES", [-1, 5]),
            ("score", "FP32", [-1, 5]),
        ]
        config = client.get_model_config("small")
        assert config["max_batch_size"] == 4
        assert config["input"] == [{"name": "images", "data_type": "TYPE_FP32", "dims": [3, 224, 224]}]
        assert [entry["name"] for entry in client.get_model_repository_index()] == ["small", "small_classify"]
        assert client.get_inference_statistics("small")["model_stats"][0]["name"] == "small"
        assert len(client.get_inference_statistics()["model_stats"]) == 2


def test_the_asynchronous_client_works_too(server: Served) -> None:
    async def scene() -> None:
        async with tritonclient.http.aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            found = await client.infer("small", [tensor(np.zeros((1, 3, 224, 224), np.float32))])
            assert found.as_numpy("logits").argmax() == 2

    asyncio.run(scene())


def test_pictures_become_classes_as_predict_says(server: Served, model: Path) -> None:
    (row,) = call("predict", model, PHOTO, "--json").document["predictions"]
    with tritonclient.http.InferenceServerClient(server.address) as client:
        found = client.infer("small_classify", [encoded(PHOTO.read_bytes(), png(30, 20))])
    assert found.as_numpy("class")[0].tolist() == [entry["class"] for entry in row["classes"]]
    assert found.as_numpy("score")[0] == pytest.approx([entry["probability"] for entry in row["classes"]])
    assert found.as_numpy("label")[1].tolist() == [LABELS[k].encode() for k in found.as_numpy("class")[1]]


def test_an_upload_is_a_body_or_a_form(server: Served) -> None:
    picture = PHOTO.read_bytes()
    found = server.post("/v1/classify?top=2", picture, {"Content-Type": "image/jpeg"}).document
    assert [entry["label"] for entry in found["classes"]] == [LABELS[2], LABELS[4]]
    assert (found["model"], found["version"], found["batch"]) == ("small", "1", 1)
    timings = found["timings"]
    assert 0 < timings["compute_ms"] < timings["total_ms"]
    assert timings["queue_ms"] + timings["compute_ms"] < timings["total_ms"]
    plain = server.post("/v1/classify", picture).document  # as curl --data-binary sends it
    packed = server.post("/v1/classify", gzip.compress(picture), {"Content-Encoding": "gzip"}).document
    assert packed["classes"] == plain["classes"]
    form = (
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="../../etc/passwd"\r\n\r\n'
        + picture
        + b"\r\n--x--\r\n"
    )
    sent = server.post("/v1/classify", form, {"Content-Type": "multipart/form-data; boundary=x"}).document
    assert plain["classes"] == sent["classes"]
    assert len(sent["classes"]) == 5


def test_requests_of_many_clients_are_batched_and_counted(patient: Served) -> None:
    before = counts(patient)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: patient.post("/v1/classify", png(8, 8)).document, range(4)))
    assert {answer["batch"] for answer in answers} == {4}
    after = counts(patient)
    assert (after[0] - before[0], after[1] - before[1]) == (4, 1)


def test_metrics_are_prometheus_text(server: Served) -> None:
    server.post("/v1/classify", b"no picture")
    found = server.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in found.body.decode().splitlines() if not line.startswith("#"))
    count, executions = counts(server)
    assert float(lines['nv_inference_count{model="small",version="1"}']) == count
    assert float(lines['nv_inference_exec_count{model="small",version="1"}']) == executions
    assert float(lines['sepvit_requests_total{code="400",model="small_classify"}']) >= 1
    assert float(lines["sepvit_batch_images_count"]) == executions
    assert float(lines["sepvit_queue_images"]) == 0
    assert float(lines['sepvit_reloads_total{result="refused"}']) == 0
    assert not any("_created" in line for line in lines)


def test_an_answer_goes_out_at_once(server: Served) -> None:
    """Where small packets wait for each other (no TCP_NODELAY), each answer on a kept connection takes 40 ms."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    took = []
    for _ in range(15):
        started = time.perf_counter()
        connection.request("GET", "/v2")
        connection.getresponse().read()
        took.append(time.perf_counter() - started)
    connection.close()
    assert min(took[1:]) < 0.03


# What is refused


HUGE = png(8000, 8000)
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\nGIF\r\n'


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("GET", "/nowhere", None, {}, 404, "nothing at this address"),
        ("GET", "/v2/", None, {}, 404, "nothing at this address"),
        ("GET", "/..%2f..%2fetc/passwd", None, {}, 404, "nothing at this address"),
        ("GET", "/v2/models/%0aFAKE", None, {}, 404, "there is no model '\\nFAKE', expected small or small_classify"),
        ("GET", "/v2/models/small/versions/7", None, {}, 404, "no version '7'; version 1 serves"),
        ("POST", "/v2/models/other/infer", b"{}", {}, 404, "there is no model 'other'"),
        ("GET", "/v1/classify", None, {}, 405, "GET is not answered here"),
        ("DELETE", "/v2/models/small", None, {}, 405, "DELETE is not answered here"),
        ("OPTIONS", "/v2/models/small/infer", None, {}, 405, "OPTIONS is not answered here"),
        ("POST", "/v2/models/small/infer", b"{", {}, 400, "no JSON"),
        ("POST", "/v2/models/small/infer", b"{}", {"Inference-Header-Content-Length": "x"}, 400, "number of bytes"),
        ("POST", "/v2/models/small/infer", b"{}", {"Content-Encoding": "br"}, 415, "'br' is not taken"),
        ("POST", "/v2/models/small/infer", bytes(4_000_001), {}, 413, "the body has more than 4 MB"),
        ("POST", "/v1/classify", b"", {}, 400, "the body is empty"),
        ("POST", "/v1/classify", b"GIF89a", {}, 400, "is not a picture"),
        ("POST", "/v1/classify", PHOTO.read_bytes()[:3000], {}, 400, "cannot be read"),
        ("POST", "/v1/classify", HUGE, {}, 413, "8000x8000 pixels; expected at most 32 megapixels"),
        ("POST", "/v1/classify", b"x", {"Content-Encoding": "br"}, 415, "'br' is not taken"),
        ("POST", "/v1/classify", b"no gzip", {"Content-Encoding": "gzip"}, 400, "the body is no gzip"),
        ("POST", "/v1/classify", b"x", {"Content-Type": "text/html"}, 415, "'text/html' is not taken"),
        ("POST", "/v1/classify?top=0", b"x", {}, 400, "top is '0'"),
        ("POST", "/v1/segment", b"x", {}, 404, "small gives classes: send the picture to /v1/classify"),
        ("POST", "/v1/classify", b"x", {"X-Deadline-Ms": "soon"}, 400, "X-Deadline-Ms is 'soon'"),
        ("POST", "/v1/classify", b"x", {"Content-Type": "multipart/form-data"}, 400, "boundary"),
        ("POST", "/v1/classify", b"nothing", FORM, 400, "the form"),
        ("POST", "/v1/classify", b"--x--\r\n", FORM, 400, "0 files, expected one picture"),
        ("POST", "/v1/classify", PART * 2 + b"--x--\r\n", FORM, 400, "2 files, expected one picture"),
        ("POST", "/v1/classify", PART * 20 + b"--x--\r\n", FORM, 400, "Too many files"),
        ("POST", "/v1/classify", b"x", {"Host": "evil.example"}, 403, "Host is 'evil.example'"),
        ("POST", "/v1/classify", b"x", {"Sec-Fetch-Site": "cross-site"}, 403, "another site"),
    ],
)
def test_each_kind_of_bad_request_has_one_answer(
    server: Served, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, words: str
) -> None:
    found = server.ask(method, path, body, headers)
    assert found.status == status, found
    assert words in found.document["error"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in found.headers


def test_bad_tensors_are_told_to_tritonclient(server: Served) -> None:
    with tritonclient.http.InferenceServerClient(server.address) as client:

        def refused(name: str, *inputs: Any) -> str:
            with pytest.raises(InferenceServerException) as caught:
                client.infer(name, list(inputs))
            assert caught.value.status() == "400"
            return str(caught.value.message())

        ones = np.ones((1, 3, 224, 224), np.float32)
        assert "at most 4" in refused("small", tensor(np.repeat(ones, 5, axis=0)))
        assert "not finite" in refused("small", tensor(np.where(ones > 0, np.nan, ones)))
        assert "expected [B,3,224,224]" in refused("small", tensor(ones[..., :10]))
        assert "no finite numbers for this input" in refused("small", tensor(np.full_like(ones, 3e38)))
        assert "picture 2 of 2 is not a picture" in refused("small_classify", encoded(png(9, 9), b"/etc/passwd"))
        named = tritonclient.http.InferInput("images", [1, 3, 224, 224], "FP32")
        named.set_shared_memory("region", 602_112)
        assert "memory that is named is not read here" in refused("small", named)


def test_a_head_request_has_no_body_and_a_page_has_a_policy(server: Served) -> None:
    found = server.ask("HEAD", "/v2/health/ready", None)
    assert (found.status, found.body) == (200, b"")
    page = server.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")


# Bytes


def exchange(port: int, data: bytes, wait_s: float = 5) -> bytes:
    """What comes back until the server closes, or says nothing more."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as raw:
        found = b""
        try:
            raw.sendall(data)
            while chunk := raw.recv(65536):
                found += chunk
        except (TimeoutError, ConnectionError):
            pass
        return found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"FOO / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /v1/classify HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"POST /v1/classify HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /v1/classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 400_000, b"431"),
        (b"GET /" + b"a" * 400_000, b"431"),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 150_000 + b"\r\n\r\n", b"431"),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 6000 + b"\r\n", b"431"),
        (b"GET /v2?" + b"a" * 33_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431"),
    ],
)
def test_what_is_no_http_is_closed_with_a_word(server: Served, data: bytes, status: bytes) -> None:
    found = exchange(server.port, data)
    # A connection that is closed on bytes that still come is reset, sometimes before the word is read.
    assert found[:12] == b"HTTP/1.1 " + status or (len(data) > 1000 and not found)


def test_a_body_is_counted_while_it_comes(server: Served) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n" % (100_000, bytes(100_000))
    assert exchange(server.port, head + chunk * 41 + b"0\r\n\r\n").startswith(b"HTTP/1.1 413")
    answers = exchange(server.port, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5, wait_s=0.5)
    assert answers.count(b"HTTP/1.1 200") == 5
    exchange(server.port, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000, wait_s=0.5)
    assert server.get("/v2").status == 200


def test_damaged_bytes_never_bring_it_down(server: Served) -> None:
    body, headers = infer_body(np.zeros((1, 3, 224, 224), np.float32))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /v2/models/small/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}"
    whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:600]
    form = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + (
        f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: {len(PART)}\r\n\r\n".encode() + PART
    )
    edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.binary(max_size=5)), min_size=1, max_size=6)

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([whole, form]), edits)
    def tried(data: bytes, changes: list[tuple[float, int, bytes]]) -> None:
        for place, cut, inserted in changes:
            at = int(place * len(data))
            data = data[:at] + inserted + data[at + cut :]
        found = exchange(server.port, data, wait_s=0.05)
        assert not found or found.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), found[:100]

    tried()
    assert server.post("/v1/classify", PHOTO.read_bytes()).status == 200


def test_who_is_slow_is_let_go(strict: Served) -> None:
    started = time.monotonic()
    assert exchange(strict.port, b"") == b""
    assert exchange(strict.port, b"GET / HT") == b""
    late = exchange(strict.port, b"POST /v1/classify HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
    assert late.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in late
    assert time.monotonic() - started < 4
    assert strict.get("/v2").status == 200


@pytest.mark.parametrize(("last", "then"), [(b"\r\n", b"\r\n"), (b"Content-Length: 1\r\n\r\n", b"x")])
def test_who_is_idle_is_let_go_whatever_came_after_the_answer(strict: Served, last: bytes, then: bytes) -> None:
    """Any byte ends uvicorn's own timer: such connections stayed for ever."""
    with socket.create_connection(("127.0.0.1", strict.port), timeout=5) as raw:
        raw.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + last)
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        raw.sendall(then)
        while raw.recv(65536):  # what is left of the answer, and then the end
            pass


def test_who_does_not_read_is_let_go(strict: Served) -> None:
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", strict.port))
        with pytest.raises(ConnectionError):
            for _ in range(1500):
                raw.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                time.sleep(0.004)  # so that it is no pipelining beyond its limit


def test_trailers_do_not_fill_the_memory(server: Served) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(head + b"0\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(400):
                raw.sendall(b"a: b\r\n" * 10_000)
    # Small chunks have more around them than in them, and are a body.
    chunks = head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    assert exchange(server.port, chunks, wait_s=0.5).startswith(b"HTTP/1.1 400")


def test_a_promised_body_holds_no_memory(strict: Served) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(socket.create_connection(("127.0.0.1", strict.port))).sendall(head)
        time.sleep(0.1)
        assert strict.post("/v1/classify", SMALL).status == 200


def test_more_connections_than_the_limit_are_told_so(model: Path) -> None:
    with served(model, program=program_with(max_connections=4)) as found:
        kept = [socket.create_connection(("127.0.0.1", found.port)) for _ in range(4)]
        refused = found.get("/v2")
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert found.get("/v2/health/live").status == found.get("/v2/health/ready").status == 200
        for connection in kept:
            connection.close()
        time.sleep(0.1)
        assert found.get("/v2").status == 200


# A full queue, and time


def test_beyond_the_queue_it_is_503_with_retry_after(patient: Served) -> None:
    body, headers = infer_body(np.zeros((3, 3, 224, 224), np.float32))
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(patient.post, "/v2/models/small/infer", body, headers)
        time.sleep(0.2)
        refused = patient.post("/v2/models/small/infer", body, headers)
        assert refused.status == 503
        assert "the queue is full: 3 images wait, of at most 4" in refused.document["error"]
        assert int(refused.headers["retry-after"]) >= 1
        assert waiting.result().status == 200


def test_what_nobody_waits_for_is_not_computed(patient: Served) -> None:
    before = counts(patient)
    late = patient.post("/v1/classify", png(8, 8), {"X-Deadline-Ms": "50"})
    assert (late.status, late.document["error"]) == (503, "the deadline has passed")
    image = tensor(np.zeros((1, 3, 224, 224), np.float32))
    told = pytest.raises(InferenceServerException, match="the deadline has passed")
    with tritonclient.http.InferenceServerClient(patient.address) as client, told:
        client.infer("small", [image], timeout=50_000)
    connection = http.client.HTTPConnection("127.0.0.1", patient.port)
    connection.request("POST", "/v1/classify", png(8, 8))
    time.sleep(0.1)
    connection.close()
    time.sleep(0.6)
    assert counts(patient) == before
    assert 'sepvit_requests_total{code="499",model="small_classify"} 1.0' in patient.get("/metrics").body.decode()


# A new file, and the end


class Client(threading.Thread):
    """Sends a picture again and again over connections that it keeps, until it is stopped or nobody listens."""

    def __init__(self, server: Served) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[str] = Counter()
        self.going = True
        self._port = server.port

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while self.going:
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                return
            try:
                connection.request("POST", "/v1/classify", SMALL)
                found = connection.getresponse()
                document = json.loads(found.read())
            except (OSError, http.client.HTTPException) as error:
                self.seen[f"lost: {error!r}"] += 1
                return
            best = document["classes"][0]["class"] if found.status == 200 else document
            self.seen[f"{found.status} version {document.get('version')} class {best}"] += 1
        connection.close()


SMALL = png(40, 30)
UPLOAD = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(SMALL) + SMALL


def clients(server: Served, count: int = 8) -> list[Client]:
    found = [Client(server) for _ in range(count)]
    for client in found:
        client.start()
    return found


def seen(found: list[Client]) -> Counter[str]:
    for client in found:
        client.going = False
        client.join(30)
    return sum((client.seen for client in found), Counter())


def until(condition: Any, what: str, limit_s: float = 10) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_nothing_is_lost_when_it_is_told_to_end(model: Path) -> None:
    with served(model, "--queue-delay-ms", "20") as found:
        idle = http.client.HTTPConnection("127.0.0.1", found.port, timeout=10)
        idle.request("GET", "/v2/health/ready")
        assert idle.getresponse().read() == b'{"ready":true}'
        senders = clients(found)
        time.sleep(0.5)
        found.process.send_signal(signal.SIGTERM)
        time.sleep(0.15)
        idle.request("GET", "/v2/health/ready")  # an open connection is still answered, for the last time
        last = idle.getresponse()
        assert (last.status, last.headers["connection"], json.loads(last.read())) == (
            503,
            "close",
            {"error": "the server is ending"},
        )
        assert found.process.wait(20) == 0
        answers = seen(senders)
        assert set(answers) == {"200 version 1 class 2"}, answers
        assert answers.total() > 20
    assert len(found.said) == 3


@contextlib.contextmanager
def asking(server: Served) -> Iterator[socket.socket]:
    """A connection with a request that waits for its batch."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(UPLOAD)
        time.sleep(0.2)
        yield raw


def test_a_second_signal_ends_it_at_once(model: Path) -> None:
    with served(model, "--queue-delay-ms", "5000") as found, asking(found) as raw:
        found.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert found.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        assert raw.recv(100) == b""
    assert "requests under way are lost" in found.said[-1]


def test_a_request_that_outlives_the_grace_is_said_aloud(model: Path) -> None:
    limits = program_with(drain_s=0.5)
    with served(model, "--queue-delay-ms", "5000", program=limits) as found, asking(found):
        assert found.stop() == 1
    assert "ENDED AFTER 0.5 s WITH 1 REQUESTS UNANSWERED" in found.said[-1]


def test_a_new_file_takes_over_and_an_unfit_one_does_not(tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.onnx")
    with served(path, program=program_with(poll_s=0.1)) as found:
        senders = clients(found, 4)
        first = found.get("/v1/model").document["sha256"]
        small_model(path, bias=(9, 0, 0, 0, 0))
        until(lambda: found.get("/v1/model").document["version"] == "2", "the new file does not serve")
        second = found.get("/v2/models/m").document
        assert second["versions"] == ["2"]
        assert second["parameters"]["sha256"] != first
        assert found.get("/v2/models/m/versions/1").status == 404
        until(lambda: counts(found, "m")[0], "the new version counts nothing")
        series = [line.rsplit(" ", 1) for line in found.get("/metrics").body.decode().splitlines()]
        counted = {name: value for name, value in series if name.startswith('nv_inference_count{model="m"')}
        assert list(counted) == [f'nv_inference_count{{model="m",version="{version}"}}' for version in "12"]
        assert "0.0" not in counted.values()

        path.write_bytes(b"no model")
        until(lambda: "REFUSED" in found.said[-1], "an unfit file is not refused")
        assert "version 2" in found.said[-1]
        small_model(path, (0, 0, 0, 0), CLASSIFIER.replace("[batch,5]", "[batch,4]"), classes=4)
        until(lambda: "outputs {'logits': (4,)}" in found.said[-1], "a model of other outputs is not refused")

        small_model(path, bias=(0, 0, 0, 0, 7))
        found.process.send_signal(signal.SIGHUP)
        until(lambda: found.get("/v1/model").document["version"] == "3", "the file is not taken after refusals")
        found.process.send_signal(signal.SIGHUP)
        until(lambda: "the file is the one that serves" in found.said[-1], "SIGHUP is not answered")
        answers = seen(senders)
        assert set(answers) == {"200 version 1 class 2", "200 version 2 class 0", "200 version 3 class 4"}, answers
        metrics = found.get("/metrics").body.decode()
        assert 'sepvit_reloads_total{result="done"} 2.0' in metrics
        assert 'sepvit_model_info{sha256="' in metrics
        assert found.stop() == 0
    assert not any("Traceback" in line for line in found.said)


def test_a_version_that_was_replaced_meanwhile_does_not_answer(tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.onnx")
    body, headers = infer_body(np.zeros((1, 3, 224, 224), np.float32))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST /v2/models/m/versions/1/infer HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    )
    with served(path, program=program_with(poll_s=0.1)) as found, contextlib.ExitStack() as stack:
        raw = stack.enter_context(socket.create_connection(("127.0.0.1", found.port), timeout=10))
        raw.sendall(head.encode() + body[:1000])
        time.sleep(0.2)
        small_model(path, bias=(9, 0, 0, 0, 0))
        until(lambda: found.get("/v1/model").document["version"] == "2", "the new file does not serve")
        raw.sendall(body[1000:])
        assert raw.recv(100).startswith(b"HTTP/1.1 404")


# The command


def test_what_cannot_be_served_is_one_line(tmp_path: Path, model: Path, server: Served) -> None:
    taken = str(server.port)
    complaint(spawn("serve", model, "--port", taken), f"--port {taken} cannot be taken", "or 0 for any")
    complaint(call("serve", model, "--host", "nowhere.invalid"), "'nowhere.invalid' is no address here")
    complaint(call("serve", model, "--port", "0", "--name", "a/b"), "--name 'a/b'")
    complaint(call("serve", model, "--max-queue", "3"), "--max-queue 3", "8 to")
    complaint(spawn("serve", classifier(tmp_path / "foreign.onnx"), "--port", "0"), "foreign.onnx has no passport")
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo", encoding="utf-8")
    complaint(spawn("serve", model, "--port", "0", "--labels", few), "2 labels", "expected 5")
    complaint(spawn("serve", tmp_path / "none.onnx", "--port", "0"), "none.onnx")


def test_a_file_serves_under_a_name_that_fits_and_takes_pictures_of_the_size_it_is_told(tmp_path: Path) -> None:
    with served(small_model(tmp_path / "my model.onnx"), "--max-megapixels", "1") as found:
        assert found.get("/v2/models/my_model").status == 200
        refused = found.post("/v1/classify", png(1001, 1000))
        assert (refused.status, found.post("/v1/classify", png(1000, 1000)).status) == (413, 200)
        assert "at most 1 megapixels" in refused.document["error"]


def test_an_open_door_is_warned_of(model: Path) -> None:
    with served(model, "--host", "0.0.0.0") as found:
        assert "open to other machines, and there is no authentication" in found.said[1]
        assert found.get("/v2", {"Host": "server.example"}).status == 200


def test_a_missing_package_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')")
    hidden = os.environ | {"PYTHONPATH": str(tmp_path)}
    shutil.copy(model, tmp_path)
    complaint(spawn("serve", model, env=hidden), "uvicorn is not installed", "pip install 'sepvit-deploy[serving]'")


def test_answers_are_compared_in_these_tests(server: Served) -> None:
    """A planted fault: another picture, other logits."""
    zeros, ones = (np.full((1, 3, 224, 224), value, np.float32) for value in (0, 9))
    with tritonclient.http.InferenceServerClient(server.address) as client:
        first, second = (client.infer("small", [tensor(x)]).as_numpy("logits") for x in (zeros, ones))
    assert np.abs(first - second).max() > 1e-3


def test_an_answer_is_what_it_says(server: Served) -> None:
    found: Answer = server.get("/v2")
    assert found.headers["content-type"] == "application/json"
    assert found.headers["date"].endswith("GMT")
