"""Requests that no well-meaning client sends, for a server of the Open Inference Protocol: as hypothesis draws them.

Half of them are broken in their meaning (JSON, tensors, sizes, addresses, pictures), half in their bytes.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

WAIT_S, LIMIT_S = 0.3, 20.0
"""Until a server that says nothing is told that no more bytes come; until it counts as hanging."""


@dataclass(frozen=True)
class Target:
    """Where the requests go: a classifier NAME with one image input of (3, side, side)."""

    host: str
    port: int
    name: str
    side: int
    picture: bytes


def valid(target: Target) -> list[bytes]:
    """Whole requests that a server answers with 200, to be broken."""
    numbers = [0.0] * (3 * target.side**2)
    tensor = {"name": "images", "shape": [1, 3, target.side, target.side], "datatype": "FP32"}
    infer = f"/v2/models/{target.name}/infer"
    plain = json.dumps({"inputs": [tensor | {"data": numbers}]}).encode()
    size = 4 * len(numbers)
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()
    binary = {"Inference-Header-Content-Length": str(len(header))}
    return [
        request(target, "GET", f"/v2/models/{target.name}"),
        request(target, "POST", "/v1/classify?top=3", target.picture, {"Content-Type": "image/jpeg"}),
        request(target, "POST", infer, header + bytes(size), binary),
        request(target, "POST", infer, plain, {"Content-Type": "application/json"}),
    ]


def request(target: Target, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """A request whose connection ends with its answer."""
    lines = {"Host": f"{target.host}:{target.port}", "Connection": "close", "Content-Length": str(len(body))}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(
        f"{key}: {value}\r\n" for key, value in (lines | (headers or {})).items()
    )
    return head.encode("utf-8", "surrogateescape") + b"\r\n" + body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0 "), max_size=12)


def meanings(target: Target) -> st.SearchStrategy[bytes]:
    """Well-formed HTTP that means nothing, or something else than the server takes."""
    models = st.sampled_from([target.name, f"{target.name}_classify", "none", "..", "%2e%2e%2fetc", "", "a" * 300])
    dims = st.lists(st.integers(-2, 5) | st.sampled_from([224, 2**31, 2**63, 2**64]), max_size=5)
    shape = dims | st.just([1, 3, target.side, target.side]) | st.just([1, 1]) | JSON
    kinds = st.sampled_from(["FP32", "BYTES", "FP16", "INT64", "UINT8", "BOOL", "fp32", ""]) | JSON
    values = st.lists(st.floats() | st.text(max_size=4), max_size=6) | JSON
    size = st.integers(-5, 70) | st.sampled_from([12 * target.side**2, 2**40]) | JSON
    parameters = st.fixed_dictionaries(
        {},
        optional={
            "binary_data_size": size,
            "shared_memory_region": TEXT,
            "shared_memory_byte_size": size,
            "timeout": size,
        },
    )
    names = st.sampled_from(["images", "image", "logits", ""]) | JSON
    tensor = st.fixed_dictionaries(
        {}, optional={"name": names, "shape": shape, "datatype": kinds, "data": values, "parameters": parameters | JSON}
    )
    outputs = st.fixed_dictionaries({}, optional={"name": names, "parameters": JSON})
    document = st.fixed_dictionaries(
        {},
        optional={
            "id": JSON,
            "inputs": st.lists(tensor, max_size=3) | JSON,
            "outputs": st.lists(outputs, max_size=2) | JSON,
            "parameters": parameters | JSON,
        },
    )

    @st.composite
    def infer(draw: st.DrawFn) -> bytes:
        header = json.dumps(draw(document | JSON)).encode()
        tail = draw(st.binary(max_size=64))
        lengths = st.just(len(header)) | st.integers(-3, 4 * len(header)) | st.just(2**65) | TEXT
        headers: dict[str, str] = {}
        if draw(st.booleans()):
            headers["Inference-Header-Content-Length"] = str(draw(lengths))
        if draw(st.integers(0, 9)) == 0:
            headers["Content-Encoding"] = draw(st.sampled_from(["gzip", "deflate", "br", "identity"]) | TEXT)
        version = draw(st.sampled_from(["", "/versions/1", "/versions/0", "/versions/x"]))
        return request(target, "POST", f"/v2/models/{draw(models)}{version}/infer", header + tail, headers)

    @st.composite
    def classify(draw: st.DrawFn) -> bytes:
        cut = draw(st.integers(0, len(target.picture)))
        body = draw(st.binary(max_size=200) | st.just(target.picture[:cut]) | st.just(b"BM" + bytes(60)))
        top = draw(st.sampled_from(["", "?top=0", "?top=-1", "?top=1e9", "?top=5&top=6", "?file=/etc/passwd"]) | TEXT)
        kind = draw(st.sampled_from(["image/jpeg", "multipart/form-data; boundary=x", "text/html", "application/json"]))
        return request(target, "POST", f"/v1/classify{top}", body, {"Content-Type": kind})

    @st.composite
    def anywhere(draw: st.DrawFn) -> bytes:
        method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"]))
        known = ["/", "/metrics", "/v2", "/v2/health/live", "/v2/models", "/v2/repository/index", "/v1/classify", "//"]
        path = draw(st.sampled_from(known)) + draw(st.just("") | TEXT)
        return request(target, method, path, draw(st.binary(max_size=40)))

    return infer() | infer() | classify() | anywhere()


def damaged(target: Target) -> st.SearchStrategy[bytes]:
    """A valid request with bytes changed, cut out, repeated or inserted, or no request at all."""
    whole = [text if len(text) < 20_000 else text[:3000] for text in valid(target)]

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(whole)))
        for _ in range(draw(st.integers(1, 5))):
            at = draw(st.integers(0, min(len(data), 400)))
            kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
            length = draw(st.integers(1, 30))
            if kind == "flip":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            elif kind == "cut":
                del data[at : at + length]
            elif kind == "insert":
                data[at:at] = draw(st.binary(max_size=length))
            else:
                data[at:at] = data[at : at + length]
        return bytes(data)

    return changed() | st.binary(min_size=1, max_size=300)


def answer(target: Target, data: bytes) -> int | None:
    """Status of the answer to these bytes; None where the server closed the connection without one.

    Raises:
        TimeoutError: it neither answered nor closed.
    """
    with socket.create_connection((target.host, target.port), timeout=LIMIT_S) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(WAIT_S)
            try:
                got = connection.recv(65536)
            except TimeoutError:
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(LIMIT_S)
                got = connection.recv(65536)
            connection.settimeout(LIMIT_S)
            while b"\r\n" not in got and (more := connection.recv(65536)):
                got += more
        except (ConnectionResetError, BrokenPipeError):
            return None
    return status(got)


def status(got: bytes) -> int | None:
    """The number in a status line; None of nothing."""
    if not got:
        return None
    words = got.split(b" ", 2)
    if len(words) < 3 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ValueError(f"no HTTP answer: {got[:60]!r}")
    return int(words[1])


def describe(data: bytes) -> dict[str, Any]:
    """What a report keeps of a request that went wrong."""
    return {"bytes": len(data), "begins": repr(data[:300])}
