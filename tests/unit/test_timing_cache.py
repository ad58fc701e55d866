"""The timing cache's file, with an invented TensorRT: shared by builds, kept apart from a foreign one, always whole."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from sepvit_deploy import artifact
from sepvit_deploy.errors import InputError, OutputError
from sepvit_deploy.timing_cache import open_cache, save_cache

HERE, ELSEWHERE = "10.13 H200", "10.13 L4"


class Cache:
    """As a `trt.ITimingCache`: its machine, then what it knows."""

    def __init__(self, machine: str, kernels: set[str]) -> None:
        self.machine, self.kernels = machine, kernels

    def serialize(self) -> bytes:
        return "\n".join([self.machine, *sorted(self.kernels)]).encode()

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        if self.machine != other.machine and not ignore_mismatch:
            return False
        self.kernels |= other.kernels
        return True


class Config:
    """As a `trt.IBuilderConfig`: it keeps a copy of the cache that it is given."""

    def __init__(self, machine: str = HERE) -> None:
        self.machine = machine
        self.cache = Cache(machine, set())

    def create_timing_cache(self, content: bytes) -> Cache | None:
        if not content:
            return Cache(self.machine, set())
        first, *kernels = content.decode(errors="replace").split("\n")
        if first.startswith("10."):
            return Cache(first, set(kernels))
        return Cache(self.machine, set()) if first.startswith("9.") else None  # TensorRT does the one and the other

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        if cache.machine != self.machine and not ignore_mismatch:
            return False
        self.cache = Cache(cache.machine, set(cache.kernels))
        return True

    def get_timing_cache(self) -> Cache:
        return self.cache


def build(path: Path, *kernels: str) -> tuple[bool, str | None]:
    config = Config()
    used = open_cache(config, path)
    config.cache.kernels |= set(kernels)
    return save_cache(config, used)


def known(path: Path) -> set[str]:
    return set(path.read_text().split("\n")[1:])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timing.cache"


def test_a_build_finds_what_an_earlier_one_learnt(path: Path) -> None:
    assert build(path, "a", "b") == (False, None)
    assert build(path, "a") == (True, None)
    assert build(path, "a", "c") == (False, None)
    assert known(path) == {"a", "b", "c"}


def test_a_cache_that_knows_nothing_is_no_hit(path: Path) -> None:
    assert build(path) == (False, None)
    assert path.read_text() == HERE
    assert build(path) == (False, None)
    assert build(path, "a") == (False, None)
    assert build(path, "a") == (True, None)


def test_nothing_else_is_left_in_the_folder(path: Path) -> None:
    build(path, "a")
    build(path, "b")
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("content", [f"{ELSEWHERE}\nx".encode(), b"9.0 H200\nx", b"\xff\x00 no cache at all"])
def test_a_foreign_cache_is_refused_and_left_as_it_is(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        build(path, "a")
    assert str(caught.value) == (
        f"TensorRT refuses --timing-cache {path}; expected a timing cache of this TensorRT and this GPU; "
        "give each TensorRT version and GPU a file of its own; this one is left as it is"
    )
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [f"{ELSEWHERE}\nx".encode(), b"9.0 H200\nx", b"no cache"])
def test_a_cache_that_becomes_foreign_during_the_build_is_left_as_it_is(content: bytes, path: Path) -> None:
    config = Config()
    used = open_cache(config, path)
    config.cache.kernels.add("a")
    path.write_bytes(content)
    warning = f"--timing-cache {path} is now one that TensorRT refuses; it is left as it is"
    assert save_cache(config, used) == (False, warning)
    assert path.read_bytes() == content


def test_what_others_wrote_during_the_build_stays(path: Path) -> None:
    config = Config()
    used = open_cache(config, path)
    build(path, "theirs")
    config.cache.kernels.add("mine")
    assert save_cache(config, used) == (False, None)
    assert known(path) == {"mine", "theirs"}


def one_of_many(path: Path, number: int, barrier: object) -> None:
    config = Config()
    used = open_cache(config, path)
    config.cache.kernels.add(f"kernel{number}")
    barrier.wait()  # type: ignore[attr-defined]
    assert save_cache(config, used) == (False, None)


def test_builds_that_end_together_all_keep_what_they_learnt(path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    barrier = processes.Barrier(8)
    builds = [processes.Process(target=one_of_many, args=(path, number, barrier)) for number in range(8)]
    for each in builds:
        each.start()
    for each in builds:
        each.join(30)
    assert [each.exitcode for each in builds] == [0] * 8
    assert known(path) == {f"kernel{number}" for number in range(8)}
    assert os.listdir(path.parent) == [path.name]


def test_the_file_is_read_again_once_the_lock_is_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    used = open_cache(config, path)
    config.cache.kernels.add("mine")
    locked: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        locked.append(operation)
        path.write_bytes(Cache(HERE, {"theirs"}).serialize())

    monkeypatch.setattr(fcntl, "flock", flock)
    assert save_cache(config, used) == (False, None)
    assert locked == [fcntl.LOCK_EX]
    assert known(path) == {"mine", "theirs"}


def test_a_file_system_without_locks_will_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert build(path, "a") == (False, None)
    assert known(path) == {"a"}


def test_a_full_disk_leaves_the_cache_as_it_was_and_is_a_warning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(path, "a")

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact.os, "fsync", fsync)
    assert build(path, "b") == (False, f"the timing cache was not saved: no space left to write {path}")
    assert known(path) == {"a"}
    assert os.listdir(path.parent) == [path.name]


def test_a_place_that_cannot_be_written_is_refused_before_the_build(path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        build(path / "x y" / "c", "a")
    assert str(caught.value) == (
        f"--timing-cache {path}/x y/c: the folder {path}/x y does not exist; type: mkdir -p '{path}/x y'"
    )
    with pytest.raises(OutputError, match=r"^--timing-cache .* is no regular file; expected a file of an earlier"):
        build(path.parent, "a")


def test_a_file_that_cannot_be_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x" * 10)
    monkeypatch.setattr("sepvit_deploy.timing_cache.MAX_BYTES", 5)
    with pytest.raises(InputError, match=r"^--timing-cache .* is larger than 0 MiB; expected a timing cache"):
        build(path, "a")


@pytest.mark.parametrize("content", [b"damaged", b"9.3 old", f"{ELSEWHERE}\nconv".encode()])
def test_a_cache_of_our_own_begins_afresh_where_it_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache"
    path.write_bytes(content)
    config = Config()
    used = open_cache(config, path, afresh=True)
    assert (path.exists(), used.known_bytes) == (False, None)
    config.get_timing_cache().kernels.add("gemm")
    assert save_cache(config, used) == (False, None)
    assert path.read_bytes() == f"{HERE}\ngemm".encode()
