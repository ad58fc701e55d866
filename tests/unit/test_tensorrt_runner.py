"""The runner of plans, over a fake device and a fake TensorRT: order of calls, changing batches, and giving back."""

from __future__ import annotations

import ctypes
import json
import sys
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy import builders
from sepvit_deploy.errors import DeviceError, InputError, PlanError
from sepvit_deploy.runners.tensorrt import TensorRtRunner
from tests.unit import fake_tensorrt
from tests.unit.fake_cuda import FakeCuda
from tests.unit.fake_tensorrt import SIDE, mask, model, plan

PROFILES = [[1, 1, 1], [2, 8, 8], [4, 16, 32]]
SIZES = [[[2, 2], [4, 6], [4, 12]], [[2, 2], [6, 4], [12, 4]], [[4, 4], [4, 4], [4, 4]]]
ANY_SIZE = plan([[1, 1, 4], [1, 1, 4], [1, 2, 8]], sizes=SIZES)
Make = Callable[..., TensorRtRunner]


def loaded(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
    trt = fake_tensorrt.module(cuda)
    monkeypatch.setattr(builders, "load", lambda builder: trt)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def make(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Make:
    loaded(monkeypatch, cuda)

    def runner(content: bytes | None = None, **more: object) -> TensorRtRunner:
        return TensorRtRunner(
            content or plan(PROFILES), name="t.plan", builder="tensorrt", cuda=cuda, **more  # type: ignore[arg-type]
        )  # fmt: skip

    return runner


def images(batch: int, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, *size), dtype=np.float32)


def assert_right(found: dict[str, np.ndarray], batch: np.ndarray) -> None:
    expected = model(batch)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values)


def test_copies_come_before_the_launch_and_one_wait_after_everything(make: Make, cuda: FakeCuda) -> None:
    with make() as runner:
        runner.run(images(8))
        cuda.calls.clear()
        _, timing = runner.run_timed(images(8))
        assert cuda.calls == [
            *("copy_to_device", "record", "enqueue", "record"),
            *("copy_to_host", "copy_to_host", "synchronize", "elapsed_ms"),
        ]
    assert timing.compute_ms == 1.25
    assert 0 <= timing.enqueue_ms <= timing.total_ms
    assert not cuda.live
    assert cuda.closed == 1


def test_buffers_are_made_once_for_each_profile(make: Make, cuda: FakeCuda) -> None:
    with make() as runner:
        for batch in (3, 8, 2, 5):
            runner.run(images(batch))
        assert cuda.calls.count("allocate") == cuda.calls.count("allocate_pinned") == 3
        runner.run(images(1))
        runner.run(images(20))
        assert cuda.calls.count("allocate") == 9


@pytest.mark.parametrize("graph", [False, True])
@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.integers(1, 32), min_size=1, max_size=8))
def test_any_sequence_of_batches_is_computed_right(graph: bool, batches: list[int]) -> None:
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        loaded(patch, cuda)
        with TensorRtRunner(plan(PROFILES), name="t", builder="tensorrt", cuda=cuda, cuda_graph=graph) as runner:
            found = []
            for seed, batch in enumerate(batches):
                found.append((runner.run(images(batch, seed)), images(batch, seed)))
            for outputs, given_images in found:  # after all runs: outputs are copies
                assert_right(outputs, given_images)
    assert not cuda.live


def test_the_profile_tuned_for_the_nearest_batch_runs(make: Make) -> None:
    with make() as runner:
        chosen = {batch: runner._loaded.profile_for((batch, 3, SIDE, SIDE)) for batch in (1, 2, 5, 8, 9, 32)}
    assert chosen == {1: 0, 2: 1, 5: 1, 8: 1, 9: 2, 32: 2}


