"""The queue before a device: who is batched with whom, who is passed over, and what a failing model does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sepvit_deploy.building import Profile
from sepvit_deploy.errors import DeviceError, GraphError, InputError, SepvitError
from sepvit_deploy.server.batcher import Batcher, Result
from sepvit_deploy.server.lane import Lane, Model
from sepvit_deploy.server.refusal import ClientGone, Refusal
from sepvit_deploy.server.reload import require_alike
from sepvit_deploy.server.run import serve
from sepvit_deploy.server.settings import Settings
from sepvit_deploy.spec import ModelSpec

SPEC = ModelSpec("lite", "classify", (224, 224), 3)


class Device:
    """Gives each image's first number; remembers batches and threads, waits while it is held, fails when told to."""

    name = "device"
    input_shape: tuple[int | None, ...] = (None, 3, 224, 224)

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.error: SepvitError | None = None
        self.free = threading.Event()
        self.free.set()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.threads.add(threading.get_ident())
        self.free.wait(5)
        if self.error:
            raise self.error
        self.batches.append(len(images))
        return {"logits": np.repeat(images[:, :1, 0, 0], 3, axis=1)}


class Engine(Device):
    profiles = (Profile(2, 2, 4),)


def images(*numbers: float) -> np.ndarray:
    return np.broadcast_to(np.array(numbers, np.float32)[:, None, None, None], (len(numbers), 3, 224, 224))


async def never() -> None:
    await asyncio.Event().wait()


class Desk:
    """A batcher over a device, and a way to ask it."""

    def __init__(self, device: Device, batcher: Batcher, lane: Lane, failures: list[SepvitError]) -> None:
        self.device, self.batcher, self.lane, self.failures = device, batcher, lane, failures

    async def ask(
        self,
        *numbers: float,
        within_s: float = 5,
        gone: Callable[[], Awaitable[Any]] = never,
        version: int | None = None,
    ) -> Result:
        with self.batcher.place(len(numbers), time.perf_counter() + within_s) as place:
            return await self.batcher.run(place, images(*numbers), gone, version)


def source(device: Device, spec: ModelSpec = SPEC, sha256: str = "0") -> Callable[[], Any]:
    @contextlib.contextmanager
    def opened() -> Iterator[Model]:
        device.threads.add(threading.get_ident())
        yield Model(device, spec, spec.preprocessing, sha256, "test")
        device.threads.add(threading.get_ident())

    return opened


@contextlib.asynccontextmanager
async def desk(device: Device | None = None, *, delay_s: float = 0.02, max_queue: int = 8) -> AsyncIterator[Desk]:
    device = device or Device()
    lane = Lane(source(device), 1)
    await lane.open(4)
    device.batches.clear()
    failures: list[SepvitError] = []
    batcher = Batcher(
        lane, delay_s=delay_s, max_queue=max_queue, batched=lambda version, images, s: None, failed=failures.append
    )
    work = asyncio.create_task(batcher.work())
    try:
        yield Desk(device, batcher, lane, failures)
    finally:
        work.cancel()
        device.free.set()
        await lane.close()


async def busy(found: Desk) -> asyncio.Task[Result]:
    """Hold the device with one image."""
    found.device.free.clear()
    task = asyncio.create_task(found.ask(0.0))
    while found.batcher.waiting or not task:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    return task


def test_requests_that_come_together_run_together_and_each_gets_its_own() -> None:
    async def scene() -> None:
        async with desk() as found:
            first, second = await asyncio.gather(found.ask(1.0), found.ask(2.0, 3.0))
            assert found.device.batches == [3]
            assert first.outputs["logits"].tolist() == [[1, 1, 1]]
            assert second.outputs["logits"].tolist() == [[2, 2, 2], [3, 3, 3]]
            assert (first.batch, second.batch, first.version) == (3, 3, 1)
            assert first.queue_s >= 0.019
            assert len(found.device.threads) == 1, "opened and run in one thread"
        assert len(found.device.threads) == 1, "and closed there"

    asyncio.run(scene())


