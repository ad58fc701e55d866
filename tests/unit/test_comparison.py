"""Engines of one run against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.comparison import crossovers, ratio_of, ratios, scaling
from sepvit_deploy.latency import Point, Results
from tests.unit.latencies import engine, point, results


def test_a_ratio_is_taken_round_by_round_at_one_pace() -> None:
    """The machine slows to a third in the middle; both engines feel it, each in a turn of its own."""
    rng = np.random.default_rng(0)
    paces = [np.repeat([1.0, 3.0], 10) * rng.lognormal(0, 0.05, 20) for _ in range(2)]
    a, b = (
        Point(name, 8, tuple((ms * pace).tolist()), (1,) * 20, pace_ms=tuple(pace.tolist()))
        for name, ms, pace in (("a", 10.0, paces[0]), ("b", 9.8, paces[1]))
    )
    found = ratio_of(b, a)
    assert found.ratio == pytest.approx(0.98, abs=1e-9)
    assert found.resolved
    unpaced = ratio_of(*(Point(p.engine, 8, p.samples_ms, p.stretches) for p in (b, a)))
    assert not unpaced.resolved


def test_a_ratio_is_not_resolved_by_points_that_are_not_sound() -> None:
    a, b = point("a", ms=10.0), point("b", ms=5.0, seed=1)
    assert ratio_of(b, a).resolved
    assert not ratio_of(point("b", ms=5.0, seed=1, settled=False), a).resolved
    assert not ratio_of(b, point("a", ms=10.0, complete=False)).resolved
    short = Point("b", 8, (5.0,) * 4, (1,) * 4, pace_ms=(1.0,) * 4)
    assert not ratio_of(short, a).resolved, "four rounds"


def test_every_engine_is_held_against_the_first() -> None:
    found = ratios(results(*(point(n, b, ms=m) for n, m in (("a", 4.0), ("b", 2.0), ("c", 8.0)) for b in (1, 8))))
    assert [(r.engine, r.baseline, r.batch) for r in found] == [(n, "a", b) for n in "bc" for b in (1, 8)]
    assert [round(r.ratio, 1) for r in found] == [0.5, 0.5, 2.0, 2.0]
    assert ratios(results(point("a"))) == ()
    assert ratios(results()) == ()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), shift=st.sampled_from([1.0, 1.05]))
def test_intervals_hold_the_truth(seed: int, shift: float) -> None:
    found = ratio_of(point("b", ms=10.0 * shift, seed=2 * seed), point("a", ms=10.0, seed=2 * seed + 1))
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(shift, rel=0.02)


def curves(int8: dict[int, float], fp16: dict[int, float], fp32: dict[int, float] | None = None) -> Results:
    families = (("int8", int8), ("fp16", fp16), ("fp32", fp32 or {}))
    return results(
        *(
            point(f"t_{name}.plan", b, ms, seed=k)
            for k, (name, curve) in enumerate(families)
            for b, ms in curve.items()
        ),
        engines=tuple(engine(f"t_{name}.plan", precision=name) for name, curve in families if curve),
    )


def test_the_batch_from_which_int8_pays() -> None:
    (found,) = crossovers(curves({1: 1.3, 8: 4.0, 32: 10.0}, {1: 1.0, 8: 5.0, 32: 20.0}))
    assert (found.faster, found.slower, found.from_batch) == ("t_int8.plan", "t_fp16.plan", 8)
    assert (
        found.sentence
        == "INT8 is faster than FP16 from batch 8 on, and slower at batch 1: do not ship INT8 below batch 8"
    )


def test_a_batch_at_which_it_loses_again_counts() -> None:
    (found,) = crossovers(curves({1: 0.8, 8: 5.0, 32: 10.0}, {1: 1.0, 8: 4.0, 32: 20.0}))
    assert found.from_batch == 32


def test_never_and_always() -> None:
    never, always = crossovers(curves({1: 1.3, 8: 6.0}, {1: 1.0, 8: 5.0}, {1: 3.0, 8: 9.0}))
    assert never.from_batch is None
    assert never.sentence == "INT8 is slower than FP16 at batch 8: do not ship INT8 for speed"
    assert always.sentence == "FP16 is faster than FP32 at every batch measured, from 1 to 8"


def test_two_engines_of_one_precision_are_told_apart() -> None:
    found = crossovers(
        results(
            *(point(name, 8, ms, seed=k) for k, (name, ms) in enumerate((("a", 4.0), ("b", 6.0), ("c", 5.0)))),
            engines=(engine("a", precision="int8"), engine("b", precision="int8"), engine("c")),
        )
    )
    assert [crossover.sentence for crossover in found] == [
        "INT8 (a) is faster than FP16 at every batch measured, from 8 to 8",
        "INT8 (b) is slower than FP16 at batch 8: do not ship INT8 (b) for speed",
    ]


def test_what_is_not_resolved_is_no_crossover() -> None:
    (found,) = crossovers(curves({1: 1.0, 8: 5.0}, {1: 1.0, 8: 5.0}))
    assert found.from_batch is None
    assert found.sentence == "whether INT8 is faster than FP16 at batch 8 is not resolved: measure longer"
    (found,) = crossovers(curves({1: 1.0, 8: 4.0}, {1: 1.0, 8: 5.0}))
    assert found.sentence.startswith(
        "INT8 is faster than FP16 from batch 8 on, and not resolved to be faster at batch 1:"
    )


def test_a_run_that_was_cut_short_damns_no_precision() -> None:
    found = results(
        point("a", ms=2.0, complete=False), point("b", ms=4.0, seed=1, complete=False),
        engines=(engine("a", precision="int8"), engine("b")),
    )  # fmt: skip
    assert [c.sentence for c in crossovers(found)] == [
        "whether INT8 is faster than FP16 at batch 8 is not resolved: measure longer"
    ]


def test_only_one_model_on_one_runtime_has_a_crossover() -> None:
    a, b = point("a", ms=1.0), point("b", ms=2.0)
    for change in ({"variant": "s"}, {"runtime": "TensorRT-RTX"}, {"cuda_graph": True}, {"precision": "int8"}):
        engines = (engine("a", precision="int8"), engine("b", **change))
        assert crossovers(results(a, b, engines=engines)) == ()
    assert crossovers(results(a, b, engines=(engine("a", precision="int8"), engine("b")))) != ()


@settings(deadline=None)
@given(fixed=st.floats(0.0, 5.0), slope=st.floats(0.05, 5.0))
def test_a_line_is_found_again(fixed: float, slope: float) -> None:
    points = [point(batch=b, ms=fixed + slope * b, noise=1e-6, pace=1.0) for b in (1, 4, 16, 64)]
    exact = [Point(p.engine, p.batch, (fixed + slope * p.batch,), (1,)) for p in points]
    (found,) = scaling(results(*exact))
    assert found.fixed_ms == pytest.approx(fixed, abs=1e-6)
    assert found.per_image_ms == pytest.approx(slope, rel=1e-6)
    assert [pair[:2] for pair in found.marginal_ms] == [(1, 4), (4, 16), (16, 64)]
    assert found.marginal_ms[0][2] == pytest.approx(slope, rel=1e-6)


def test_what_is_no_line_is_not_called_one() -> None:
    plateau = (Point("t.plan", b, (ms,), (1,)) for b, ms in ((1, 2.0), (8, 2.1), (32, 8.0)))
    (found,) = scaling(results(*plateau))
    assert found.worst > 0.1
    assert found.sentence.startswith(
        "t.plan: no line; an image more costs 0.0143 ms between batch 1 and 8, and 0.246 ms"
    )
    assert scaling(results(point(batch=1), point(batch=8, settled=False))) == ()


def test_no_cost_is_below_nothing() -> None:
    (steep,) = scaling(results(*(Point("t.plan", b, (ms,), (1,)) for b, ms in ((1, 1.0), (8, 9.0)))))
    assert steep.fixed_ms == 0
    (falling,) = scaling(results(*(Point("t.plan", b, (ms,), (1,)) for b, ms in ((1, 2.0), (8, 1.0)))))
    assert falling.per_image_ms == 0
    assert scaling(results(point())) == ()
