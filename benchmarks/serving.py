"""The embedded server under load: what it reaches of the bare runner, and that it loses nothing.

    python benchmarks/serving.py [--quick] [--work serving-work]

Each bar is measured on a server process of its own, `sepvit-deploy serve`, over loopback, on a machine that the clients
share with it. Writes results/<machine>/serving.json and serving.md.

- throughput: 32 clients in a closed loop on the digits model, in turns with the bare runner in a process of its own at
  the mixture of batches that the server formed in that turn.
- memory: requests of every kind, bad ones included, on a graph of two nodes; resident memory read along the way.
- fuzz: requests drawn by hypothesis, half broken in their meaning, half in their bytes.
- overload: ten times the rate that the closed loop reached, as pictures, arrivals Poisson.
- termination: SIGTERM while clients send on connections that they keep.

--quick takes a tenth of each, to try the script.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from hypothesis import HealthCheck, Phase, given, seed, settings
from onnx import numpy_helper, parser

from sepvit_deploy.artifact import Parent, Passport, write_with_passport
from sepvit_deploy.confidence import median_interval
from sepvit_deploy.pipeline import Running, open_model
from sepvit_deploy.runners.batches import InBatches
from sepvit_deploy.spec import ModelSpec

from hostile_requests import Target, answer, damaged, describe, meanings, valid
from record import conditions, save

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "models" / "sepvit_lite_digits.safetensors"
PROGRAM = (sys.executable, "-P", "-c", "import sys; from sepvit_deploy.cli import main; sys.exit(main())")
NAME = "served"
CLIENTS, TURNS, TURN_S = 32, 7, 8.0
REQUESTS, DRAWS, OVERLOAD_S, KILLS = 100_000, 10_000, 60.0, 20
DEADLINE_MS = 2000.0
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass
class Served:
    """A running server, and what it has said."""

    port: int
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

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
        sys.exit("".join(said))
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        yield Served(int(found[1]), process, said)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        reader.join(5)
        process.stdout.close()


def main() -> None:
    """Measure each bar, and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--work", type=Path, default=Path("serving-work"))
    options = arguments.parse_args()
    share = 0.1 if options.quick else 1.0
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    digits, tiny = digits_model(work), tiny_model(work / "tiny.onnx")
    found: dict[str, Any] = {"conditions": conditions(1) | {"onnxruntime": onnxruntime.__version__}}
    found["throughput"] = show("throughput", throughput(digits, max(int(TURNS * share), 2), TURN_S * share**0.5))
    found["overload"] = show("overload", overload(digits, work, found["throughput"], OVERLOAD_S * share))
    found["termination"] = show("termination", termination(digits, work, max(int(KILLS * share), 3)))
    found["fuzz"] = show("fuzz", fuzz(tiny, picture(work), int(DRAWS * share)))
    found["memory"] = show("memory", memory(tiny, picture(work), int(REQUESTS * share)))
    if not options.quick:
        save("serving", found, markdown(found))
    print(markdown(found))


