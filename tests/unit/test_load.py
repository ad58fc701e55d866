"""A load's arithmetic: arrivals, what counts as right, and the figures."""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy import masks
from sepvit_deploy.errors import LoadFailed, OptionError
from sepvit_deploy.load.answers import alike, difference, unfit
from sepvit_deploy.load.arrivals import Sent, closed_loop, open_loop, poisson
from sepvit_deploy.load.plan import Plan
from sepvit_deploy.load.result import Generator, LoadResult, quantiles, within
from sepvit_deploy.load.server import Address, said
from sepvit_deploy.load.tally import Tally


@given(st.floats(1, 5000), st.floats(0.1, 5))
def test_arrivals_are_in_order_and_within_the_time(rate: float, seconds: float) -> None:
    times = poisson(rate, seconds)
    assert all(0 <= at < seconds for at in times)
    assert list(times) == sorted(times)
    assert abs(len(times) - rate * seconds) < 6 * (rate * seconds) ** 0.5 + 6


def test_gaps_between_arrivals_are_exponential() -> None:
    gaps = np.diff(np.array(poisson(100, 100)))
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(0.01, rel=0.1)


def test_a_stalled_server_is_not_excused() -> None:
    """One request in flight, and each takes 50 ms: the last of ten that were due at once is 500 ms late."""
    waited: list[float] = []

    async def send(k: int, due: float) -> bool:
        await asyncio.sleep(0.05)
        waited.append(time.perf_counter() - due)
        return True

    async def run() -> Sent:
        sent, now = Sent(), time.perf_counter()
        await open_loop(send, now, array("d", [0.0] * 10), now + 10, 1, sent)
        return sent

    sent = asyncio.run(run())
    assert len(waited) == 10
    assert waited[-1] >= 0.5
    assert (sent.held, sent.unsent) == (9, 0)
    assert max(sent.lags_ms) >= 450


def test_requests_that_never_went_are_counted() -> None:
    async def send(k: int, due: float) -> bool:
        await asyncio.sleep(0.3)
        return True

    async def run() -> Sent:
        sent, now = Sent(), time.perf_counter()
        await open_loop(send, now, array("d", [0.0] * 10), now + 0.1, 2, sent)
        return sent

    assert asyncio.run(run()).unsent == 8


def test_clients_wait_for_their_answers() -> None:
    flying = most = 0

    async def send(k: int, due: float) -> bool:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.005)
        flying -= 1
        return k % 2 == 0

    asyncio.run(closed_loop(send, 3, time.perf_counter() + 0.1))
    assert most == 3


@pytest.mark.parametrize(
    ("url", "base", "model"),
    [
        ("http://host:8000", "http://host:8000", None),
        ("http://host:8000/", "http://host:8000", None),
        ("https://host/v2", "https://host", None),
        ("http://[::1]:80/v2/models/sepvit_t", "http://[::1]:80", "sepvit_t"),
        ("http://h/v2/models/a%20b/infer", "http://h", "a b"),
    ],
)
def test_an_address_names_a_server_and_maybe_a_model(url: str, base: str, model: str | None) -> None:
    assert Address.parse(url) == Address(base, model)


@pytest.mark.parametrize(
    "url", ["host:8000", "grpc://host:8001", "http://", "http://h:99999", "http://h/v1", "http://h/v2?x", "http://[x"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(OptionError, match="expected http://HOST:PORT"):
        Address.parse(url)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"clients": 0}, "--clients 0"),
        ({"clients": None, "rate_per_s": 0.0}, "--rate 0"),
        ({"rate_per_s": 5.0}, "--rate with --clients"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"batch": 0}, "--batch 0"),
        ({"deadline_ms": -1.0}, "--deadline-ms -1"),
        ({"tolerance": 2.0}, "--tolerance 2"),
    ],
)
def test_a_plan_is_validated(values: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Plan(**values)


LOGITS = {"logits": np.array([[10.0, -2.0, 1.0]], np.float32)}


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (LOGITS, None),
        ({"logits": LOGITS["logits"] + np.float32(0.19)}, None),
        ({"logits": LOGITS["logits"] + np.float32(0.21)}, "not what the same request was answered before"),
        ({"logits": LOGITS["logits"][:, ::-1]}, "not what the same request"),
        ({"logits": LOGITS["logits"][:, :2]}, "another shape"),
        ({"logits": LOGITS["logits"].astype(np.float64)}, "shape or type"),
        ({"other": LOGITS["logits"]}, "outputs other"),
    ],
)
def test_logits_are_held_against_those_without_a_load(outputs: dict[str, Any], found: str | None) -> None:
    said = difference(LOGITS, outputs)
    assert said is None if found is None else found in str(said)


