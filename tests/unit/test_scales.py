"""Scale tables: to JSON and back, and every way in which one is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sepvit_deploy.errors import GraphError, InputError, PassportError
from sepvit_deploy.scales import (
    FLOAT32_MAX,
    LEAST_THRESHOLD,
    ImagesUsed,
    ScaleTable,
    TensorRange,
    read_scales,
    weights_digest,
    write_scales,
)
from sepvit_deploy.spec import Preprocessing

TABLE = ScaleTable(
    graph_sha256="a" * 64,
    weights_sha256="b" * 64,
    images=ImagesUsed("photos", "c" * 64, 512, 2),
    preprocessing=Preprocessing.for_task("classify", (224, 224)).to_dict(),
    method="percentile",
    settings={"bins": 8192, "percentile": 99.99},
    batch=8,
    tools={"onnxruntime": "1.22.0"},
    tensors={"x": TensorRange(-0.17, 4.1, 3.3), "stage0/y": TensorRange(-1e-3, 1 / 3, 0.1)},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "scales.json"
    write_scales(path, TABLE)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_scales(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_table_comes_back_as_it_was_and_in_the_same_order(path: Path) -> None:
    found = read_scales(path)
    assert found == TABLE
    assert list(found.tensors) == ["x", "stage0/y"]


def test_equal_tables_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    write_scales(tmp_path / "again.json", read_scales(path))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_scale_and_clipped_ends() -> None:
    assert TensorRange(-4, 2, 3).scale == 3 / 127
    assert TensorRange(-4, 2, 3).clipped == (-3, 2)
    assert TensorRange(1, 5, 3).clipped == (0, 3), "zero must stay exact"
    assert TensorRange(-5, -1, 4).clipped == (-4, 0)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d["tensors"]["x"].update(threshold=0.0), "tensors.x.threshold is 0.0; expected above 0"),
        (lambda d: d["tensors"]["x"].update(threshold=-1.0), "tensors.x.threshold is -1.0; expected above 0"),
        (lambda d: d["tensors"]["x"].update(threshold=1e-44), "tensors.x.threshold is 1e-44; expected above 0"),
        (lambda d: d["tensors"]["x"].update(threshold=5.0), "at most the largest |x|"),
        (lambda d: d["tensors"]["x"].update(threshold=float("nan")), "tensors.x.threshold is nan; expected a finite"),
        (lambda d: d["tensors"]["x"].update(maximum=float("inf")), "tensors.x.maximum is inf"),
        (lambda d: d["tensors"]["x"].update(maximum=10**400), "tensors.x.maximum is 1000"),
        (lambda d: d["tensors"]["x"].update(maximum="4"), "tensors.x.maximum is '4'"),
        (lambda d: d["tensors"]["x"].update(maximum=True), "tensors.x.maximum is True"),
        (lambda d: d["tensors"]["x"].update(minimum=9), "tensors.x.minimum 9.0 is above maximum 4.1"),
        (lambda d: d["tensors"]["x"].pop("minimum"), "missing: tensors.x.minimum"),
        (lambda d: d["tensors"].update(x=[1, 2]), "tensors.x is [1, 2]; expected a JSON object"),
        (lambda d: d.update(tensors={}), "tensors is empty"),
        (lambda d: d.update(tensors=[]), "tensors is []"),
        (lambda d: d.update(schema=2), "schema is 2; expected 1"),
        (lambda d: d.pop("schema"), "this is no scale table"),
        (lambda d: d.update(scales={}), "unknown: scales"),
        (lambda d: d.pop("batch"), "missing: batch"),
        (lambda d: d.update(batch=0), "batch is 0; expected an integer of at least 1"),
        (lambda d: d.update(batch=True), "batch is True"),
        (lambda d: d.update(method="max"), "method is 'max'; expected one of percentile, entropy, mse, minmax"),
        (lambda d: d.update(method=["mse"]), "method is ['mse']"),
        (lambda d: d.update(graph_sha256="A" * 64), "graph_sha256 is 'AAA"),
        (lambda d: d.update(weights_sha256=None), "weights_sha256 is None; expected 64 hexadecimal digits"),
        (lambda d: d["images"].update(sha256="c"), "images.sha256 is 'c'"),
        (lambda d: d["images"].update(samples=0), "images.samples is 0"),
        (lambda d: d["images"].update(samples=1.5), "images.samples is 1.5"),
        (lambda d: d["images"].update(skipped=-1), "images.skipped is -1"),
        (lambda d: d["images"].update(name=3), "images.name is 3; expected a text"),
        (lambda d: d["images"].update(folder="/"), "unknown: images.folder"),
        (lambda d: d.update(images="photos"), "images is 'photos'; expected a JSON object"),
        (lambda d: d["settings"].update(bins="many"), "settings.bins is 'many'"),
        (lambda d: d["tools"].update(onnx=1), "tools.onnx is 1; expected a text"),
        (lambda d: d["preprocessing"].update(mean=[1, 2]), "preprocessing.mean is [1, 2]"),
        (lambda d: d["preprocessing"].pop("std"), "missing: preprocessing.std"),
    ],
)
def test_an_unusable_value_is_named(path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    message = refusal(path)
    assert words in message and message.startswith(str(path))
    assert message.endswith("type: sepvit-deploy calibrate --help") and len(message) < 400


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -3])
def test_a_table_that_is_cut_off_is_refused(path: Path, keep: float) -> None:
    text = path.read_text()
    path.write_text(text[: int(keep * len(text)) if keep == 0.5 else int(keep)])
    assert "is no JSON, or is cut off" in refusal(path)


@pytest.mark.parametrize("text", ["[]", "null", "7", '{"a": 1}', '{"passport": {"schema": 1}}'])
def test_other_json_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    assert "this is no scale table; expected JSON as calibrate writes it" in refusal(path)


@pytest.mark.parametrize("depth", [200, 900, 100_000])
def test_deep_nesting_is_refused(path: Path, depth: int) -> None:
    document = json.loads(path.read_text()) | {"batch": 0}
    text = json.dumps(document).replace('"batch": 0', f'"batch": {"[" * depth}{"]" * depth}')
    path.write_text(text)
    assert len(refusal(path)) < 500


def test_a_key_that_is_there_twice_is_refused(path: Path) -> None:
    path.write_text(path.read_text().replace('"x":', '"stage0/y":'))
    assert "the key stage0/y is there twice" in refusal(path)


def test_what_is_no_text_file_is_refused(tmp_path: Path, path: Path) -> None:
    assert refusal(tmp_path / "none.json").startswith(
        f"{tmp_path / 'none.json'} does not exist; expected a scale table"
    )
    assert "is no regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refusal(tmp_path / "pipe")
    path.write_bytes(b"\xff\xfe\x00")
    assert "is no JSON, or is cut off" in refusal(path)


def test_a_file_beyond_any_table_is_not_read_whole(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 32)  # a hole: no space on the disk
    assert "is larger than 16 MiB" in refusal(path)


def test_the_smallest_and_largest_ranges_are_taken() -> None:
    assert TensorRange(0, LEAST_THRESHOLD, LEAST_THRESHOLD).scale == 2.0**-126
    assert TensorRange(-FLOAT32_MAX, FLOAT32_MAX, FLOAT32_MAX).threshold == np.finfo(np.float32).max


def test_its_own_graph_is_accepted() -> None:
    TABLE.require_for(graph_sha256="a" * 64, weights_sha256="b" * 64, tensors=["stage0/y"])


@pytest.mark.parametrize(
    "graph, weights, tensors, words",
    [
        ("d", "e", ["x"], "belongs to other weights (SHA-256 bbbbbbbbbbbb...); expected a table for these (eeeeee"),
        ("a", "e", ["x"], "belongs to other weights"),
        ("d", "b", ["x"], "belongs to another graph of the same weights (SHA-256 aaaaaaaaaaaa...); expected a table"),
        ("a", "b", ["x", "q", "k"], "has no range for 2 of the tensors, the first q; expected a range for every"),
    ],
)
def test_another_model_is_refused_with_the_reason(graph: str, weights: str, tensors: list[str], words: str) -> None:
    with pytest.raises(PassportError) as error:
        TABLE.require_for(graph_sha256=graph * 64, weights_sha256=weights * 64, tensors=tensors)
    assert words in str(error.value)


def model(*tensors: TensorProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors))


def weight(name: str = "w", values: Any = ((1.0, 2.0), (3.0, 4.0)), kind: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def test_the_digest_of_weights_is_of_names_types_shapes_and_numbers() -> None:
    digests = [
        weights_digest(model(weight())),
        weights_digest(model(weight("v"))),
        weights_digest(model(weight(kind=np.float64))),
        weights_digest(model(weight(values=np.zeros((2, 2))))),
        weights_digest(model(weight(values=np.zeros((2, 2)), kind=np.int32))),
        weights_digest(model(weight(values=[1.0, 2.0, 3.0, 4.0]))),
        weights_digest(model(weight(values=[[1.0, 2.0], [3.0, 5.0]]))),
        weights_digest(model(weight(), weight("v"))),
        weights_digest(model()),
    ]
    assert len(set(digests)) == len(digests)


def test_the_digest_of_weights_is_not_of_their_order_or_encoding() -> None:
    plain = helper.make_tensor("w", TensorProto.FLOAT, (2, 2), [1.0, 2.0, 3.0, 4.0])  # as a list, not as raw bytes
    assert not plain.raw_data
    assert weights_digest(model(plain, weight("v"))) == weights_digest(model(weight("v"), weight()))
    text = helper.make_tensor("s", TensorProto.STRING, (1,), [b"one"])
    other = helper.make_tensor("s", TensorProto.STRING, (1,), [b"two"])
    assert weights_digest(model(text)) == weights_digest(model(text)) != weights_digest(model(other))


def test_a_damaged_weight_is_named() -> None:
    broken = weight()
    broken.raw_data = broken.raw_data[:-1]
    with pytest.raises(GraphError, match="the weight w is damaged"):
        weights_digest(model(broken))


def test_a_range_is_checked_where_it_is_made() -> None:
    with pytest.raises(InputError, match=r"threshold is 2\.0; expected above 0 and at most the largest"):
        replace(TABLE.tensors["x"], minimum=-1, maximum=1, threshold=2)