def test_a_full_batch_does_not_wait_and_whole_requests_keep_their_order() -> None:
    async def scene() -> None:
        async with desk(delay_s=0.3) as found:
            started = time.perf_counter()
            await asyncio.gather(found.ask(1.0, 1.0, 1.0), found.ask(2.0, 2.0), found.ask(3.0, 3.0))
            assert found.device.batches == [3, 4], "the second does not fit, so the first goes, and is not overtaken"
            assert time.perf_counter() - started < 0.25

    asyncio.run(scene())


SEGMENT = ModelSpec("lite", "segment", (8, 16), 3, head="fpn", output="mask", any_size=True)


class Free(Device):
    """A mask of any size, but no square."""

    input_shape = (None, 3, None, None)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if images.shape[2] == images.shape[3]:
            raise GraphError("a square")
        self.batches.append(len(images))
        return {"mask": images[:, 0].astype(np.uint8)}


def test_images_of_one_size_run_together_and_a_size_that_fails_is_no_fault_of_the_models() -> None:
    async def scene() -> None:
        device, failures = Free(), []
        lane = Lane(source(device, replace(SEGMENT, num_classes=5)), 1)
        await lane.open(4)
        assert (lane.outputs, lane.types, lane.output_bytes) == ({"mask": (None, None)}, {"mask": "UINT8"}, 128)
        device.batches.clear()
        batcher = Batcher(
            lane, delay_s=0.05, max_queue=20, batched=lambda version, images, s: None, failed=failures.append
        )

        async def ask(number: int, height: int, width: int) -> Any:
            with batcher.place(1, time.perf_counter() + 5) as place:
                result = await batcher.run(place, np.full((1, 3, height, width), number, np.float32), never)
            return result.outputs["mask"]

        work = asyncio.create_task(batcher.work())
        asked = [ask(k, *size) for k, size in enumerate([(8, 16), (4, 2), (8, 16), (4, 2), (8, 16)])]
        for k, found in enumerate(await asyncio.gather(*asked)):
            assert (found == k).all()
        assert device.batches == [3, 2]
        for _ in range(4):
            with pytest.raises(Refusal, match="does not take images of 5x5 pixels") as caught:
                await ask(0, 5, 5)
            assert caught.value.status == 400
        assert (lane.failures, failures) == (0, [])
        work.cancel()
        await lane.close()

    asyncio.run(scene())


def test_a_model_that_is_not_what_its_passport_says_does_not_open() -> None:
    logits = replace(SEGMENT, output="logits")
    for spec in (logits, replace(logits, any_size=False)):
        with pytest.raises(InputError, match="gives mask of uint8 8x16; expected logits of float32 3x2x4"):
            asyncio.run(Lane(source(Free(), spec), 1).open(4))
    with pytest.raises(InputError, match="has 70000 classes; expected at most 65536"):
        asyncio.run(Lane(source(Free(), replace(logits, num_classes=70_000)), 1).open(4))


def test_an_engine_gets_batches_that_it_takes() -> None:
    async def scene() -> None:
        async with desk(Engine()) as found:
            assert found.lane.max_batch == 4
            result = await found.ask(7.0)
            assert found.device.batches == [2], "filled up to the profile's minimum"
            assert result.outputs["logits"].tolist() == [[7, 7, 7]]
            assert result.batch == 1

    asyncio.run(scene())


def test_beyond_the_queue_it_is_503_with_a_time() -> None:
    async def scene() -> None:
        async with desk(max_queue=4) as found:
            holding = await busy(found)
            waiting = asyncio.create_task(found.ask(1.0, 1.0, 1.0))
            await asyncio.sleep(0.01)
            with pytest.raises(Refusal, match="the queue is full: 3 images wait, of at most 4") as caught:
                await found.ask(2.0, 2.0)
            assert (caught.value.status, caught.value.retry_s) == (503, 1)
            found.device.free.set()
            await asyncio.gather(holding, waiting)
            assert found.batcher.waiting == 0

    asyncio.run(scene())


