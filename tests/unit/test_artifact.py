"""Files appear whole or not at all, and a passport belongs to one file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy import artifact
from sepvit_deploy.artifact import (
    Parent,
    Passport,
    passport_path,
    read_passport,
    require_writable,
    sha256,
    write_with_passport,
    written,
)
from sepvit_deploy.errors import OutputError, PassportError

PASSPORT = Passport(
    stage="export",
    parents=(Parent("weights", "t.safetensors", sha256="ab" * 32, ema=True), Parent("weights", "random", seed=3)),
    model={"variant": "t", "size": [224, 224]},
    facts={"opset": 20, "batch": "dynamic", "audit": {"findings": []}},
)


def output_refused(text: str) -> Any:
    return pytest.raises(OutputError, match=f"^{re.escape(text)}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def raising(error: BaseException) -> Any:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_a_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for text in ("old", "new"):
        with written(path) as temporary:
            assert temporary.parent == tmp_path
            temporary.write_text(text)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("error", [ValueError("half way"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("old", ["old", None])
def test_a_failure_in_the_middle_leaves_what_was_there(tmp_path: Path, error: BaseException, old: str | None) -> None:
    path = tmp_path / "model.onnx"
    if old:
        path.write_text(old)
    with pytest.raises(type(error)), written(path) as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == (["model.onnx"] if old else [])
    assert not old or path.read_text() == old


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_the_umask_is_respected_and_kept(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_with_passport(tmp_path / "m.onnx", b"x", PASSPORT)
    finally:
        assert os.umask(before) == umask
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)] == [0o666 & ~umask] * 2


def test_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "m.onnx"
    text = f"the folder {path.parent} does not exist; type: mkdir -p '{path.parent}'"
    for write in (lambda: require_writable(path), lambda: write_with_passport(path, b"x", PASSPORT)):
        with output_refused(text):
            write()


def test_a_folder_as_output(tmp_path: Path) -> None:
    text = f"{tmp_path} is a folder; expected a file to write; name a file in it"
    for write in (lambda: require_writable(tmp_path), lambda: write_with_passport(tmp_path, b"x", PASSPORT)):
        with output_refused(text):
            write()


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_without_a_name_as_output(path: str) -> None:
    with output_refused(f"{path} is a folder; expected a file to write"):
        require_writable(Path(path))


def test_a_folder_where_the_passport_belongs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    passport_path(path).mkdir()
    for write in (lambda: require_writable(path), lambda: write_with_passport(path, b"new", PASSPORT)):
        with output_refused(f"{path}.json is a folder"):
            write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["m.onnx", "m.onnx.json"]


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    with output_refused("/dev/null is no regular file; expected a file to write"):
        require_writable(Path("/dev/null"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with output_refused(f"{pipe} is no regular file"), written(pipe):
        pass
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "m.onnx"
    with output_refused(f"{path} cannot be written (Not a directory); give another place with --output"):
        require_writable(path)


def test_a_name_that_is_too_long_for_its_passport_is_refused_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / ("m" * 250)
    path.write_text("old")
    with output_refused(f"{path}"):
        require_writable(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a planted error: a superuser may write anywhere."""
    monkeypatch.setattr(os, "open", raising(PermissionError(errno.EACCES, "Permission denied")))
    path = tmp_path / "m.onnx"
    with output_refused(f"{path} cannot be written (Permission denied); give another place with --output"):
        require_writable(path)


def test_require_writable_leaves_everything_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    require_writable(path)
    assert names(tmp_path) == []
    path.write_text("old")
    require_writable(path)
    assert names(tmp_path) == ["m.onnx"]
    assert path.read_text() == "old"


