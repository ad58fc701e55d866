"""A server process to measure, the models that it serves, and what it says of itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper, parser

from sepvit_deploy.artifact import Parent, Passport, write_with_passport
from sepvit_deploy.spec import ModelSpec

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "models" / "sepvit_lite_digits.safetensors"
PROGRAM = (sys.executable, "-P", "-c", "import sys; from sepvit_deploy.cli import main; sys.exit(main())")
NAME = "served"
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass
class Served:
    """A running server, and what it has said; ``code`` is its exit code, once it has ended."""

    port: int
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    code: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def resident_mib(self) -> float:
        """What the server's process holds in memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024

    def tracebacks(self) -> int:
        return sum(line.startswith("Traceback") for line in self.said)


@contextlib.contextmanager
def served(model: Path, *options: str) -> Iterator[Served]:
    """A server of a model on a free port; it is told to end, and must."""
    command = [*PROGRAM, "serve", str(model), "--port", "0", "--name", NAME, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    assert process.stdout is not None
    said: list[str] = []
    found = None
    for line in process.stdout:
        said.append(line)
        if found := ADDRESS.search(line):
            break
    if found is None:
        process.wait()
        sys.exit("".join(said))
    server = Served(int(found[1]), process, said)
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        server.code = process.wait(60)
        reader.join(5)
        process.stdout.close()


def digits_model(work: Path) -> Path:
    """The model that this repository trains, in FP32, and pictures of its test set in ``digits``."""
    path = work / "digits.onnx"
    if not path.exists():
        shutil.copy(WEIGHTS, work)
        subprocess.run([sys.executable, ROOT / "benchmarks" / "digits.py", "--output", work / "digits"], check=True)
        command = [*PROGRAM, "export", "--variant", "lite", "--weights", WEIGHTS.name, "--output", path.name]
        subprocess.run(command, cwd=work, check=True)
    return path


def picture(work: Path) -> bytes:
    return min((work / "digits" / "test").rglob("*.png")).read_bytes()


def tiny_model(path: Path) -> Path:
    """A classifier of two nodes, so that the server is what a request costs."""
    text = (
        '<ir_version: 9, opset_import: ["" : 20]> g (float[batch,3,224,224] images) => (float[batch,10] logits) '
        "{ mean = ReduceMean<keepdims=0>(images, axes)  logits = MatMul(mean, weight) }"
    )
    graph = parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    constants = {"axes": np.array([2, 3], np.int64), "weight": weight}
    graph.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    spec = ModelSpec("lite", "classify", (224, 224), 10)
    facts = {"precision": "fp32", "preprocessing": spec.preprocessing.to_dict()}
    passport = Passport("export", (Parent("weights", "random", seed=0),), spec.to_dict(), facts)
    write_with_passport(path, graph.SerializeToString(), passport)
    return path


def formed(server: Served) -> Counter[int]:
    """How many batches of each size the server has run."""
    stats = get(server, f"/v2/models/{NAME}/stats")["model_stats"][0]["batch_stats"]
    return Counter({entry["batch_size"]: int(entry["compute_infer"]["count"]) for entry in stats})


def get(server: Served, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def load(url: str, *options: str) -> dict[str, Any]:
    """What `sepvit-deploy load --json` says; lost or wrong answers end the benchmark."""
    done = subprocess.run([*PROGRAM, "load", url, *options, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"load {' '.join(options)} ended with {done.returncode}: {done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