def test_who_left_or_waited_too_long_is_not_computed() -> None:
    async def scene() -> None:
        async with desk() as found:
            holding = await busy(found)
            leaving = asyncio.Event()
            gone = asyncio.create_task(found.ask(1.0, gone=leaving.wait))
            late = asyncio.create_task(found.ask(2.0, within_s=0.1))
            patient = asyncio.create_task(found.ask(3.0))
            await asyncio.sleep(0.01)
            leaving.set()
            with pytest.raises(ClientGone):
                await gone
            with pytest.raises(Refusal, match="the deadline has passed") as caught:
                await late
            assert caught.value.status == 503
            found.device.free.set()
            await asyncio.gather(holding, patient)
            assert found.device.batches == [1, 1]
            assert found.batcher.waiting == 0

    asyncio.run(scene())


def test_a_failing_model_is_500_said_once_a_batch_and_can_recover() -> None:
    async def scene() -> None:
        async with desk() as found:
            found.device.error = DeviceError("the GPU fell off")
            for _ in range(2):
                with pytest.raises(Refusal, match="the model failed") as caught:
                    await found.ask(1.0)
                assert caught.value.status == 500
            assert found.lane.failures == 2
            assert [str(error) for error in found.failures] == ["the GPU fell off"] * 2
            found.device.error = None
            await found.ask(1.0)
            assert found.lane.failures == 0

    asyncio.run(scene())


def test_a_stall_is_no_reason_to_refuse_an_idle_device() -> None:
    async def scene() -> None:
        async with desk() as found:
            found.lane.image_s = 100.0  # as after a machine that slept within a batch
            await found.ask(1.0)
            await found.ask(2.0)
            assert found.device.batches == [1, 1]

    asyncio.run(scene())


def test_memory_that_is_short_is_503_and_no_end() -> None:
    class Large(Device):
        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            if images[0, 0, 0, 0] == 9:
                raise MemoryError
            return super().run(images)

    async def scene() -> None:
        async with desk(Large()) as found:
            with pytest.raises(Refusal, match="no memory") as caught:
                await found.ask(9.0)
            assert caught.value.status == 503
            await found.ask(1.0)

    asyncio.run(scene())


