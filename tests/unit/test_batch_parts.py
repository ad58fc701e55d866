"""Which pictures a job holds, in which parts: arithmetic that loses none and repeats none."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.batch_predict.listing import (
    Source,
    as_column,
    names_between,
    offsets,
    write_listing,
)
from sepvit_deploy.batch_predict.parquet import Counts, Row, counts_of, write_part
from sepvit_deploy.batch_predict.parts import (
    LEAST_IMAGES,
    MOST_IMAGES,
    images_in,
    part_count,
    part_images_for,
    part_name,
    present,
)
from sepvit_deploy.errors import ImageError, OutputError

COUNTS = st.integers(1, 10**10)
NAMES = st.lists(st.text("ab.é \n", min_size=1, max_size=6).map(lambda text: text.encode()), min_size=1, max_size=60)


@given(COUNTS, st.integers(1, 10**6))
def test_parts_hold_every_picture_once(images: int, size: int) -> None:
    parts = part_count(images, size)
    assert sum(images_in(k, images, size) for k in {0, parts - 1}) <= images
    assert (parts - 1) * size + images_in(parts - 1, images, size) == images
    assert all(1 <= images_in(k, images, size) <= size for k in (0, parts // 2, parts - 1))


@given(COUNTS)
def test_the_size_of_parts_is_within_its_bounds(images: int) -> None:
    assert LEAST_IMAGES <= part_images_for(images) <= MOST_IMAGES
    assert part_images_for(images) <= part_images_for(images + 1)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.integers(1, 70), st.sampled_from([1, 7, 1 << 20]))
def test_slices_of_a_listing_are_the_listing(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes], every: int, chunk: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "slices"
    file.write_bytes(b"".join(name + b"\0" for name in names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sepvit_deploy.batch_predict.listing._CHUNK", chunk)
        found = offsets(file, every)
    assert len(found) == part_count(len(names), every) + 1
    slices = [names_between(file, start, end) for start, end in itertools.pairwise(found)]
    assert [name for part in slices for name in part] == names
    assert [len(part) for part in slices] == [images_in(k, len(names), every) for k in range(len(slices))]


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(tmp_path: Path, source: str) -> list[str]:
    file = tmp_path / "listing"
    found = write_listing(Source.parse(source), file)
    content = file.read_bytes()
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert content.count(b"\0") == found.images
    return [os.fsdecode(name) for name in content.split(b"\0")[:-1]]


TREE = ("b.jpg", "a/2.PNG", "a/10.jpg", "a.jpg", "a/b/c.webp", "z/.hidden.jpg", "z/note.txt", "a b/x.jpg")


def test_a_folder_is_listed_in_the_order_of_its_paths(tmp_path: Path) -> None:
    make(tmp_path / "in", *TREE)
    expected = sorted(Path(name) for name in TREE if not name.endswith(".txt"))
    assert listed(tmp_path, str(tmp_path / "in")) == [str(path) for path in expected]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("**/*.jpg", ["a/10.jpg", "a b/x.jpg", "a.jpg", "b.jpg", "z/.hidden.jpg"]),
        ("**", ["a/10.jpg", "a/2.PNG", "a/b/c.webp", "a b/x.jpg", "a.jpg", "b.jpg", "z/.hidden.jpg"]),
        ("a*/*", ["a/10.jpg", "a/2.PNG", "a b/x.jpg"]),
        ("a/**/?.*", ["2.PNG", "b/c.webp"]),  # names are relative to what comes before the first wildcard
        ("[az]/**/c*", ["a/b/c.webp"]),
        ("*", ["a.jpg", "b.jpg"]),
    ],
)
def test_a_pattern_takes_the_pictures_that_it_matches(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    make(tmp_path / "in", *TREE)
    assert listed(tmp_path, f"{tmp_path}/in/{pattern}") == expected


PARTS = st.lists(st.sampled_from(["a", "b", "ab", "*", "a*", "?", "**"]), min_size=1, max_size=4)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "ba"]), min_size=1, max_size=4)


def matches(path: list[str], pattern: list[str]) -> bool:
    """What a pattern means, as one would write it down."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return matches(path, pattern[1:]) or (bool(path) and matches(path[1:], pattern))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])


