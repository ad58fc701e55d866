"""What `sepvit-deploy serve` must bear, each as a function that measures it on a server of its own."""

from __future__ import annotations

import http.client
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import just

from sepvit_deploy.confidence import median_interval
from sepvit_deploy.load.payloads import INPUTS
from sepvit_deploy.pipeline import Running, open_model
from sepvit_deploy.runners.batches import InBatches

from hostile_requests import Target, answer, damaged, describe, meanings, valid
from served import NAME, formed, load, picture, served

CLIENTS = 32
DEADLINE_MS = 2000.0
KINDS = ("200", "200", "200", "400", "200", "400", "200", "200", "400")


def throughput(model: Path, turns: int, seconds: float) -> dict[str, Any]:
    """Images/s of 32 clients over those of the bare runner in the same mixture of batches, turn by turn."""
    ratios, rates, batches = [], [], []
    with served(model, "--threads", "1", "--max-batch", "8") as server:
        load(server.url, "--clients", str(CLIENTS), "--seconds", "2")
        for _ in range(turns):
            before = formed(server)
            got = load(server.url, "--clients", str(CLIENTS), "--seconds", str(seconds))
            counts = formed(server)
            counts.subtract(before)
            counts[1] -= INPUTS  # which load sends one by one, before its clients start
            mixture = {batch: count for batch, count in sorted(counts.items()) if count > 0}
            bare = bare_images_per_s(model, mixture, seconds)
            rates.append(got["images_per_s"])
            ratios.append(got["images_per_s"] / bare)
            batches.append(sum(b * n for b, n in mixture.items()) / sum(mixture.values()))
    low, high = median_interval(ratios)
    return {
        "clients": CLIENTS,
        "turns": turns,
        "images_per_s": float(np.median(rates)),
        "ratio": float(np.median(ratios)),
        "ratio_interval": [low, high],
        "ratios": ratios,
        "mean_batch": float(np.median(batches)),
    }