def test_what_came_while_the_first_model_opened_is_news(tmp_path: Path) -> None:
    """And SIGHUP meanwhile ends nothing."""
    file = tmp_path / "m.onnx"
    file.write_bytes(b"old")
    digests = iter(["old", "new"])

    @contextlib.contextmanager
    def opened() -> Iterator[Model]:
        digest = next(digests)
        if digest == "old":
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            file.write_bytes(b"newer")
        yield Model(Device(), SPEC, SPEC.preprocessing, digest, "test")

    said: list[str] = []

    def log(line: str) -> None:
        said.append(line)
        os.kill(os.getpid(), signal.SIGTERM)

    deadly: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: deadly.append(number))
    ended = threading.Timer(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended.start()
    try:
        with warnings.catch_warnings():
            serve(opened, Settings("m", port=0, poll_s=0.05), watched=file, log=log, started=lambda *_: None)
    finally:
        ended.cancel()
        signal.signal(signal.SIGHUP, before)
    assert not deadly
    assert said == ["reload: version 2 (SHA-256 new...) serves now"]


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize("part", ["batcher.Batcher.work", "reload.Watch.run", "run._Doors.look_after"])
def test_a_part_that_fails_ends_the_server_aloud(monkeypatch: pytest.MonkeyPatch, part: str, ending: bool) -> None:
    async def broken(self: object) -> None:
        await asyncio.sleep(0.2)
        raise ZeroDivisionError("a fault")

    async def long(self: object, log: object) -> None:
        await asyncio.sleep(5)

    def started(*_: object) -> None:
        if ending:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(f"sepvit_deploy.server.{part}", broken)
    monkeypatch.setattr("sepvit_deploy.server.run._Doors.close", long)
    began = time.monotonic()
    with warnings.catch_warnings(), pytest.raises(ZeroDivisionError, match="a fault"):
        serve(source(Device()), Settings("m", port=0), log=lambda line: None, started=started)
    assert time.monotonic() - began < 4


def test_a_new_model_takes_over_between_batches() -> None:
    async def scene() -> None:
        async with desk() as found:
            holding = await busy(found)
            newer = Lane(source(Device(), sha256="1"), 2)
            await newer.open(4)
            waiting = asyncio.create_task(found.ask(1.0))
            pinned = asyncio.create_task(found.ask(1.0, version=1))
            await asyncio.sleep(0.01)
            found.batcher.lane = newer
            found.device.free.set()
            assert (await holding).version == 1
            assert (await waiting).version == 2
            with pytest.raises(Refusal, match="version 1 has just been replaced by 2"):
                await pinned
            await newer.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("spec", "device", "words"),
    [
        (ModelSpec("lite", "classify", (224, 224), 3), Engine(), None),
        (ModelSpec("lite", "dense", (64, 64), 3), Device(), "task dense"),
    ],
)
def test_a_new_model_must_be_like_the_one_before(spec: ModelSpec, device: Device, words: str | None) -> None:
    async def scene() -> None:
        before, after = Lane(source(Device()), 1), Lane(source(device, spec), 2)
        await before.open(4)
        await after.open(4)
        try:
            require_alike(before, after)
        finally:
            await before.close()
            await after.close()

    if words is None:
        asyncio.run(scene())
    else:
        with pytest.raises(InputError, match=words):
            asyncio.run(scene())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head": "upernet"}, "head upernet; expected fpn"),
        ({"any_size": False}, "any_size False; expected True"),
        ({"size": (16, 8)}, "size"),
        ({"classes": ["a", "c", "b"]}, "names of classes"),
        ({"num_classes": 4}, "classes 4; expected 3, as clients know it"),
        ({}, None),
    ],
    ids=str,
)
def test_a_segmentation_model_gives_way_to_one_of_its_kind(change: dict[str, Any], words: str | None) -> None:
    names = change.pop("classes", ["a", "b", "c"])

    async def scene() -> None:
        before, after = Lane(source(Free(), SEGMENT), 1), Lane(source(Free(), replace(SEGMENT, **change)), 2)
        await before.open(2)
        await after.open(2)
        before.model, after.model = replace(before.model, classes=["a", "b", "c"]), replace(after.model, classes=names)
        try:
            require_alike(before, after)
        finally:
            await before.close()
            await after.close()

    if words is None:
        asyncio.run(scene())
    else:
        with pytest.raises(InputError, match=words):
            asyncio.run(scene())


def test_a_mask_of_a_class_that_the_model_does_not_have_is_a_failure_of_the_model() -> None:
    """Whatever the size, of which others are a client's choice."""

    async def scene() -> None:
        lane = Lane(source(Free(), SEGMENT), 1)
        await lane.open(2)
        try:
            assert (await lane.run([np.full((1, 3, 8, 16), 2, np.float32)])).outputs["mask"].max() == 2
            for size in (SEGMENT.size, (4, 8)):
                with pytest.raises(SepvitError, match=r"^device gave the class 3; expected 0 to 2") as caught:
                    await lane.run([np.full((1, 3, *size), 3, np.float32)])
                assert not isinstance(caught.value, InputError), "which may be a client's fault"
        finally:
            await lane.close()

    asyncio.run(scene())


def test_a_model_of_numbers_that_are_not_finite_does_not_open() -> None:
    class Broken(Device):
        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return {"logits": np.full((len(images), 3), np.nan, np.float32)}

    with pytest.raises(InputError, match="not finite"):
        asyncio.run(Lane(source(Broken()), 1).open(4))