def mask_png(mask: np.ndarray) -> np.ndarray:
    return np.array([[masks.mask_png(mask, masks.palette(9))]], np.object_)


MASK = np.zeros((1, 10, 10), np.uint8)
OTHER = {share: np.arange(100).reshape(1, 10, 10) < share for share in (2, 3, 100)}


@pytest.mark.parametrize(
    ("share", "right"), [(0, True), (2, True), (3, False), (100, False)], ids=lambda value: str(value)
)
def test_masks_are_held_against_those_without_a_load_by_pixels(share: int, right: bool) -> None:
    """Two in a hundred may differ, by however much."""
    other = np.where(OTHER[share], 8, MASK).astype(np.uint8) if share else MASK
    assert (difference({"mask": MASK}, {"mask": other}) is None) == right
    assert (difference({"mask": mask_png(MASK[0])}, {"mask": mask_png(other[0])}) is None) == right


def test_a_mask_of_another_size_or_that_is_none_is_wrong() -> None:
    reference = {"mask": mask_png(MASK[0])}
    whole = reference["mask"].item()
    # An empty chunk iCCP after the pixels, on which Pillow's own decoder trips.
    damaged = whole[:-12] + struct.pack(">I4sI", 0, b"iCCP", zlib.crc32(b"iCCP")) + whole[-12:]
    for other in (mask_png(MASK[0, :9]), *(np.array([[each]], np.object_) for each in (damaged, b"no PNG"))):
        assert "mask is not what" in str(difference(reference, {"mask": other}))
    assert difference({"mask": other}, {"mask": other}) is None


def classes(ids: list[int], scores: list[float], labels: list[str] | None = None) -> dict[str, Any]:
    names = [[(labels[i] if labels else f"label {k}").encode() for i, k in enumerate(ids)]]
    return {
        "class": np.array([ids]),
        "label": np.array(names, np.object_),
        "score": np.array([scores], np.float32),
    }


CLASSES = classes([3, 7, 1], [0.5, 0.3, 0.1])


@pytest.mark.parametrize(
    ("outputs", "right"),
    [
        (classes([3, 7, 1], [0.51, 0.29, 0.1]), True),
        (classes([3, 7, 2], [0.5, 0.3, 0.105]), True),  # of two that are as good, either may come last
        (classes([7, 3, 1], [0.5, 0.3, 0.1]), False),
        (classes([3, 7, 2], [0.5, 0.3, 0.15]), False),
        (classes([3, 7, 1], [0.5, 0.3, 0.2]), False),
        (classes([3, 7, 1], [0.5, 0.3, 0.1], ["label 3", "label 7", "cat"]), False),
    ],
)
def test_classes_are_held_against_those_without_a_load(outputs: dict[str, Any], right: bool) -> None:
    assert (difference(CLASSES, outputs) is None) == right


def test_outputs_of_another_form_are_named() -> None:
    assert unfit(LOGITS, 1) is None
    assert unfit(LOGITS, 2) == "logits of shape 1 x 3 for 2 images"
    assert unfit({"logits": np.array([[np.inf]], np.float32)}, 1) == "logits is not finite"
    assert unfit({"logits": np.zeros((1, 0), np.float32)}, 1) is not None


def test_requests_whose_answers_are_alike_are_noticed() -> None:
    other = {"logits": np.array([[-10.0, 2.0, 1.0]], np.float32)}
    assert not alike([LOGITS, other])
    assert alike([LOGITS, other, {"logits": LOGITS["logits"] + np.float32(0.3)}])


