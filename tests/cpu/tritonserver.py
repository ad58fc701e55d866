"""A real tritonserver on this machine's loopback, from the folder that tests/fetch_triton.py fills."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0


def folder() -> Path:
    """Where the server lies; the test is skipped, with the reason, where there can be none."""
    place = Path(os.environ.get("SEPVIT_TRITON") or ROOT / ".triton")
    reason = place / "unavailable.txt"
    if reason.is_file():
        pytest.skip(f"no Triton server: {reason.read_text(encoding='utf-8').strip()}")
    if not (place / "fetched.json").is_file():
        pytest.skip(f"no Triton server in {place}; type: python tests/fetch_triton.py {place}")
    return place


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics: str
    log: Path

    def counted(self, metric: str, model: str) -> float:
        """A counter of a model, of all its versions."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        pattern = rf'^{metric}{{[^}}]*model="{re.escape(model)}"[^}}]*}} ([0-9.e+]+)$'
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def serving(repository: Path, scratch: Path, *arguments: str, ready: bool = True) -> Iterator[Server]:
    """Start a server on a repository and stop it at the end; what it says is in ``scratch``.

    Args:
        ready: wait until every model is, and fail where one is not; else until the server answers or ends.
    """
    ports = free_ports(3)
    command = [str(folder() / "tritonserver"), f"--model-repository={repository}", "--exit-timeout-secs=5", *arguments]
    command += [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    log = scratch / f"server-{ports[0]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    server = Server(process, *(f"127.0.0.1:{port}" for port in ports), log)
    try:
        _wait(server, ready)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, ready: bool) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            if ready:
                raise AssertionError(f"the server ended:\n{server.log.read_text(errors='replace')[-4000:]}")
            return
        if server.is_ready():
            return
        time.sleep(0.05)
    raise AssertionError(f"the server is not ready:\n{server.log.read_text(errors='replace')[-4000:]}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; another process may take one before the server does."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
