"""Servers in processes of their own, for tests: `sepvit-deploy serve` on a free port, and small models to serve."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper, parser

from sepvit_deploy.artifact import Parent, Passport, write_with_passport
from sepvit_deploy.spec import ModelSpec
from tests.cpu.commands import CLASSIFIER, PROGRAM, environment

BIAS = (0.0, 1.0, 5.0, 2.0, 3.0)
"""The third of five classes wins, whatever the picture."""
_ADDRESS = re.compile(r"http://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)")


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running server; ``said`` are its lines on both streams."""

    port: int
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """As tritonclient wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None = None) -> Answer:
        request = urllib.request.Request(self.url + path, body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as found:
                return Answer(found.status, dict(found.headers), found.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(40)


@contextlib.contextmanager
def served(model: str | Path, *options: str, program: Sequence[str] = PROGRAM) -> Iterator[Served]:
    """A server of a model on a free port, ended with SIGTERM where the test has not ended it."""
    command = [*program, "serve", str(model), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment()
    )
    assert process.stdout is not None
    server = Served(0, process)
    try:
        for line in process.stdout:
            server.said.append(line)
            if found := _ADDRESS.search(line):
                server.port = int(found[1])
            if line.startswith(("try:", "serving")) and server.port:
                break
        assert server.port, server.said
        reader = threading.Thread(target=lambda: server.said.extend(process.stdout or ()), daemon=True)
        reader.start()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(40)
        if server.port:
            reader.join(5)
        process.stdout.close()


def small_model(path: Path, bias: Sequence[float] = BIAS, text: str = CLASSIFIER, classes: int = 5) -> Path:
    """A classifier of three nodes with a passport, which takes microseconds."""
    graph = parser.parse_model(text)
    constants = {
        "axes": np.array([2, 3], np.int64),
        "weight": np.full((3, classes), 0.01, np.float32),
        "bias": np.array(bias, np.float32),
    }
    graph.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    spec = ModelSpec("lite", "classify", (224, 224), classes)
    facts = {"precision": "fp32", "preprocessing": spec.preprocessing.to_dict()}
    passport = Passport("export", (Parent("weights", "random", seed=0),), spec.to_dict(), facts)
    write_with_passport(path, graph.SerializeToString(), passport)
    return path


NAMES = ("sky", "sea", "a sandy beach", "<b>grass</b>", "owl")


def segmenter(
    path: Path,
    *,
    output: Literal["logits", "mask"] = "logits",
    size: tuple[int, int] = (64, 64),
    any_size: bool = False,
    batch: int | str = "batch",
    facts: Mapping[str, Any] = {},
) -> Path:
    """A segmentation model of a few nodes with a passport: by colour, five classes for every fourth pixel or each."""
    logits = _Logits(size, any_size, batch)
    given = logits.value
    nodes = [*logits.nodes]
    if output == "mask":
        free: list[int | str] = [batch, *(("height", "width") if any_size else size)]
        given = helper.make_tensor_value_info("mask", TensorProto.UINT8, free)
        nodes += [
            helper.make_node("Shape", ["images"], ["space"], start=2),
            helper.make_node("Shape", ["logits"], ["lead"], end=2),
            helper.make_node("Concat", ["lead", "space"], ["whole"], axis=0),
            helper.make_node("Resize", ["logits", "", "", "whole"], ["large"], mode="linear"),
            helper.make_node("ArgMax", ["large"], ["number"], axis=1, keepdims=0),
            helper.make_node("Cast", ["number"], ["mask"], to=TensorProto.UINT8),
        ]
    graph = helper.make_graph(nodes, "colours", [logits.images], [given], logits.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    spec = ModelSpec("lite", "segment", size, 5, head="fpn", output=output, any_size=any_size)
    known = {"precision": "fp32", "preprocessing": spec.preprocessing.to_dict()} | facts
    passport = Passport("export", (Parent("weights", "random", seed=0),), spec.to_dict(), known)
    write_with_passport(path, model.SerializeToString(), passport)
    return path


class _Logits:
    """The part of `segmenter` from images to logits: the mean colour of 4 x 4 pixels, and a score for each class."""

    def __init__(self, size: tuple[int, int], any_size: bool, batch: int | str) -> None:
        rng = np.random.default_rng(5)
        sides: list[int | str] = ["height", "width"] if any_size else list(size)
        quarter: list[int | str] = ["h", "w"] if any_size else [-(-side // 4) for side in size]
        self.images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *sides])
        self.value = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5, *quarter])
        self.nodes = [
            helper.make_node("AveragePool", ["images"], ["mean"], kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1),
            helper.make_node("Conv", ["mean", "weight", "bias"], ["logits"]),
        ]
        weight = rng.normal(size=(5, 3, 1, 1)).astype(np.float32)
        bias = rng.normal(size=5).astype(np.float32)
        self.constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]


def program_with(**settings: float) -> tuple[str, ...]:
    """The command line with other limits than its options can set."""
    script = (
        "import sys; import sepvit_deploy.server as s; from sepvit_deploy.cli import main\n"
        f"class Settings(s.Settings):\n    def __init__(self, **k): super().__init__(**{{**k, **{settings!r}}})\n"
        "s.Settings = Settings; sys.exit(main())"
    )
    return (sys.executable, "-P", "-c", script)