@given(PATHS, PARTS)
def test_a_pattern_is_matched_component_by_component(path: list[str], pattern: list[str]) -> None:
    from sepvit_deploy.batch_predict.listing import _Matcher

    matcher = _Matcher(tuple(pattern))
    states = matcher.start
    for name in path:
        states = matcher.step(states, name.encode())
    assert matcher.ends(states) == matches(path, pattern)


def test_a_link_into_the_folder_is_refused_and_one_out_of_it_is_followed(tmp_path: Path) -> None:
    make(tmp_path / "in", "a/1.jpg")
    make(tmp_path / "out", "2.jpg")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "out")
    assert listed(tmp_path, str(tmp_path / "in")) == ["a/1.jpg", "b/2.jpg"]
    (tmp_path / "out" / "loop").symlink_to(tmp_path / "in")
    with pytest.raises(ImageError, match="links to a folder that is listed already"):
        listed(tmp_path, str(tmp_path / "in"))


def test_names_of_any_bytes_are_listed_and_written(tmp_path: Path) -> None:
    make(tmp_path / "in", "zwei\nZeilen.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.jpg")).write_bytes(b"x")
    assert sorted(map(os.fsencode, listed(tmp_path, str(tmp_path / "in")))) == [b"zwei\nZeilen.jpg", b"\xff.jpg"]
    assert as_column(b"\xff.jpg") == "\\xff.jpg"


@pytest.mark.parametrize(
    ("source", "words"),
    [("missing", "does not exist"), ("no/*.jpg", "is no folder"), (".", "holds no picture"), ("*.png", "no picture")],
)
def test_no_pictures_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=words):
        listed(tmp_path, source)


def rows(count: int, failed: int = 0) -> list[Row]:
    good = [Row(f"{k}.jpg", (3, 1), (0.7, 0.2), ("three", "one")) for k in range(count - failed)]
    return good + [Row(f"bad{k}.jpg", error="damaged") for k in range(failed)]


def test_a_part_says_in_its_footer_how_many_rows_it_has(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / part_name(0)
    assert write_part(path, rows(5, failed=2), {"key": "value"}) == Counts(5, 2) == counts_of(path)
    table = pq.read_table(path)
    assert table.schema.metadata[b"key"] == b"value"
    assert table.to_pylist()[0] == {
        "image": "0.jpg",
        "class": 3,
        "label": "three",
        "score": pytest.approx(0.7),
        "classes": [3, 1],
        "labels": ["three", "one"],
        "scores": pytest.approx([0.7, 0.2]),
        "error": None,
    }
    assert Counter(value is None for value in table.to_pylist()[4].values()) == {True: 6, False: 2}
    assert counts_of(tmp_path / "missing") is None


@pytest.mark.parametrize("failed", [0, 3])
def test_parts_without_an_error_or_without_a_class_are_counted(tmp_path: Path, failed: int) -> None:
    assert write_part(tmp_path / "p", rows(3, failed), {}) == counts_of(tmp_path / "p") == Counts(3, failed)


def test_only_whole_parts_of_the_job_are_there(tmp_path: Path) -> None:
    write_part(tmp_path / part_name(0), rows(4), {})
    write_part(tmp_path / part_name(1), rows(3), {})  # a row is missing
    whole = (tmp_path / part_name(0)).read_bytes()
    (tmp_path / part_name(2)).write_bytes(whole[:-30])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-000003.parquet.tmp").touch()
    assert dict(present(tmp_path, 14, 4)) == {0: Counts(4, 0), 1: None, 2: None}
    assert dict(present(tmp_path, 14, 4, known={0, 2})) == {1: None}


@pytest.mark.parametrize("name", ["other.parquet", "part-000004.parquet", "part-3.parquet", "part-0000003.parquet"])
def test_what_is_no_part_of_the_job_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(OutputError, match=f"{name}, which is no part of its job"):
        list(present(tmp_path, 14, 4))