def test_a_graph_is_captured_after_a_plain_run_and_then_launched(make: Make, cuda: FakeCuda) -> None:
    with make(cuda_graph=True) as runner:
        for seed in range(4):
            assert_right(runner.run(images(8, seed)), images(8, seed))
        assert cuda.calls.count("enqueue") == 2  # the plain run, and the one that is captured
        assert cuda.calls.count("launch") == 3
        runner.run(images(4))
        assert_right(runner.run(images(8, 9)), images(8, 9))
    assert not cuda.live


def test_a_capture_that_fails_is_an_error(make: Make, cuda: FakeCuda) -> None:
    with make(plan(PROFILES, fails_at_run=2), cuda_graph=True) as runner:
        runner.run(images(8))
        with pytest.raises(DeviceError, match=r"^t\.plan does not run: a kernel failed; type: sepvit-deploy doctor$"):
            runner.run(images(8))
        assert cuda.captured is None
    assert not cuda.live


def test_what_cannot_be_captured_is_an_error_before_it_is_tried(
    make: Make, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt.Context, "is_stream_capturable", lambda self, stream: False, raising=False)
    with make(cuda_graph=True) as runner:
        runner.run(images(8))
        with pytest.raises(DeviceError, match=r"t\.plan cannot be captured into a CUDA graph here"):
            runner.run(images(8))
    assert not cuda.live


def test_graphs_end_before_the_contexts_that_they_hold_kernels_of(
    make: Make, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[weakref.ref[object]] = []
    alive: list[bool] = []
    destroy = cuda.destroy_graph

    def destroyed(graph: int) -> None:
        alive.extend(context() is not None for context in contexts)
        destroy(graph)

    monkeypatch.setattr(cuda, "destroy_graph", destroyed)
    with make(cuda_graph=True) as runner:
        for _ in range(2):
            runner.run(images(8))
        contexts += [weakref.ref(slot.context) for slot in runner._slots.values()]
    assert alive == [True]
    assert contexts[0]() is None


@pytest.mark.parametrize("graph", [False, True])
def test_resident_batches_are_run_in_turn_without_a_copy_from_the_host(make: Make, cuda: FakeCuda, graph: bool) -> None:
    batches = [images(8, seed) for seed in range(3)]
    with make(cuda_graph=graph) as runner:
        once = runner.resident(batches)
        for k in range(5):
            cuda.calls.clear()
            ms, enqueue_ms = once(k)
            assert ms == 1.25
            assert enqueue_ms is not None and enqueue_ms >= 0
            launch = "launch" if graph and k else "enqueue"
            assert cuda.calls[-5:] == ["record", launch, "record", "synchronize", "elapsed_ms"]
            # A graph reads where it was captured; the copy comes before the events, and is no part of the time.
            assert cuda.calls[:1] == (["copy_on_device"] if graph else ["record"])
            assert not {"copy_to_device", "copy_to_host"} & set(cuda.calls)
            (slot,) = runner._slots.values()
            expected = model(batches[k % 3])["logits"]
            address = slot.outputs["logits"].device
            found = np.ctypeslib.as_array((ctypes.c_float * expected.size).from_address(address))
            np.testing.assert_array_equal(found, expected.ravel())
    assert not cuda.live
    with pytest.raises(InputError, match=r"t\.plan is closed"):
        once(0)


def test_a_resident_batch_survives_runs_of_another(make: Make) -> None:
    with make() as runner:
        of_8, of_3 = runner.resident([images(8)]), runner.resident([images(3, 1)])
        for once in (of_8, of_3, of_8, of_3):
            assert once(0)[0] == 1.25
        assert_right(runner.run(images(5, 2)), images(5, 2))


def test_layers_are_timed_without_the_first_run(make: Make) -> None:
    with make() as runner:
        document, layer_ms = runner.inspected(images(8), repeats=5)
        assert layer_ms == {"embed": 0.5, "block": 3.0}
        assert json.loads(document)["Layers"][0]["type"] == "Half", "the inspector was not told the shapes"
        assert_right(runner.run(images(8)), images(8))


def test_a_fixed_batch_is_the_only_one(make: Make) -> None:
    with make(plan([[2, 2, 2]], fixed=2)) as runner:
        assert runner.input_shape == (2, 3, SIDE, SIDE)
        assert_right(runner.run(images(2)), images(2))
        with pytest.raises(InputError, match=r"t\.plan was given float32 3 x 3 x 4 x 4; expected float32 2 x 3"):
            runner.run(images(3))


def test_a_batch_that_no_profile_takes(make: Make) -> None:
    with make(plan([[1, 1, 1], [4, 8, 8]])) as runner:
        assert runner.input_shape == (None, 3, SIDE, SIDE)
        for batch in (2, 9):
            words = rf"batch of {batch}; expected 1 or 4 to 8; build it with --profile 1,{batch},{batch}"
            with pytest.raises(InputError, match=words):
                runner.run(images(batch))
        assert_right(runner.run(images(8)), images(8))


@pytest.mark.parametrize(
    ("shape", "profile"),
    [
        ((1, 4, 12), 0),
        ((1, 12, 4), 1),
        ((1, 4, 5), 0),
        ((1, 3, 3), 0),  # as near to the second, which comes later
        ((2, 4, 4), 2),
        ((8, 4, 4), 2),
    ],
)
def test_the_profile_tuned_for_the_nearest_size_runs(make: Make, shape: tuple[int, int, int], profile: int) -> None:
    batch, height, width = shape
    with make(ANY_SIZE) as runner:
        assert runner.input_shape == (None, 3, None, None)
        assert [str(each) for each in runner.profiles][:2] == ["1,1,4@2x2,4x6,4x12", "1,1,4@2x2,6x4,12x4"]
        assert runner._loaded.profile_for((batch, 3, height, width)) == profile


@pytest.mark.parametrize("graph", [False, True])
@settings(max_examples=30, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(2, 12)), min_size=1, max_size=8))
def test_any_sequence_of_sizes_is_computed_right(graph: bool, shapes: list[tuple[int, int, int]]) -> None:
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        loaded(patch, cuda)
        with TensorRtRunner(ANY_SIZE, name="t", builder="tensorrt", cuda=cuda, cuda_graph=graph) as runner:
            for seed, (batch, *size) in enumerate(shapes):
                height, width = size if seed % 2 else reversed(size)
                batches = images(batch, seed, (height, width))
                for _ in range(3 if graph else 1):
                    (found,) = runner.run(batches).values()
                    assert found.dtype == np.uint8
                    np.testing.assert_array_equal(found, mask(batches)["mask"])
            if not graph:  # buffers are of the largest images: made once for each profile, whatever comes
                assert cuda.calls.count("allocate") == 2 * len(runner._slots)
    assert not cuda.live