def test_refusals_and_deadlines_are_no_failures() -> None:
    tally = Tally()
    for status, words in [
        (503, "the queue is full"),
        (429, ""),
        (503, "Request timeout expired"),
        (504, ""),
        (500, "x"),
    ]:
        tally.status(status, words)
    assert (tally.refused, tally.late, dict(tally.failed), tally.examples) == (2, 2, {"HTTP 500": 1}, {"HTTP 500": "x"})


def test_what_a_server_says_is_one_line() -> None:
    assert said(b'{"error": "no\\n such model"}') == "no such model"
    assert said(b"<html>\n  <b>no</b>") == "<html> <b>no</b>"
    assert said(b"\xff\x00" * 500) != ""
    assert said(b"") == "nothing"


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=300))
def test_an_interval_holds_its_quantile(latencies: list[float]) -> None:
    for found in quantiles(array("d", latencies)):
        assert min(latencies) <= found.low_ms <= max(latencies)
        assert min(latencies) <= found.ms <= max(latencies)
        assert found.high_ms is None or found.high_ms >= found.low_ms
        assert found.share == 0.5 or found.low_ms <= found.ms
    assert quantiles([]) == ()


def test_a_high_quantile_of_few_answers_has_no_upper_bound() -> None:
    assert quantiles(array("d", range(1, 101)))[-1].high_ms is None
    assert quantiles(array("d", range(1, 10001)))[-1].high_ms is not None


def test_the_share_within_a_deadline_counts_what_was_never_answered() -> None:
    share, low, high = within([1, 2, 30], 10, 4)
    assert (share, low < 0.5 < high) == (0.5, True)
    assert within([], 10, 0) == (0.0, 0.0, 1.0)


def result(**changes: Any) -> LoadResult:
    values: dict[str, Any] = {
        "url": "http://h", "model": "m", "sends": "tensors", "clients": None, "rate_per_s": 5.0, "batch": 2,
        "deadline_ms": None, "seconds": 1.0, "sent": 10, "answered": 10, "refused": 0, "late": 0, "failed": {},
        "examples": {}, "warm_up_failed": {}, "requests_per_s": 10.0, "latencies": quantiles([1.0, 2.0]),
        "mean_ms": 1.5, "max_ms": 2.0, "mean_batch": None, "within_deadline": None, "told_apart": True,
        "generator": Generator(0.1, 100.0, None, 0, 0, 8), "interrupted": False,
    }  # fmt: skip
    return LoadResult(**(values | changes))


def test_a_result_is_plain_json_and_has_its_figures() -> None:
    import json

    document = json.loads(json.dumps(result().to_dict(), allow_nan=False))
    assert (document["images_per_s"], document["p50_ms"], document["lost"]) == (20.0, 1.5, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"failed": {"wrong answer": 2}, "examples": {"wrong answer": "nan"}}, "2 of 10 answers: wrong answer (nan)"),
        ({"warm_up_failed": {"connection lost": 1}}, "1 of 10 answers: connection lost"),
        ({"generator": Generator(0.1, None, None, 9, 5, 512)}, "5 requests were never sent: 512 were in flight"),
        ({"answered": 0, "refused": 10}, "answered none of 10"),
    ],
)
def test_what_is_lost_or_wrong_fails(changes: dict[str, Any], words: str) -> None:
    result().require_right()
    with pytest.raises(LoadFailed) as failed:
        result(**changes).require_right()
    assert words in str(failed.value)


def test_refusals_alone_are_no_failure() -> None:
    result(sent=20, refused=10).require_right()


def test_doubts_are_said() -> None:
    assert result().warnings == ()
    loud = result(generator=Generator(0.95, 10.0, 3.0, 7, 2, 512), told_apart=False, warm_up_failed={"x": 1})
    assert [words in " ".join(loud.warnings) for words in ("512 requests were in flight", "95%", "alike", "warm-up")]
    assert len(loud.warnings) == 4
