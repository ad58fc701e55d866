"""Any number of images through a runner that takes certain batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.building import Profile
from sepvit_deploy.runners.batches import InBatches


class Fake:
    """Gives the image numbers that it is given; refuses batches that it does not take."""

    name = "fake"

    def __init__(self, fixed: int | None = None) -> None:
        self.input_shape: tuple[int | None, ...] = (fixed, 3, 1, 1)
        self.seen: list[list[int]] = []

    def takes(self, batch: int) -> bool:
        return self.input_shape[0] in (None, batch)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert self.takes(len(images))
        self.seen.append(images[:, 0, 0, 0].astype(int).tolist())
        return {"logits": images[:, :, 0, 0].copy()}


class Engine(Fake):
    def __init__(self, profiles: list[tuple[int, int]]) -> None:
        super().__init__(profiles[0][0] if len({n for p in profiles for n in p}) == 1 else None)
        self.profiles = tuple(Profile(low, low, high) for low, high in profiles)

    def takes(self, batch: int) -> bool:
        return any(profile.minimum <= batch <= profile.maximum for profile in self.profiles)


class AnySize(Engine):
    """Of two sizes: few that lie, more that stand."""

    def __init__(self) -> None:
        super().__init__([(1, 2), (4, 8)])
        self.input_shape = (None, 3, None, None)
        self.profiles = (Profile.parse("1,1,2@1x1,1x2,1x2"), Profile.parse("4,8,8@1x1,2x1,2x1"))

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        size = (images.shape[2], images.shape[3])
        assert any(p.covers_size(size) and p.minimum <= len(images) <= p.maximum for p in self.profiles)
        return super().run(images)


def numbered(count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, 1, 1)).copy()


@given(
    profiles=st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda p: (p[0], sum(p))), min_size=1, max_size=3
    ),
    count=st.integers(1, 40),
)
def test_every_image_is_run_once_in_batches_that_a_profile_takes(profiles: list[tuple[int, int]], count: int) -> None:
    engine = Engine(profiles)
    found = InBatches(engine).run(numbered(count))["logits"]
    np.testing.assert_array_equal(found, numbered(count)[:, :, 0, 0])
    real = [number for batch in engine.seen for number in dict.fromkeys(batch)]
    assert real == list(range(count))


@pytest.mark.parametrize(
    ("runner", "count", "batches"),
    [
        (Fake(), 7, [7]),
        (Fake(4), 7, [4, 4]),
        (Fake(4), 4, [4]),
        (Engine([(1, 32)]), 7, [7]),
        (Engine([(1, 4)]), 7, [4, 3]),
        (Engine([(4, 8)]), 3, [4]),
        (Engine([(4, 8)]), 19, [8, 8, 4]),
        (Engine([(1, 1), (4, 8)]), 10, [8, 1, 1]),
        (Engine([(8, 8)]), 9, [8, 8]),
    ],
)
def test_batches_are_as_large_as_they_may_be(runner: Fake, count: int, batches: list[int]) -> None:
    InBatches(runner).run(numbered(count))
    assert [len(batch) for batch in runner.seen] == batches


def test_the_fill_brings_no_other_image() -> None:
    engine = Engine([(4, 8)])
    InBatches(engine).run(numbered(10))
    assert engine.seen == [list(range(8)), [8, 9, 9, 9]]


@pytest.mark.parametrize(("size", "batches"), [((1, 2), [2, 2, 1]), ((2, 1), [5]), ((1, 1), [5])])
def test_batches_are_those_of_the_profiles_that_cover_the_size(size: tuple[int, int], batches: list[int]) -> None:
    engine = AnySize()
    images = np.broadcast_to(numbered(5), (5, 3, *size))
    found = InBatches(engine).run(images)["logits"]
    np.testing.assert_array_equal(found, numbered(5)[:, :, 0, 0])
    assert [len(batch) for batch in engine.seen] == batches


def test_a_size_that_no_profile_covers_is_for_the_runner_to_refuse() -> None:
    with pytest.raises(AssertionError):  # as the fake does
        InBatches(AnySize()).run(np.broadcast_to(numbered(1), (1, 3, 2, 2)))