def show(name: str, row: dict[str, Any]) -> dict[str, Any]:
    print(f"{name}: {json.dumps(row)}", file=sys.stderr, flush=True)
    return row


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
    command = [sys.executable, __file__, "--bare", str(model), json.dumps(mixture), str(seconds)]
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
    codes: Counter[int] = Counter()
    content = picture(work)
    for turn in range(times):
        with served(model, "--threads", "1") as server:
            clients = [Client(server.port, content) for _ in range(16)]
            for client in clients:
                client.start()
            time.sleep(random.Random(turn).uniform(0.5, 1.5))
            server.process.send_signal(signal.SIGTERM)
            codes[server.process.wait(60)] += 1
            for client in clients:
                client.join(30)
                totals.update(client.seen)
    return {"times": times, "clients": 16, "exit_codes": dict(codes), **totals}


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

        def tried(data: bytes) -> None:
            try:
                status = answer(target, data)
            except (TimeoutError, ValueError) as error:
                status = None
                wrong.append(describe(data) | {"why": repr(error)})
            statuses["closed" if status is None else str(status)] += 1
            if status is not None and status >= 500:
                wrong.append(describe(data) | {"why": f"status {status}"})
            if sum(statuses.values()) % 500 == 0 and {answer(target, request) for request in good} != {200}:
                wrong.append({"why": "a valid request was not answered with 200"})

        for strategy in (meanings(target), damaged(target)):
            checked = given(strategy)(tried)
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
        codes: Counter[int] = Counter()

        def work() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            while True:
                with lock:
                    number = next(left, None)
                    if number is None:
                        break
                    if number % max(requests // 50, 1) == 0:
                        points.append((number, server.resident_mib()))
                code = kinds[number % len(kinds)](connection)
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
    return {
        "requests": requests,
        "codes": {str(code): count for code, count in sorted(codes.items())},
        "mib_after_a_tenth": settled[0],
        "mib_at_the_end": settled[-1],
        "median_first_half": float(np.median(settled[:half])),
        "median_second_half": float(np.median(settled[half:])),
        "points": points,
    }


def kinds_of_request(target: Target) -> list[Callable[[http.client.HTTPConnection], int]]:
    """Nine kinds that are answered with 200 or 400, in their turn."""

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


def markdown(found: dict[str, Any]) -> str:
    """The bars, what was reached, and whether that is enough."""
    where = found["conditions"]
    rate, over, ended = found["throughput"], found["overload"], found["termination"]
    fuzzed, held = found["fuzz"], found["memory"]
    low, high = rate["ratio_interval"]
    refused = [*(key for key in ended if key.startswith("status")), *(key for key in ended if key.startswith("lost"))]
    grown = held["mib_at_the_end"] - held["mib_after_a_tenth"]
    growth = held["median_second_half"] / held["median_first_half"] - 1
    bad = sum(count for code, count in fuzzed["statuses"].items() if code.startswith("5"))
    answered_late = over["p99_ms"] is None or over["p99_ms"] > over["deadline_ms"]
    rows = [
        (
            f"{rate['clients']} clients against the bare runner at the batches formed",
            "at least 0.90",
            f"{rate['ratio']:.3f} ({low:.3f} to {high:.3f}), mean batch {rate['mean_batch']:.1f}, "
            f"{rate['images_per_s']:.0f} images/s",
            rate["ratio"] >= 0.9,
        ),
        (
            f"resident memory over {held['requests']:,} requests of nine kinds",
            "flat",
            f"{held['mib_after_a_tenth']:.0f} MiB after a tenth, {held['mib_at_the_end']:.0f} at the end; "
            f"second half over first: {growth:+.1%}",
            abs(growth) < 0.02 and grown < 10 and not any(code.startswith("5") for code in held["codes"]),
        ),
        (
            f"{fuzzed['requests']:,} requests of hypothesis, half in meaning, half in bytes",
            "no 5xx, no crash",
            f"{bad} of 5xx, {fuzzed['tracebacks']} tracebacks, {fuzzed['wrong_count']} wrong; "
            + ", ".join(f"{code}: {count:,}" for code, count in fuzzed["statuses"].items()),
            not bad and fuzzed["alive"] and not fuzzed["wrong_count"] and not fuzzed["tracebacks"],
        ),
        (
            f"ten times the load for {over['seconds']:.0f} s ({over['rate_per_s']:.0f} pictures/s, Poisson)",
            f"right or 503; p99 of the accepted within {over['deadline_ms']:.0f} ms",
            f"{over['answered']:,} right, {over['refused']:,} refused, {over['late']:,} late, "
            f"{over['lost']} lost or wrong; p99 {over['p99_ms']:.0f} ms",
            not over["lost"] and not answered_late and not over["tracebacks"],
        ),
        (
            f"SIGTERM under the load of {ended['clients']} clients, {ended['times']} times",
            "every accepted request answered",
            f"{ended.get('answered', 0):,} answered, "
            + (", ".join(f"{key}: {ended[key]}" for key in refused) or "none lost")
            + f"; exit codes {', '.join(map(str, ended['exit_codes']))}",
            not refused and list(ended["exit_codes"]) in ([0], ["0"]),
        ),
    ]
    lines = [
        f"`sepvit-deploy serve`, ONNX Runtime {where['onnxruntime']} on {where['device']}, {where['cores']} cores that "
        "the clients share; one thread for the model. Made by `python benchmarks/serving.py`.",
        "",
        "| what | asked | reached | |",
        "|---|---|---|---|",
        *(f"| {what} | {asked} | {got} | {'yes' if good else '**no**'} |" for what, asked, got, good in rows),
        "",
        "Throughput, overload and termination on SepViT-Lite trained on the digits, in FP32; memory and fuzz on a "
        "graph of two nodes, where the server is all that a request costs.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        print(bare(Path(sys.argv[2]), {int(k): v for k, v in json.loads(sys.argv[3]).items()}, float(sys.argv[4])))
    else:
        main()