@pytest.mark.parametrize("shape", [(1, 5, 13), (1, 1, 4), (5, 4, 6), (9, 4, 4)])
def test_a_size_that_no_profile_covers_is_named_with_the_build_that_would(
    make: Make, shape: tuple[int, int, int]
) -> None:
    batch, height, width = shape
    with make(ANY_SIZE) as runner:
        with pytest.raises(InputError) as caught:
            runner.run(images(batch, size=(height, width)))
        runner.run(images(4, size=(4, 12)))  # and the next one is not harmed
    assert str(caught.value) == (
        f"t.plan was given a batch of {batch} at {height}x{width}; expected 1 to 4 at 2x2 to 4x12 or 1 to 4 at 2x2 to "
        "12x4 or 1 to 8 at 4x4; type: sepvit-deploy build FILE.onnx --profile 1,1,4@2x2,4x6,4x12 "
        f"--profile 1,1,4@2x2,6x4,12x4 --profile 1,2,8@4x4,4x4,4x4 --profile {batch}@{height}x{width}"
    )


def test_resident_batches_of_any_size(make: Make) -> None:
    with make(ANY_SIZE) as runner:
        lying, standing = (runner.resident([images(1, size=size)]) for size in ((4, 12), (12, 4)))
        for once in (lying, standing, lying):
            assert once(0)[0] == 1.25
        document, _ = runner.inspected(images(1, size=(3, 9)))
        assert json.loads(document)["Layers"][0]["type"] == "Half"


