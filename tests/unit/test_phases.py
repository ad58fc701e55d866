"""How far a build is: phases within phases become one share that never falls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.phases import Phases

NAMES = st.sampled_from("abc")
EVENTS = st.lists(
    st.tuples(st.just("start"), NAMES, NAMES | st.none(), st.integers(-1, 3))
    | st.tuples(st.just("step"), NAMES, st.integers(0, 5))
    | st.tuples(st.just("finish"), NAMES)
)


def shares(*events: tuple[object, ...]) -> list[float]:
    told: list[float] = []
    phases = Phases(told.append)
    for event, *arguments in events:
        getattr(phases, str(event))(*arguments)
    return told


def test_steps_of_one_phase() -> None:
    assert shares(("start", "a", None, 4), *(("step", "a", i) for i in range(4)), ("finish", "a")) == [
        0.25,
        0.5,
        0.75,
        1.0,
    ]


def test_a_phase_within_a_step_is_a_part_of_it() -> None:
    inner = (("start", "b", "a", 2), ("step", "b", 0), ("step", "b", 1), ("finish", "b"))
    told = shares(("start", "a", None, 2), ("step", "a", 0), *inner, ("step", "a", 1))
    assert told == [0.5, 0.75, 1.0]


def test_small_steps_are_not_told_one_by_one() -> None:
    told = shares(("start", "a", None, 10_000), *(("step", "a", i) for i in range(10_000)))
    assert len(told) <= 200
    assert told[-1] == pytest.approx(1.0, abs=0.005)


@given(EVENTS)
def test_whatever_is_reported_the_share_rises_within_0_and_1(events: list[tuple[object, ...]]) -> None:
    told = shares(*events)
    assert told == sorted(told)
    assert all(0 <= share <= 1 for share in told)
