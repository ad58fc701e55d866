"""A journal's lines: kept over a kill, refused where they are of something else."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.errors import InputError, OutputError
from sepvit_deploy.journal import Journal

KEY = {"model": "a", "images": "b"}


@settings(deadline=None)
@given(
    batches=st.lists(st.lists(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False)), max_size=3)),
    cut=st.floats(0, 1),
)
def test_whole_lines_survive_a_cut_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[list[float]]], cut: float
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    records = [record for batch in batches for record in batch]
    with Journal(path, KEY) as journal:
        for batch in batches:
            journal.append(batch)
    assert path.exists() is bool(records)
    if records:
        path.write_bytes(path.read_bytes()[: round(cut * path.stat().st_size)])
    with Journal(path, KEY) as journal:
        assert journal.records == records[: len(journal.records)]
        journal.keep(len(journal.records) // 2)
        kept = list(journal.records)
        journal.append([[1, 2.5]])
    with Journal(path, KEY) as journal:
        assert journal.records == [*kept, [1, 2.5]]
        journal.remove()
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"not ours\n", "holds no progress of an earlier run"),
        (b"\xff\xd8\xff\xe0", "holds no progress of an earlier run"),
        (b"[1]\n", "holds no progress of an earlier run"),
        (b'{"journal": 2}\n', "holds no progress of an earlier run"),
        (b"[" * 100_000 + b"\n", "holds no progress of an earlier run"),
        (b'{"journal": 1, "model": "a", "images": "c"}\n', "is the progress of other work: another images"),
        (b'{"journal": 1}\n', "is the progress of other work: another model, images"),
        (b'{"journal": 1, "model": "a", "images": "b", "x": 1}\n', "is the progress of other work: another command"),
        (b'{"journal": 1, "model": "a", "images": "b"}\n[1]\nx\n[2]\n', "holds no record in line 3"),
        (b'{"journal": 1, "model": "a", "images": "b"}\n{}\n', "holds no record in line 2"),
    ],
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path} {text}; remove it to begin anew, or name another')}"):
        Journal(path, KEY)
    assert path.read_bytes() == content


def test_a_file_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, KEY) as journal:
        journal.append([[1]])
        with pytest.raises(InputError, match=r"j is in use by another process; wait for it, or name another file"):
            Journal(path, KEY)
    with Journal(path, KEY) as journal:
        assert journal.records == [[1]]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, text in (
        (tmp_path, "is no regular file; expected a place for the progress"),
        (tmp_path / "pipe", "is no regular file; expected a place for the progress"),
        (tmp_path / "absent" / "j", "cannot be written (No such file or directory); name another file"),
    ):
        with pytest.raises(OutputError, match=re.escape(f"{path} {text}")):
            Journal(path, KEY)


def test_a_number_that_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", KEY) as journal:
        journal.append([[1.0]])
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.append([[2.0], [float("nan")]])
    lines = (tmp_path / "j").read_text().splitlines()
    assert [json.loads(line) for line in lines[1:]] == [[1.0]]


def test_a_full_disk_is_told_and_costs_no_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Journal(tmp_path / "j", KEY) as journal:
        journal.append([[1]])
        monkeypatch.setattr(os, "write", lambda file, text: write(file, text[:5]))
        with pytest.raises(OutputError, match=r"j cannot be written \(no space left\); name another file for the prog"):
            journal.append([[2], [3]])
        monkeypatch.undo()
    with Journal(tmp_path / "j", KEY) as journal:
        assert journal.records == [[1], [2]]