def test_images_of_another_shape_or_type(make: Make) -> None:
    with make() as runner:
        for wrong in (images(2)[:, :1], images(2).astype(np.float64), images(2)[:0]):
            with pytest.raises(InputError, match=r"t\.plan was given"):
                runner.run(wrong)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"not a plan",
            r"TensorRT 11\.4\.0\.1 refuses t\.plan: the plan is damaged; .*; type: sepvit-deploy doctor PLAN",
        ),
        (plan(half="logits"), r"t\.plan has the tensors images FLOAT .*, logits HALF .*; expected one float32 image"),
        (plan(half="images"), r"has the tensors images HALF"),
        (plan(tensors=["images", "images2", "logits"]), r"has the tensors images FLOAT .*, images2 FLOAT"),
        (plan(tensors=["images"]), r"has the tensors images FLOAT"),
        (plan(host_code=True), r"refuses t\.plan: host code is not allowed"),
    ],
)
def test_plans_that_are_refused_leave_nothing_behind(make: Make, cuda: FakeCuda, content: bytes, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make(content)
    assert not cuda.live
    assert cuda.closed == 1


def test_a_version_compatible_plan_may_run_its_host_code(make: Make) -> None:
    with make(plan(host_code=True), version_compatible=True) as runner:
        assert_right(runner.run(images(1)), images(1))


def test_no_context_is_the_devices_fault(make: Make, cuda: FakeCuda) -> None:
    with make(plan(no_context=True)) as runner, pytest.raises(DeviceError, match=r"t\.plan gets no context"):
        runner.run(images(1))
    assert not cuda.live


def test_a_closed_runner_says_so_and_closes_once(make: Make, cuda: FakeCuda) -> None:
    runner = make()
    runner.run(images(1))
    runner.close()
    runner.close()
    assert cuda.closed == 1
    with pytest.raises(InputError, match=r"t\.plan is closed"):
        runner.run(images(1))


@pytest.mark.parametrize("graph", [False, True])
def test_a_failure_at_any_call_leaves_nothing_behind(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(cuda: FakeCuda) -> None:
        loaded(monkeypatch, cuda)
        with TensorRtRunner(plan(PROFILES), name="t", builder="tensorrt", cuda=cuda, cuda_graph=graph) as runner:
            for _ in range(3):
                assert_right(runner.run(images(8)), images(8))

    whole = FakeCuda()
    work(whole)
    assert whole._counted > 15
    for k in range(whole._counted):
        cuda = FakeCuda(fail_at=k)
        with pytest.raises(DeviceError, match="cudaErrorPlanted"):
            work(cuda)
        assert not cuda.live, f"call {k}"
        assert cuda.closed == 1
        work(FakeCuda())  # the next one is not harmed


def test_two_runners_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = FakeCuda(), FakeCuda()
    runners = []
    for cuda, profiles in zip(devices, (PROFILES, [[1, 4, 4]]), strict=True):
        loaded(monkeypatch, cuda)
        runners.append(TensorRtRunner(plan(profiles), name="t", builder="tensorrt", cuda=cuda))
    for batch in (1, 4, 2):
        for seed, runner in enumerate(runners):
            assert_right(runner.run(images(batch, seed)), images(batch, seed))
    runners[0].close()
    assert_right(runners[1].run(images(3)), images(3))
    runners[1].close()
    assert not devices[0].live
    assert not devices[1].live


def test_without_a_driver_nothing_is_deserialised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "load", lambda builder: pytest.fail("TensorRT was loaded without a driver"))
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU is seen here; expected a GPU and its driver; type: sepvit-"):
        TensorRtRunner(plan(), name="t", builder="tensorrt")
    assert "tensorrt" not in sys.modules
