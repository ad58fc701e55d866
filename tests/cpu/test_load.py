"""load against a server that fails in every way that it is told to."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sepvit_deploy.load import load
from tests.cpu.commands import PROGRAM, Done, call, complaint, environment
from tests.cpu.fake_v2 import Fake, fake_v2


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_v2() as fake:
        yield fake


def run(fake: Fake, *more: str | Path) -> Done:
    return call("load", fake.url, "--seconds", "0.5", *more)


def test_a_closed_loop_measures_what_the_server_counted(server: Fake) -> None:
    document = run(server, "--clients", "3", "--batch", "2", "--deadline-ms", "5000", "--json").document
    assert document["model"] == "tiny"
    assert document["sent"] == document["answered"] > 20
    assert document["refused"] == document["late"] == document["lost"] == 0
    assert document["mean_batch"] == 2.0
    assert document["within_deadline"][0] == 1.0
    assert 0 < document["p50_ms"] <= document["p99_ms"] <= document["max_ms"]
    assert document["images_per_s"] == 2 * document["requests_per_s"]
    assert document["generator"]["in_flight"] == 3
    assert document["generator"]["limit_per_s"] > document["requests_per_s"]
    assert server.timeouts == {5_000_000}
    assert server.count > document["sent"], "the warm-up is in no figure"


def test_an_open_loop_sends_at_its_rate(server: Fake) -> None:
    done = run(server, "--rate", "100")
    assert done.code == 0, done
    assert "100 requests/s, open loop" in done.out
    found = load(server.url, rate_per_s=100, seconds=1)
    assert found.sent == pytest.approx(100, abs=50)
    assert found.generator.lag_p99_ms is not None
    assert found.clients is None


def test_a_stall_shows_in_the_latency_of_an_open_loop(server: Fake) -> None:
    server.stall = (60, 0.5)
    found = load(server.url, rate_per_s=100, seconds=1)
    assert found.max_ms is not None
    assert found.max_ms > 400
    p90 = found.quantile_ms(0.9)
    assert p90 is not None
    assert p90 > 250, "requests that were due during the stall waited, too"


def test_pictures_go_to_the_model_that_takes_them(server: Fake, tmp_path: Path) -> None:
    for k in range(5):
        Image.new("RGB", (4 + 9 * k, 4), (40 * k, 0, 0)).save(tmp_path / f"{k}.png")
    server.models = ("tiny", "tiny_classify")
    for url in (server.url, f"{server.url}/v2/models/tiny", f"{server.url}/v2/models/tiny_classify"):
        document = call("load", url, "--images", tmp_path, "--seconds", "0.2", "--json").document
        assert (document["model"], document["sends"], document["lost"]) == ("tiny_classify", "pictures", 0)
    server.faults = {"wrong": 3}
    failed = call("load", server.url, "--images", tmp_path, "--seconds", "0.5", "--batch", "2")
    complaint(failed, "wrong answer (class", code=1)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong", "wrong answer (logits is not what the same request was answered before)"),
        ("nan", "wrong answer (logits is not finite)"),
        ("shape", "wrong answer (logits of another shape or type)"),
        ("garbage", "wrong answer (no answer of the protocol"),
        ("500", "HTTP 500 (told to answer 500)"),
        ("reset", "HTTP 500"),
        ("cut", "answer cut off"),
        ("hang", "no answer in 0.4 s"),
    ],
)
def test_an_answer_that_is_lost_or_wrong_fails_the_load(server: Fake, fault: str, words: str) -> None:
    server.faults = {fault: 10}
    failed = run(server, "--timeout", "0.4")
    complaint(failed, "tiny lost or got wrong", words, code=1)


def test_a_server_that_dies_is_noticed() -> None:
    script = Path(__file__).with_name("fake_v2.py")
    child = subprocess.Popen([sys.executable, "-P", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    killer = threading.Timer(1.0, child.kill)
    killer.start()
    failed = call("load", url, "--seconds", "1.5", "--clients", "4")
    killer.join()
    child.communicate()
    complaint(failed, "tiny lost or got wrong", "connection", code=1)


def test_refusals_and_deadlines_are_counted_apart(server: Fake) -> None:
    server.faults = {"503": 5, "504": 7}
    done = run(server, "--deadline-ms", "1000", "--json")
    assert done.code == 0, done
    document = done.document
    assert document["refused"] > 0
    assert document["late"] > 0
    assert document["sent"] == document["answered"] + document["refused"] + document["late"]
    assert document["within_deadline"][0] == pytest.approx(
        document["answered"] / (document["sent"] - document["refused"])
    )


def test_a_server_that_refuses_all_fails(server: Fake) -> None:
    server.faults, server.after = {"503": 1}, 16
    complaint(run(server), "answered none of", code=1)


def test_more_than_may_be_in_flight_is_said_loudly(server: Fake) -> None:
    server.delay_s = 0.2
    done = run(server, "--rate", "500", "--in-flight", "10")
    assert "warning: 10 requests were in flight, the most that may be" in done.err
    complaint(done, "requests were never sent: 10 were in flight; expected a server that carries 500", code=1)


def test_answers_that_cannot_be_told_apart_are_said(server: Fake) -> None:
    server.same = True
    done = run(server)
    assert done.code == 0
    assert "so alike that mixing them up would not show" in done.err


def test_a_model_is_chosen_only_where_one_will_do(server: Fake, tmp_path: Path) -> None:
    server.models = ("a", "b", "a_classify")
    complaint(run(server), "one FP32 input (B, 3, H, W): a, b; expected exactly one", "/v2/models/NAME")
    assert call("load", f"{server.url}/v2/models/b", "--seconds", "0.2").code == 0
    complaint(call("load", f"{server.url}/v2/models/c"), "has no model c; expected a, a_classify, b")
    complaint(call("load", f"{server.url}/v2/models/a_classify"), "has no model a_classify with one FP32 input")
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    complaint(call("load", f"{server.url}/v2/models/b", "--images", tmp_path), "no model b with image of type BYTES")
    server.no_index = True
    complaint(run(server), "does not list its models", "/v2/models/NAME")
    server.nameless = True
    complaint(run(server), "does not speak the v2 protocol")


def test_no_server_is_one_line(tmp_path: Path) -> None:
    complaint(call("load", "http://127.0.0.1:1"), "no server at http://127.0.0.1:1", "sepvit-deploy serve")
    complaint(call("load", "127.0.0.1:1"), "expected http://HOST:PORT")
    complaint(call("load", "http://127.0.0.1:1", "--rate", "5", "--clients", "5"), "one of them")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = call("load", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.2")
    complaint(done, "no server at", "no answer in time")


def test_a_server_that_fails_without_a_load_is_no_target(server: Fake, tmp_path: Path) -> None:
    server.faults, server.after = {"500": 1}, 0
    complaint(run(server), "tiny answers 500, without any load: told to answer 500")
    server.faults = {"nan": 1}
    complaint(run(server), "gives, without any load, logits is not finite")
    complaint(run(server, "--images", tmp_path), "with image of type BYTES: none; it has tiny")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_until_ctrl_c_is_shown(server: Fake, how: signal.Signals) -> None:
    command = [*PROGRAM, "load", server.url, "--seconds", "30"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 20
    while server.count < 100:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(2.2)  # beyond the warm-up
    child.send_signal(how)
    out, err = child.communicate(timeout=10)
    complaint(Done(child.returncode, out, err), "interrupted after", code=130)
    assert "requests/s" in out
    assert "p99" in out


def test_a_missing_extra_is_named(server: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.http", None)
    complaint(run(server), "tritonclient.http is not installed", "pip install 'sepvit-deploy[serving]'")