def bare_images_per_s(model: Path, mixture: dict[int, int], seconds: float) -> float:
    """What the runner does alone, in a process of its own, given batches in these proportions."""
    command = [
        sys.executable,
        Path(__file__).with_name("serving.py"),
        "--bare",
        str(model),
        json.dumps(mixture),
        str(seconds),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def bare(model: Path, mixture: dict[int, int], seconds: float) -> float:
    """See `bare_images_per_s`; this is the process."""
    rng = random.Random(0)
    images = np.random.default_rng(0).normal(size=(max(mixture), 3, 224, 224)).astype(np.float32)
    sizes = rng.choices(list(mixture), list(mixture.values()), k=10_000)
    with open_model(model).running(Running(threads=1)) as opened:
        runner = InBatches(opened)
        for batch in mixture:
            runner.run(images[:batch])
        count, start = 0, time.perf_counter()
        for batch in sizes:
            runner.run(images[:batch])
            count += batch
            if (took := time.perf_counter() - start) >= seconds:
                break
    return count / took


def overload(model: Path, work: Path, before: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Ten times what the server carries, as pictures: refused, or right and in time."""
    rate = 10 * before["images_per_s"]
    limits = ("--threads", "1", "--max-batch", "8", "--deadline-ms", str(DEADLINE_MS))
    with served(model, *limits) as server:
        asked = ("--rate", f"{rate:.0f}", "--seconds", str(seconds), "--images", str(work / "digits" / "test"))
        got = load(server.url, *asked, "--deadline-ms", str(DEADLINE_MS))
        row = {"rate_per_s": rate, "seconds": seconds, "deadline_ms": DEADLINE_MS, **got}
        return row | {"tracebacks": server.tracebacks()}


def termination(model: Path, work: Path, times: int) -> dict[str, Any]:
    """SIGTERM while clients send pictures on connections that they keep: what became of every request."""
    totals: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    content = picture(work)
    for turn in range(times):
        with served(model, "--threads", "1") as server:
            clients = [Client(server.port, content) for _ in range(16)]
            for client in clients:
                client.start()
            time.sleep(random.Random(turn).uniform(0.5, 1.5))
            server.process.send_signal(signal.SIGTERM)
            codes[str(server.process.wait(60))] += 1
            for client in clients:
                client.join(90)
                totals.update(client.seen)
            totals["clients that hang"] += sum(client.is_alive() for client in clients)
            totals["turns without an answer"] += not any(client.seen["answered"] for client in clients)
    return {"times": times, "clients": 16, "exit_codes": dict(codes), "requests": dict(+totals)}


class Client(threading.Thread):
    """Sends a picture again and again on one connection, until the server takes no new one."""

    def __init__(self, port: int, content: bytes) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[str] = Counter()
        self._port, self._content = port, content

    def run(self) -> None:
        """Counts answered, refused (503) and lost requests; a connection that is refused ends it."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            if connection.sock is None:
                try:
                    connection.connect()
                except OSError:
                    return
            try:
                connection.request("POST", "/v1/classify", self._content)
                answered = connection.getresponse()
                answered.read()
            except (OSError, http.client.HTTPException) as error:
                self.seen[f"lost: {type(error).__name__}"] += 1
                return
            self.seen["answered" if answered.status == 200 else f"status {answered.status}"] += 1


def fuzz(model: Path, content: bytes, draws: int) -> dict[str, Any]:
    """Requests that mean nothing and requests of broken bytes; in between, valid ones must be answered."""
    statuses: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    with served(model) as server:
        target = Target("127.0.0.1", server.port, NAME, 224, content)
        good = valid(target)

        def tried(data: bytes, whole: bool) -> None:
            """A whole request must be answered; on broken bytes the connection may be closed as well."""
            try:
                status = answer(target, data)
            except (TimeoutError, ValueError) as error:
                status = None
                wrong.append(describe(data) | {"why": repr(error)})
            statuses["closed" if status is None else str(status)] += 1
            if status is None and whole:
                wrong.append(describe(data) | {"why": "no answer"})
            if status is not None and status >= 500:
                wrong.append(describe(data) | {"why": f"status {status}"})
            if sum(statuses.values()) % 500 == 0 and {answer(target, request) for request in good} != {200}:
                wrong.append({"why": "a valid request was not answered with 200"})

        for strategy, whole in ((meanings(target), True), (damaged(target), False)):
            checked = given(data=strategy, whole=just(whole))(tried)
            relaxed = settings(
                max_examples=draws // 2,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            seed(1)(relaxed(checked))()
        alive = server.process.poll() is None
        row = {"requests": sum(statuses.values()), "alive": alive, "statuses": dict(sorted(statuses.items()))}
        return row | {"wrong": wrong[:20], "wrong_count": len(wrong), "tracebacks": server.tracebacks()}


def memory(model: Path, content: bytes, requests: int) -> dict[str, Any]:
    """Resident memory while requests of every kind are answered, eight at a time."""
    with served(model) as server:
        target = Target("127.0.0.1", server.port, NAME, 224, content)
        kinds: list[Callable[[http.client.HTTPConnection], int]] = kinds_of_request(target)
        left = iter(range(requests))
        lock = threading.Lock()
        points: list[tuple[int, float]] = []
        codes: Counter[str] = Counter()

        def work() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            while True:
                with lock:
                    number = next(left, None)
                    if number is None:
                        break
                    if number % max(requests // 50, 1) == 0:
                        points.append((number, server.resident_mib()))
                try:
                    code = str(kinds[number % len(kinds)](connection))
                except (OSError, http.client.HTTPException) as error:
                    code = type(error).__name__
                    connection.close()
                with lock:
                    codes[code] += 1
            connection.close()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        points.append((requests, server.resident_mib()))
    settled = [mib for number, mib in points if number >= requests // 10]
    half = len(settled) // 2
    expected = Counter(KINDS[number % len(KINDS)] for number in range(requests))
    return {
        "requests": sum(codes.values()),
        "codes": dict(sorted(codes.items())),
        "as_expected": codes == expected,
        "mib_after_a_tenth": settled[0],
        "mib_at_the_end": settled[-1],
        "median_first_half": float(np.median(settled[:half])),
        "median_second_half": float(np.median(settled[half:])),
        "points": points,
    }


def kinds_of_request(target: Target) -> list[Callable[[http.client.HTTPConnection], int]]:
    """Nine kinds, which are answered with `KINDS`, in their turn."""

    def sender(method: str, path: str, body: bytes, headers: dict[str, str]) -> Callable[[Any], int]:
        def send(connection: http.client.HTTPConnection) -> int:
            connection.request(method, path, body, headers)
            answered = connection.getresponse()
            answered.read()
            return answered.status

        return send

    infer = f"/v2/models/{NAME}/infer"
    tensor = {"name": "images", "shape": [1, 3, 224, 224], "datatype": "FP32"}
    size = 4 * 3 * 224 * 224
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()
    binary = {"Inference-Header-Content-Length": str(len(header))}
    whole = header + bytes(size)
    image = sender("POST", "/v1/classify", target.picture, {"Content-Type": "image/png"})
    return [
        image,
        sender("POST", infer, whole, binary),
        image,
        sender("POST", "/v1/classify", target.picture[:200], {}),
        sender("GET", f"/v2/models/{NAME}", b"", {}),
        sender("POST", infer, b"{", {"Content-Type": "application/json"}),
        image,
        sender("GET", "/metrics", b"", {}),
        sender("POST", infer, whole[:-4], binary),
    ]
