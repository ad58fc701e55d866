"""Ranked classes from fake logits, and files of labels."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sepvit_deploy.classes import read_labels
from sepvit_deploy.errors import ImageError, InputError, OptionError
from sepvit_deploy.images import load_image, preprocess
from sepvit_deploy.predict import predict
from sepvit_deploy.spec import Preprocessing

PREPROCESSING = Preprocessing((8, 8), None)
LOGITS = [0.0, 3.0, 1.0, 2.0]
SYNSETS = ["n01440764", "tench"]


class Fake:
    name = "m.onnx"

    def __init__(self, logits: Any = LOGITS, batch: int | None = None, output: str = "logits") -> None:
        self.input_shape = (batch, 3, 8, 8)
        self._logits, self._output = np.array(logits, np.float32), output
        self.seen: list[np.ndarray] = []

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.seen.append(images)
        return {self._output: np.repeat(self._logits[None], len(images), axis=0)}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)
    return path


def test_classes_come_best_first(picture: Path) -> None:
    (prediction,) = predict(Fake(), PREPROCESSING, [picture], top=3)
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert prediction.image == str(picture)
    assert [k for k, _, _ in prediction.classes] == [1, 3, 2]
    assert [label for _, label, _ in prediction.classes] == [None] * 3
    assert [p for *_, p in prediction.classes] == pytest.approx(sorted(expected)[:0:-1])


def test_labels_are_those_of_the_index(picture: Path) -> None:
    (prediction,) = predict(Fake(), PREPROCESSING, [picture], top=1, labels=["a", "b", "c", "d"])
    assert prediction.classes[0][:2] == (1, "b")


@settings(deadline=None)
@given(logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20), top=st.integers(1, 30))
def test_probabilities_of_any_finite_logits(
    tmp_path_factory: pytest.TempPathFactory, logits: list[float], top: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "grey.png"
    if not path.exists():
        Image.new("L", (8, 8), 128).save(path)
    (prediction,) = predict(Fake(logits), PREPROCESSING, [path], top=top)
    shares = [p for *_, p in prediction.classes]
    assert len(shares) == min(top, len(logits))
    assert shares == sorted(shares, reverse=True)
    assert all(0 <= p <= 1 for p in shares)
    if top >= len(logits):
        assert math.isclose(sum(shares), 1)
    assert logits[prediction.classes[0][0]] == max(logits)


def test_equal_logits_keep_the_order_of_the_classes(picture: Path) -> None:
    (prediction,) = predict(Fake([1.0] * 4), PREPROCESSING, [picture])
    assert [k for k, *_ in prediction.classes] == [0, 1, 2, 3]


@pytest.mark.parametrize(("fixed", "batch"), [(None, 1), (1, 1), (4, 4)])
def test_a_runner_gets_the_batch_that_it_takes(picture: Path, fixed: int | None, batch: int) -> None:
    runner = Fake(batch=fixed)
    assert len(predict(runner, PREPROCESSING, [picture, picture])) == 2
    pixels = preprocess(load_image(picture), PREPROCESSING)
    assert [images.shape for images in runner.seen] == [(batch, 3, 8, 8)] * 2
    assert all(np.array_equal(image, pixels) for images in runner.seen for image in images)


def test_no_pictures() -> None:
    assert predict(Fake(), PREPROCESSING, []) == []


@pytest.mark.parametrize("top", [0, -3])
def test_top_below_1(picture: Path, top: int) -> None:
    with pytest.raises(OptionError, match=f"^--top {top}; expected 1 or more$"):
        predict(Fake(), PREPROCESSING, [picture], top=top)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite(picture: Path, bad: float) -> None:
    text = f"m.onnx gave for {picture} logits that are not finite; check the file first"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        predict(Fake([1.0, bad]), PREPROCESSING, [picture])


@pytest.mark.parametrize("count", [3, 5])
def test_labels_of_another_count(picture: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"^--labels has {count} labels; expected 4, one for each class$"):
        predict(Fake(), PREPROCESSING, [picture], labels=["x"] * count)


def test_a_file_without_logits(picture: Path) -> None:
    with pytest.raises(InputError, match=r"^m\.onnx gives stride4; expected a classification file with logits$"):
        predict(Fake(output="stride4"), PREPROCESSING, [picture])


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ImageError, match=r"a\.png"):
        predict(Fake(), PREPROCESSING, [tmp_path / "a.png"])


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "tench\ncat, tabby\nhérisson\n"),
        ("labels.txt", "tench\r\n  cat, tabby \r\nhérisson\r\n\r\n\n"),
        ("labels.txt", "\ufefftench\ncat, tabby\nhérisson"),
        ("labels", "tench\ncat, tabby\nhérisson"),
        ("labels.json", '["tench", "cat, tabby", "hérisson"]'),
        ("labels.JSON", '\ufeff["tench", "cat, tabby", "hérisson"]'),
        ("labels.json", '{"2": "hérisson", "0": "tench", "1": "cat, tabby"}'),
        ("labels.json", '{"0": ["n01440764", "tench"], "1": ["n02123045", "cat, tabby"], "2": ["n0", "hérisson"]}'),
        ("labels.json", '[["n01440764", "tench"], "cat, tabby", ["hérisson"]]'),
    ],
)
def test_labels_files(tmp_path: Path, name: str, content: str) -> None:
    assert read_labels(written(tmp_path / name, content)) == ["tench", "cat, tabby", "hérisson"]


def test_imagenets_own_json_takes_the_word(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path / "class_index.json", json.dumps({"0": SYNSETS}))) == ["tench"]


def test_an_empty_line_inside_is_a_label_that_keeps_the_count(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path / "l.txt", "a\n\nc\n")) == ["a", "", "c"]


def test_numbers_are_labels(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path / "l.json", "[7, 8]")) == ["7", "8"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.json", ""),
        ("l.json", "{"),
        ("l.json", "5"),
        ("l.json", "null"),
        ("l.json", '"tench"'),
        ("l.json", '{"1": "a", "2": "b"}'),
        ("l.json", '{"tench": 0}'),
        ("l.json", "[[]]"),
        ("l.json", "[null]"),
        ("l.json", '[{"id": 0, "name": "tench"}]'),
        ("l.json", "[[1, [2]]]"),
        ("l.txt", b"\xff\xfe\x00\x01"),
        ("l.txt", b"\x89PNG\r\n\x1a\n\x00"),
    ],
)
def test_files_that_hold_no_labels(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(
        InputError, match=f"^{re.escape(str(path))} holds no labels \\(.*; expected a text file with"
    ) as e:
        read_labels(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("name", "content"), [("l.txt", ""), ("l.txt", " \n\n"), ("l.json", "[]"), ("l.json", "{}")])
def test_empty_labels(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(InputError, match=f"{name} is empty; expected one label a line$"):
        read_labels(written(tmp_path / name, content))


@pytest.mark.parametrize("name", ["absent.txt", "absent.json", "."])
def test_labels_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"holds no labels \((FileNotFound|IsADirectory)Error"):
        read_labels(tmp_path / name)