def test_a_pair_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    returned = write_with_passport(path, b"content", PASSPORT)
    assert returned == replace(PASSPORT, file="m.onnx", sha256=hashlib.sha256(b"content").hexdigest(), bytes=7)
    assert read_passport(path) == returned
    assert path.read_bytes() == b"content"
    assert names(tmp_path) == ["m.onnx", "m.onnx.json"]
    assert json.loads(passport_path(path).read_text())["schema"] == artifact.SCHEMA
    assert returned.weights == PASSPORT.parents[0]
    assert [parent.is_random for parent in returned.parents] == [False, True]


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(content=st.binary(max_size=64), facts=st.dictionaries(st.text(), PLAIN, max_size=4))
def test_any_facts_survive(tmp_path_factory: pytest.TempPathFactory, content: bytes, facts: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("facts") / "m.onnx"
    returned = write_with_passport(path, content, replace(PASSPORT, facts=facts))
    assert read_passport(path) == returned
    assert path.read_bytes() == content


def test_a_fact_that_is_no_number_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_with_passport(tmp_path / "m.onnx", b"x", replace(PASSPORT, facts={"sqnr_db": float("inf")}))
    assert names(tmp_path) == []


def test_a_weightless_passport() -> None:
    assert replace(PASSPORT, parents=()).weights is None


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    write_with_passport(path, b"old", PASSPORT)
    return path


def assert_still_the_old_pair(path: Path) -> None:
    assert names(path.parent) == ["m.onnx", "m.onnx.json"]
    assert path.read_bytes() == b"old"
    assert read_passport(path)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_pair(pair: Path, monkeypatch: pytest.MonkeyPatch, call: int, code: int) -> None:
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    place = pair if call == 1 else passport_path(pair)
    with output_refused(f"no space left to write {place}; free some, or give another folder with --output"):
        write_with_passport(pair, b"new", PASSPORT)
    monkeypatch.undo()
    assert_still_the_old_pair(pair)


def test_a_full_disk_while_writing_names_the_file(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", raising(OSError(errno.ENOSPC, "No space left on device")))
    with output_refused(f"no space left to write {pair};"):
        write_with_passport(pair, b"new", PASSPORT)
    monkeypatch.undo()
    assert_still_the_old_pair(pair)


@pytest.mark.parametrize("name", ["os.fsync", "os.replace", "pathlib.Path.write_text", "pathlib.Path.write_bytes"])
def test_an_interrupt_leaves_the_old_pair(pair: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(name, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_with_passport(pair, b"new", PASSPORT)
    monkeypatch.undo()
    assert_still_the_old_pair(pair)


def test_a_pair_cut_between_its_two_renames_is_refused(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def once(source: Path, target: Path) -> None:
        rename(source, target)
        monkeypatch.setattr(os, "replace", raising(KeyboardInterrupt()))

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        write_with_passport(pair, b"new", PASSPORT)
    monkeypatch.undo()
    assert names(pair.parent) == ["m.onnx", "m.onnx.json"]
    with pytest.raises(PassportError, match=r"m\.onnx\.json is the passport of another m\.onnx"):
        read_passport(pair)


def test_two_writers_at_once_leave_a_matching_pair(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    umask = os.umask(0o022)
    os.umask(umask)
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []

    def write(letter: bytes) -> None:
        try:
            for k in range(150):
                barrier.wait(timeout=30)
                write_with_passport(path, letter * (k + 1), PASSPORT)
                barrier.wait(timeout=30)
                assert read_passport(path)
        except BaseException as error:
            barrier.abort()
            errors.append(error)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert names(tmp_path) == ["m.onnx", "m.onnx.json"]
    assert os.umask(umask) == umask


def test_two_processes_at_once_leave_a_matching_pair(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sepvit_deploy.artifact import *\n"
        "for k in range(60): write_with_passport(Path(sys.argv[1]), sys.argv[2].encode() * k, "
        "Passport('export', (), {}, {}, tools={}))"
    )
    path = tmp_path / "m.onnx"
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), letter]) for letter in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert read_passport(path)
    assert names(tmp_path) == ["m.onnx", "m.onnx.json"]


def test_a_lock_that_someone_else_keeps_does_not_stop_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(artifact, "LOCK_SECONDS", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write_with_passport(tmp_path / "m.onnx", b"x", PASSPORT)
    finally:
        os.close(descriptor)
    assert read_passport(tmp_path / "m.onnx")


def test_no_passport_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    assert read_passport(tmp_path / "m.onnx") is None
    assert read_passport(tmp_path / "nowhere" / "m.onnx") is None


def passport_refused(path: Path, text: str) -> None:
    with pytest.raises(PassportError) as caught:
        read_passport(path)
    message = str(caught.value)
    assert text in message
    assert str(path.name) in message
    assert "\n" not in message


def test_a_changed_artifact_is_refused(pair: Path) -> None:
    pair.write_bytes(b"changed")
    passport_refused(pair, f"m.onnx.json is the passport of another m.onnx (SHA-256 {sha256(pair)[:12]}...)")
    passport_refused(pair, "the file was changed or replaced: export again, or remove the passport")


def test_the_passport_of_another_file_is_refused(pair: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"other")
    passport_path(pair).rename(passport_path(other))
    passport_refused(other, "other.onnx.json is the passport of another other.onnx")


def test_a_pair_may_be_renamed_together(pair: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.onnx"
    passport_path(pair).rename(passport_path(moved))
    pair.rename(moved)
    assert read_passport(moved)


def test_a_passport_without_its_artifact_is_refused(pair: Path) -> None:
    pair.unlink()
    passport_refused(pair, "is the passport of m.onnx, which is not there")


def test_every_truncation_is_refused(pair: Path) -> None:
    text = passport_path(pair).read_text().rstrip()
    for cut in range(len(text)):
        passport_path(pair).write_text(text[:cut])
        passport_refused(pair, "m.onnx.json is no passport (")


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(pair: Path, schema: object) -> None:
    document = json.loads(passport_path(pair).read_text()) | {"schema": schema}
    passport_path(pair).write_text(json.dumps(document))
    passport_refused(pair, "m.onnx.json has another schema; expected schema 1; export again")


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": 5},
        {"sha256": None},
        {"parents": None},
        {"parents": {}},
        {"parents": ["weights"]},
        {"parents": [{"role": "weights"}]},
        {"parents": [{"role": "weights", "name": "x", "age": 3}]},
        {"model": []},
        {"facts": "none"},
        {"unknown": 1},
    ],
)
def test_other_keys_and_types_are_refused(pair: Path, change: dict[str, object]) -> None:
    document = json.loads(passport_path(pair).read_text()) | change
    passport_path(pair).write_text(json.dumps(document))
    passport_refused(pair, "m.onnx.json is no passport (")


@pytest.mark.parametrize("key", ["schema", "stage", "parents", "model", "facts", "tools", "file", "sha256", "bytes"])
def test_a_missing_key_is_refused(pair: Path, key: str) -> None:
    document = json.loads(passport_path(pair).read_text())
    del document[key]
    passport_path(pair).write_text(json.dumps(document))
    passport_refused(pair, "m.onnx.json is no passport (")


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"null", b'"passport"', b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_passport_at_all(pair: Path, content: bytes) -> None:
    passport_path(pair).write_bytes(content)
    passport_refused(pair, "m.onnx.json is no passport (")


def test_a_folder_as_passport(pair: Path) -> None:
    passport_path(pair).unlink()
    passport_path(pair).mkdir()
    passport_refused(pair, "m.onnx.json is no passport (")


def test_the_digest_is_sha_256(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "m").write_bytes(content)
    assert sha256(tmp_path / "m") == hashlib.sha256(content).hexdigest()
