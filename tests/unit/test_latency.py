"""Results of a benchmark: figures, the file that keeps them, its schema, and what of it is refused."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.cli.app import parse_share
from sepvit_deploy.errors import InputError, OptionError, OutputError
from sepvit_deploy.latency import SCHEMA, Engine, Point, Rates, Results, Work, read_results, write_results
from tests.unit.latencies import engine, point, results

SCHEMA_FILE = Path(__file__).parents[2] / "sepvit_deploy" / "results.schema.json"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    write_results(results(point(), point(batch=1, ms=3.0), point("u.plan", ms=5.0)), path)
    return path


@given(
    samples=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30),
    share=st.floats(0, 1) | st.sampled_from([0.5, 0.9, 0.99]),
)
def test_quantiles_are_those_of_numpy(samples: list[float], share: float) -> None:
    found = Point("a", 1, tuple(samples), (len(samples),))
    assert found.quantile_ms(share) == pytest.approx(np.quantile(samples, share), rel=1e-9)
    assert found.p50_ms == pytest.approx(np.median(samples), rel=1e-9)
    p10, p90 = np.quantile(samples, [0.1, 0.9])
    assert found.spread == pytest.approx((p90 - p10) / np.median(samples), rel=1e-6, abs=1e-9)
    assert found.images_per_s == pytest.approx(1000 / np.median(samples), rel=1e-9)


def test_stretches_are_medians_and_count_at_the_machines_pace() -> None:
    found = Point("a", 1, (1.0, 3.0, 2.0, 8.0, 6.0), (3, 2), pace_ms=(1.0, 3.5))
    assert found.stretch_ms == (2.0, 7.0)
    assert found.paced == (2.0, 2.0)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    samples = tuple(float(f"{ms:.6g}") for ms in np.random.default_rng(0).lognormal(0, 1, 40))
    kept = results(Point("t.plan", 4, samples, (20, 20), pace_ms=(1.0, 2.0)), notes=("a note",), interrupted=True)
    write_results(kept, path)
    assert read_results(path) == kept


def test_a_file_satisfies_the_schema_that_is_documented(written: Path) -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(written.read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    assert schema["properties"]["schema"]["const"] == SCHEMA
    broken = [
        {**document, "schema": 2},
        {**document, "boundary": "network"},
        {**document, "more": 1},
        {**document, "points": [{**document["points"][0], "samples_ms": []}]},
        {**document, "points": [{**document["points"][0], "samples_ms": [-1.0]}]},
        {key: value for key, value in document.items() if key != "machine"},
    ]
    for other in broken:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(other, schema)


def test_the_schema_describes_every_attribute() -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))

    def walk(node: Any, record: type, *more: str) -> None:
        assert set(node["properties"]) - set(more) == {entry.name for entry in fields(record)}
        later = {entry.name for entry in fields(record) if entry.metadata.get("later")}
        assert set(node["required"]) == set(node["properties"]) - later
        assert node["additionalProperties"] is False

    walk(schema, Results, "schema", "kind")
    for name, record in (("engine", Engine), ("point", Point), ("work", Work), ("rates", Rates)):
        walk(schema["$defs"][name], record)


def test_the_size_of_the_images_is_kept_and_older_results_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    kept = results(point(), engines=(engine("t.plan", image_size=(512, 2048)),))
    write_results(kept, path)
    assert read_results(path).engines[0].image_size == (512, 2048)
    document = json.loads(path.read_text(encoding="utf-8"))
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    for wrong in ([512], [512, 0], [512, 2048, 3], 512, ["512", 2048]):
        document["engines"][0]["image_size"] = wrong
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)
        path.write_text(json.dumps(document), encoding="utf-8")
        refused(path, "contradicts itself")
    del document["engines"][0]["image_size"]
    path.write_text(json.dumps(document), encoding="utf-8")
    jsonschema.validate(document, schema)
    assert read_results(path).engines[0].image_size is None


def refused(path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_results(path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_file_that_is_cut_off(written: Path, share: float) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    refused(written, "is no JSON, or is cut off")


def test_a_newer_schema_says_what_to_type(written: Path) -> None:
    document = json.loads(written.read_text(encoding="utf-8"))
    written.write_text(json.dumps({**document, "schema": 2}), encoding="utf-8")
    refused(written, "has schema 2; expected schema 1; it is of a newer version: type pip install -U sepvit-deploy")
    written.write_text(json.dumps({**document, "schema": "x"}), encoding="utf-8")
    refused(written, "has schema 'x'; expected schema 1; measure again")


@pytest.mark.parametrize("content", ["[]", "3", '{"schema": 1}', '{"kind": "latency"}', "{}"])
def test_another_document(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    refused(path, "holds no latencies; expected what bench --output writes")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.json", "is no file; expected results; type: sepvit-deploy bench --output results.json")
    refused(tmp_path, "is no file")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"engine": "other"}, "a point of 'other', which is no engine of this run"),
        ({"batch": 0}, "at batch 0"),
        ({"samples_ms": []}, "no samples, or times that are none"),
        ({"samples_ms": [0.0] * 100}, "no samples, or times that are none"),
        ({"samples_ms": [-1.0] * 100}, "no samples, or times that are none"),
        ({"samples_ms": ["1"] * 100}, "samples_ms holds what is no finite number"),
        ({"samples_ms": [True] * 100}, "samples_ms holds what is no finite number"),
        ({"samples_ms": 3}, "samples_ms is 3"),
        ({"stretches": [100, 1]}, "its stretches are not its samples'"),
        ({"stretches": [101, -1]}, "its stretches are not its samples'"),
        ({"pace_ms": [1.0]}, "its stretches are not its samples'"),
        ({"pace_ms": [0.0] * 20}, "a pace that is none"),
        ({"enqueue_ms": [1.0]}, "its stretches are not its samples'"),
        ({"settled": 1}, "settled is 1"),
        ({"conditions": None}, "Conditions is None"),
        ({"more": 1}, "unknown or missing keys of Point: more"),
    ],
)
def test_a_file_that_contradicts_itself(written: Path, change: dict[str, Any], text: str) -> None:
    document = json.loads(written.read_text(encoding="utf-8"))
    document["points"][0].update(change)
    written.write_text(json.dumps(document), encoding="utf-8")
    refused(written, text)


def test_infinite_and_absent_numbers_are_none(written: Path) -> None:
    content = written.read_text(encoding="utf-8")
    for word in ("NaN", "Infinity"):
        written.write_text(re.sub(r'"samples_ms": \[[0-9.]+', f'"samples_ms": [{word}', content, count=1))
        refused(written, "samples_ms holds what is no finite number")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seconds": 3.0', '"seconds": NaN'),
        ('"bytes_per_s": 300000000000.0', '"bytes_per_s": 0'),
        ('"bytes_per_s": 300000000000.0', '"bytes_per_s": -1'),
        ('"FP16": 100000000000000.0', '"FP16": Infinity'),
        ('"batch": 8', '"batch": 1' + "0" * 400),
        ('"batch": 8', '"batch": 1000000000'),
        ('"samples_ms": [', '"samples_ms": [1' + "0" * 400 + ", "),
        ('"samples_ms": [', '"samples_ms": [1e200, '),
        ('"images": 50000', '"images": 0'),
        ('"top1": 41000', '"top1": 50001'),
    ],
)
def test_numbers_that_no_run_gives_are_one_line(written: Path, old: str, new: str) -> None:
    content = written.read_text(encoding="utf-8")
    assert old in content
    written.write_text(content.replace(old, new), encoding="utf-8")
    refused(written, "contradicts itself")


def test_one_point_or_one_name_twice() -> None:
    with pytest.raises(ValueError, match="one point twice"):
        results(point(), point())
    with pytest.raises(ValueError, match="two engines of one name"):
        results(point(), engines=(engine("t.plan"), engine("t.plan")))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_results(results(point()), tmp_path / "none" / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_the_slower_of_computing_and_moving() -> None:
    computing = engine("t.plan", work=Work({"FP16": 10**9, "INT8": 10**9}, 0, 0))
    moving = engine("u.plan", work=Work({"FP16": 1}, 3 * 10**8, 10**6))
    found = results(point(), point("u.plan"), engines=(computing, moving))
    assert found.limit_ms(found.points[0]) == pytest.approx(1000 * 8 * (2e9 / 1e14 + 2e9 / 2e14))
    assert found.limit_ms(found.points[1]) == pytest.approx(1000 * (3e8 + 8e6) / 3e11)
    unknown = replace(found, rates=(Rates("TensorRT", {"FP16": 1e14}, None),))
    assert unknown.limit_ms(found.points[0]) is None, "no rate of INT8"
    assert unknown.limit_ms(found.points[1]) == pytest.approx(1000 * 16 / 1e14)
    assert replace(found, rates=()).limit_ms(found.points[0]) is None


@pytest.mark.parametrize(
    ("text", "share"), [("3%", 0.03), ("0.03", 0.03), (" 100% ", 1.0), ("0", 0.0), ("2.5%", 0.025)]
)
def test_a_share(text: str, share: float) -> None:
    assert parse_share(text, "--x") == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "x", "-1%", "101%", "nan", "inf", "3 %%"])
def test_no_share(text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"--x {text!r}; expected a share such as 3%")):
        parse_share(text, "--x")
