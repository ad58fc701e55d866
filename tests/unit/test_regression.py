"""Results against older ones: what is refused, what fails, and how often that is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from sepvit_deploy.errors import InputError, RegressionFailed
from sepvit_deploy.latency import Accuracy, Conditions, Machine, Point, Range, Results
from sepvit_deploy.regression import compare
from tests.unit.latencies import engine, point, results


def run(ms: float = 10.0, seed: int = 0, **more: object) -> Results:
    return results(point(ms=ms, seed=seed, **more))  # type: ignore[arg-type]


def with_engine(**more: object) -> Results:
    return results(point(), engines=(engine("t.plan", **more),))


def refused(old: Results, new: Results, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        compare(old, new)


def test_two_runs_of_one_engine_do_not_differ_and_five_percent_is_found() -> None:
    verdicts = [compare(run(seed=2 * k), run(seed=2 * k + 1)).latencies[0].verdict for k in range(40)]
    assert verdicts.count("no difference") >= 38
    slower = [compare(run(seed=2 * k), run(10.5, seed=2 * k + 1)) for k in range(40)]
    assert sum(found.latencies[0].verdict == "slower" for found in slower) >= 38
    faster = compare(run(), run(9.0, seed=1))
    assert faster.latencies[0].verdict == "faster"
    assert faster.regressions == ()


def test_a_machine_that_is_slower_for_all_is_no_slower_engine() -> None:
    found = compare(run(), run(seed=1, pace=1.5)).latencies[0]
    assert found.paced
    assert found.new_ms > 1.3 * found.old_ms
    assert found.verdict == "no difference"


def test_without_a_common_pace_the_plain_times_are_compared() -> None:
    old, new = run(), run(seed=1, pace=1.5)
    for other in (replace(new, pace=None), replace(new, machine=versions(numpy="2.0.0"))):
        found = compare(old, other)
        assert not found.latencies[0].paced
        assert found.latencies[0].verdict == "slower"
        assert any("no common pace" in note for note in found.notes)


def versions(**more: str) -> Machine:
    return replace(results().machine, versions=more)


def test_the_gate_names_what_is_slower() -> None:
    found = compare(run(), run(11.0, seed=1))
    with pytest.raises(RegressionFailed, match=r"t\.plan at batch 8 is \d+\.\d% slower \(\+.*%\); expected nothing"):
        found.require_none()
    assert json.loads(json.dumps(found.to_dict()))["passed"] is False
    compare(run(), run(11.0, seed=1), fail_if_slower=0.2).require_none()


def test_one_slower_point_among_many_fails() -> None:
    batches = (1, 2, 4, 8, 16, 32, 64)
    old = results(*(point(batch=b, ms=b + 2.0) for b in batches))
    new = results(*(point(batch=b, ms=(b + 2.0) * (1.06 if b == 16 else 1.0), seed=1) for b in batches))
    found = compare(old, new)
    assert [change.batch for change in found.latencies if change.verdict != "no difference"] == [16]
    assert len(found.regressions) == 1


def test_a_point_that_is_gone_fails() -> None:
    found = compare(results(point(), point(batch=1)), results(point(seed=1)))
    assert found.regressions == ("t.plan at batch 1 is missing from the new results",)


@pytest.mark.parametrize(
    ("change", "reason"), [({"settled": False}, "never settled"), ({"complete": False}, "was cut short")]
)
def test_what_is_not_sound_is_not_judged_and_fails(change: dict[str, bool], reason: str) -> None:
    found = compare(run(), run(seed=1, **change))
    assert found.latencies[0].verdict == "not judged"
    assert found.regressions == (f"t.plan at batch 8 cannot be judged: the new one {reason}",)
    assert compare(run(**change), run(seed=1)).latencies[0].reason == f"the old one {reason}"


def test_a_file_that_grew() -> None:
    found = compare(with_engine(bytes=1000), with_engine(bytes=1020))
    assert found.regressions == ("t.plan is 2.0% larger (1,020 bytes, 1,000 before)",)
    assert compare(with_engine(bytes=1000), with_engine(bytes=1005)).regressions == ()
    assert compare(with_engine(bytes=1000), with_engine(bytes=900)).regressions == ()


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"INT8": 54, "FP16": 39}, {"INT8": 53, "FP16": 40}, "has 53 products in INT8, and had 54"),
        ({"FP16": 93}, {"FP16": 92, "FP32": 1}, "has 92 products in INT8 or FP16, and had 93"),
        ({"FP16": 93}, {"INT8": 54, "FP16": 39}, None),
    ],
)
def test_products_that_left_their_precision(before: dict[str, int], after: dict[str, int], text: str | None) -> None:
    found = compare(with_engine(products=before), with_engine(products=after))
    assert found.regressions == ((f"t.plan {text}",) if text else ())


def test_time_that_left_its_precision() -> None:
    found = compare(with_engine(precision_shares={"FP16": 0.9}), with_engine(precision_shares={"FP16": 0.8}))
    assert found.regressions == ("t.plan spends 80% of its time in FP16, and spent 90%",)
    assert compare(with_engine(precision_shares={"FP16": 0.9}), with_engine(precision_shares={})).regressions == ()


def test_accuracy_that_fell() -> None:
    def accuracy(top1: int, image_set: str = "imagenet") -> Results:
        return with_engine(accuracy=Accuracy(image_set, image_set, 50_000, top1))

    found = compare(accuracy(41_000), accuracy(40_000))
    assert len(found.regressions) == 1
    assert found.regressions[0].startswith("t.plan is right on 2.00 points fewer pictures (p = ")
    assert compare(accuracy(41_000), accuracy(40_990)).regressions == ()
    assert compare(accuracy(41_000), accuracy(42_000)).regressions == ()
    other = compare(accuracy(41_000), accuracy(30_000, "digits"))
    assert other.regressions == ()
    assert any("the accuracy of t.plan is not compared" in note for note in other.notes)


def test_what_cannot_be_compared() -> None:
    a = run()
    other = replace(a.machine, device="NVIDIA T4")
    refused(a, replace(a, machine=other), "the two are of different devices: NVIDIA L4 and NVIDIA T4; expected one")
    refused(a, replace(a, boundary="copies"), "the two are of different boundaries: compute and copies")
    refused(
        a,
        with_engine(builder_version="11.0.0.114"),
        "the two are of different major versions of TensorRT: 10 and 11; expected one",
    )
    refused(a, with_engine(threads=2), "t.plan and t.plan differ in threads: None and 2; expected the same engine")
    refused(a, with_engine(runtime="ONNX Runtime, CUDA"), "differ in runtime: TensorRT and ONNX Runtime, CUDA")
    refused(a, with_engine(cuda_graph=True), "differ in cuda graph: False and True")
    refused(results(point("s")), results(point("b"), engines=(engine("b", variant="b"),)), "differ in variant: t and b")
    two = results(point("a"), point("b"))
    refused(two, results(point("c"), point("d")), "the two have no engine in common: a, b; and c, d")
    compare(a, with_engine(builder_version="10.14.1"))


def test_the_only_engine_of_each_is_compared_under_any_name() -> None:
    found = compare(results(point("old.plan")), results(point("new.plan", ms=12.0, seed=1)))
    assert found.latencies[0].engine == "new.plan"
    assert len(found.regressions) == 1


def test_what_differs_is_noted() -> None:
    old = replace(run(), machine=versions(onnxruntime="1.31.0"))
    new = replace(run(seed=1), machine=replace(versions(onnxruntime="1.32.0"), driver="590.1"))
    notes = compare(old, new).notes
    assert "onnxruntime was 1.31.0 and is 1.32.0" in notes
    assert "the driver was 580.65.06 and is 590.1" in notes
    changed = compare(with_engine(sha256="0" * 64), with_engine(sha256="1" * 64)).notes
    assert "t.plan is another file than then" in changed


def test_an_engine_that_is_gone_fails() -> None:
    found = compare(results(point("a"), point("b")), results(point("a", seed=1)))
    assert found.regressions == ("b is missing from the new results",)


def test_too_few_stretches_for_many_points_are_not_judged() -> None:
    short = Point("t.plan", 8, (10.0,) * 5, (1,) * 5, pace_ms=(1.0,) * 5)
    found = compare(results(short), results(short))
    assert found.latencies[0].reason == "5 stretches of the new one are too few for so many points"


def test_another_clock_of_the_gpu_is_noted() -> None:
    old, new = (
        run(seed=k, conditions=Conditions(gpu_sm_mhz=Range(mhz, mhz, mhz))) for k, mhz in ((0, 1980), (1, 1410))
    )
    assert "the GPU ran t.plan at 1410 MHz, and then at 1980" in compare(old, new).notes
