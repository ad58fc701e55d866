"""Accuracy and flips against prepared logits, and evaluations killed at every byte of their progress."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sepvit_deploy.accuracy import Flip, Share
from sepvit_deploy.confidence import mcnemar_exact, wilson
from sepvit_deploy.errors import ImageError, InputError, OptionError
from sepvit_deploy.evaluate import Evaluation, Resume, evaluate
from sepvit_deploy.image_sets import ImageSet, labelled
from sepvit_deploy.spec import Preprocessing

PREPROCESSING = Preprocessing((4, 4), None)
IMAGES = 21


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour, whose red is their number: a fake runner reads it to know which one it was given."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def images(folder: Path) -> ImageSet:
    return image_set(folder, [number % 7 for number in range(IMAGES)])


def image_set(folder: Path, labels: list[int] | None = None) -> ImageSet:
    files = tuple(sorted(folder.glob("*.png")))
    return ImageSet("val", folder, files, None if labels is None else tuple(labels[: len(files)]))


class Fake:
    """Gives each picture the row of ``table`` that its red is, and counts the pictures."""

    def __init__(self, table: Any, name: str = "int8.onnx", batch: int | None = None, output: str = "logits") -> None:
        self.name, self.input_shape = name, (batch, 3, 4, 4)
        self._table, self._output = np.asarray(table, np.float32), output
        self.seen: list[list[int]] = []

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert self.input_shape[0] in (None, len(images))
        red = images[:, 0, 0, 0] * PREPROCESSING.std[0] + PREPROCESSING.mean[0]
        numbers = np.rint(red * 255).astype(int)
        self.seen.append(numbers.tolist())
        return {self._output: self._table[numbers]}


def random_logits(seed: int, classes: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((IMAGES, classes)).astype(np.float32)


BEFORE = random_logits(0)
AFTER = BEFORE + np.float32(0.3) * random_logits(1)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(1, 12),
    levels=st.sampled_from([2, 1000]),  # with few levels many logits are equal
    batch=st.integers(1, 30),
    fixed=st.sampled_from([None, 1, 4, 8]),
    other_fixed=st.sampled_from([None, 3]),
)
def test_the_figures_are_those_of_a_sort_however_the_images_are_batched(
    folder: Path, seed: int, classes: int, levels: int, batch: int, fixed: int | None, other_fixed: int | None
) -> None:
    rng = np.random.default_rng(seed)
    own, other = rng.integers(0, levels, (2, IMAGES, classes)).astype(np.float32)
    labels = rng.integers(0, classes, IMAGES).tolist()
    result = evaluate(
        Fake(own, batch=fixed),
        image_set(folder, labels),
        PREPROCESSING,
        against=Fake(other, "fp32.onnx", other_fixed),
        batch=batch,
    )
    order, other_order = (np.argsort(-table, axis=1, kind="stable") for table in (own, other))
    right, other_right = ([labels[i] == row[0] for i, row in enumerate(o)] for o in (order, other_order))
    assert result.top1 == Share(sum(right), IMAGES, sum(right) / IMAGES, *wilson(sum(right), IMAGES))
    in_five = sum(labels[i] in row[:5] for i, row in enumerate(order))
    assert (result.top5 and result.top5.count) == (in_five if classes > 5 else None)
    against = result.against
    assert against is not None
    assert against.top1 == Share.of(sum(other_right), IMAGES)
    assert against.agreement == Share.of(int((order[:, 0] == other_order[:, 0]).sum()), IMAGES)
    assert against.mcnemar is not None
    assert against.mcnemar.b == sum(theirs and not mine for mine, theirs in zip(right, other_right, strict=True))
    assert against.mcnemar.c == sum(mine and not theirs for mine, theirs in zip(right, other_right, strict=True))
    assert against.mcnemar.p_value == mcnemar_exact(against.mcnemar.b, against.mcnemar.c)
    assert sorted(flip.image for flip in against.flips) == [
        f"{i:03d}.png" for i in range(IMAGES) if order[i, 0] != other_order[i, 0]
    ]
    for flip in against.flips:
        i = int(flip.image[:3])
        best, second = np.sort(other[i])[::-1][:2]
        assert (flip.label, flip.before, flip.margin_before) == (labels[i], other_order[i, 0], best - second)
    margins = [flip.margin_before for flip in against.flips]
    assert margins == sorted(margins, reverse=True)
    noise, signal = ((own - other) ** 2).sum(dtype=float), (other**2).sum(dtype=float)
    assert against.sqnr_db == (pytest.approx(10 * math.log10(signal / noise)) if noise and signal else against.sqnr_db)
    json.dumps(result.to_dict(), allow_nan=False)


def test_planted_flips_are_found_the_most_telling_one_first(images: ImageSet) -> None:
    before = np.zeros((IMAGES, 7), np.float32)
    before[np.arange(IMAGES), np.arange(IMAGES) % 7] = 4
    after = before.copy()
    before[2, 5] = 3.75  # a near tie, tipped
    after[2, 5] = 4.25
    after[9] = [0, 0, 0, 9, 0, 0, 8]  # a clear case, lost
    result = evaluate(Fake(after), images, PREPROCESSING, against=Fake(before, "fp32.onnx"), batch=5)
    assert result.against is not None
    assert result.against.flips == (
        Flip("009.png", label=2, before=2, after=3, margin_before=4.0, margin_after=1.0),
        Flip("002.png", label=2, before=2, after=5, margin_before=0.25, margin_after=0.25),
    )
    assert (result.against.mcnemar.b, result.against.mcnemar.c, result.against.mcnemar.p_value) == (2, 0, 0.5)
    assert (result.top1.count, result.against.top1.count, result.against.agreement.count) == (19, 21, 19)


def test_a_file_against_itself(images: ImageSet) -> None:
    result = evaluate(Fake(AFTER), images, PREPROCESSING, against=Fake(AFTER, "same.onnx"))
    assert result.against is not None
    assert (result.against.flips, result.against.agreement.share, result.against.sqnr_db) == ((), 1.0, math.inf)
    assert (result.against.mcnemar.b, result.against.mcnemar.c, result.against.mcnemar.p_value) == (0, 0, 1.0)
    assert result.to_dict()["against"]["sqnr_db"] is None


def test_without_labels_only_the_comparison_is_left(folder: Path) -> None:
    images = image_set(folder)
    result = evaluate(Fake(AFTER), images, PREPROCESSING, against=Fake(BEFORE))
    assert (result.top1, result.top5) == (None, None)
    assert result.against is not None
    assert (result.against.top1, result.against.top5, result.against.mcnemar) == (None, None, None)
    assert result.against.flips
    assert {flip.label for flip in result.against.flips} == {None}
    text = (
        "^val has no labels and there is no other file: nothing to measure; expected a folder for each class, or --labe"
    )
    with pytest.raises(OptionError, match=text):
        evaluate(Fake(AFTER), images, PREPROCESSING)


def test_the_result_as_a_dictionary(images: ImageSet) -> None:
    result = evaluate(Fake(AFTER), images, PREPROCESSING)
    assert (
        result.to_dict()
        == json.loads(json.dumps(result.to_dict()))
        == {
            "model": "int8.onnx",
            "image_set": "val",
            "image_set_sha256": images.sha256,
            "images": 21,
            "unreadable": [],
            "classes": 7,
            "top1": vars(result.top1) | {"meaningful": True},
            "top5": vars(result.top5) | {"meaningful": True},
            "against": None,
            "meaningful": True,
            "model_sha256": None,
        }
    )


def test_untrained_weights_are_marked_at_every_accuracy(images: ImageSet) -> None:
    result = evaluate(Fake(AFTER), images, PREPROCESSING, against=Fake(BEFORE), meaningful=False).to_dict()
    assert result["meaningful"] is False
    figures = [result["top1"], result["top5"], *(result["against"][name] for name in ("top1", "top5", "mcnemar"))]
    assert [figure["meaningful"] for figure in figures] == [False] * 5


@pytest.mark.parametrize(("fixed", "batches"), [(None, [5, 5, 5, 5, 1]), (8, [8, 8, 8]), (1, [1] * 21)])
def test_a_runner_gets_the_batch_that_it_takes(images: ImageSet, fixed: int | None, batches: list[int]) -> None:
    runner, shares = Fake(AFTER, batch=fixed), []
    assert evaluate(runner, images, PREPROCESSING, batch=5, progress=shares.append).images == 21
    assert [len(batch) for batch in runner.seen] == batches
    assert list(chain(*runner.seen))[:21] == list(range(21))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_padding_brings_no_other_image(images: ImageSet) -> None:
    runner = Fake(AFTER, batch=8)
    evaluate(runner, images, PREPROCESSING)
    assert runner.seen[-1] == [16, 17, 18, 19, 20, 20, 20, 20]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_not_finite_name_the_image(images: ImageSet, bad: float, side: int) -> None:
    tables = [AFTER.copy(), BEFORE.copy()]
    tables[side][13, 2] = bad
    name = ("int8.onnx", "fp32.onnx")[side]
    text = f"{name} gave logits for {images.files[13]} that are not finite; check the file first"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        evaluate(Fake(tables[0]), images, PREPROCESSING, against=Fake(tables[1], "fp32.onnx"))


def test_two_files_of_different_classes(images: ImageSet) -> None:
    with pytest.raises(InputError, match=r"^fp32\.onnx has 9 classes; expected 7, as int8\.onnx has$"):
        evaluate(Fake(AFTER), images, PREPROCESSING, against=Fake(random_logits(0, 9), "fp32.onnx"))


def test_a_label_that_is_no_class(images: ImageSet) -> None:
    wrong = replace(images, labels=(*images.labels[:-1], 7))
    text = f"{images.files[-1]} has the label 7; expected 0 to 6, because int8.onnx has 7 classes"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        evaluate(Fake(AFTER), wrong, PREPROCESSING)


@pytest.mark.parametrize("shape", [(IMAGES,), (IMAGES, 7, 1), (IMAGES, 0)])
def test_logits_of_another_shape(images: ImageSet, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^int8\.onnx gives logits of shape 8.*; expected B x classes$"):
        evaluate(Fake(np.zeros(shape)), images, PREPROCESSING)


def test_a_file_without_logits(images: ImageSet) -> None:
    with pytest.raises(InputError, match=r"^int8\.onnx gives stride4; expected a classification file with logits$"):
        evaluate(Fake(AFTER, output="stride4"), images, PREPROCESSING)


def test_a_batch_below_1(images: ImageSet) -> None:
    with pytest.raises(OptionError, match=r"^--batch 0; expected 1 or more$"):
        evaluate(Fake(AFTER), images, PREPROCESSING, batch=0)


def in_class_folders(root: Path, folders: list[str]) -> ImageSet:
    for number, name in enumerate(folders):
        (root / name).mkdir()
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / name / "a.png")
    return labelled(root)


def test_the_layout_of_imagenet(tmp_path: Path) -> None:
    images = in_class_folders(tmp_path, ["n01440764", "n01443537", "n01484850"])
    result = evaluate(Fake(np.eye(3)[[0, 1, 0]]), images, PREPROCESSING, class_folders=True)
    assert (result.top1.count, result.top1.images, result.top5) == (2, 3, None)


def test_class_folders_of_a_part_of_the_classes_say_nothing(tmp_path: Path) -> None:
    images = in_class_folders(tmp_path, ["n01440764", "n03000684"])
    text = (
        f"{tmp_path} has 2 class folders and int8.onnx has 3 classes; expected a folder for each class; or name the la"
    )
    with pytest.raises(InputError, match=f"^{re.escape(text)}"):
        evaluate(Fake(np.eye(3)), images, PREPROCESSING, class_folders=True)


@pytest.fixture
def damaged(tmp_path: Path) -> ImageSet:
    for number in range(8):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "001.png").write_bytes(b"no picture")
    (tmp_path / "004.png").write_bytes(b"")
    return image_set(tmp_path, [0] * 8)


def test_unreadable_images_are_named_and_do_not_count(damaged: ImageSet) -> None:
    table = np.zeros((8, 3))
    table[5] = [0, 1, 0]
    told: list[str] = []
    result = evaluate(Fake(table), damaged, PREPROCESSING, max_unreadable=2, batch=3, warn=told.append)
    assert (result.images, result.unreadable) == (6, ("001.png", "004.png"))
    assert (result.top1.count, result.top1.images) == (5, 6)
    assert told == [
        f"passed over: {damaged.files[1]} is not a picture, or its first bytes are damaged",
        f"passed over: {damaged.files[4]} is empty",
    ]
    with pytest.raises(ImageError, match=r"expected at most 1; repair or remove them, or raise --max-unreadable$"):
        evaluate(Fake(table), damaged, PREPROCESSING, max_unreadable=1)


def test_a_set_without_a_readable_image(damaged: ImageSet) -> None:
    nothing = replace(damaged, files=(damaged.files[1], damaged.files[4]), labels=(0, 0))
    with pytest.raises(InputError, match=r"^val has no readable picture; expected one or more$"):
        evaluate(Fake(np.zeros((8, 3))), nothing, PREPROCESSING)


class Killed(BaseException):
    pass


def killed_after(runner: Fake, batches: int) -> Fake:
    run = runner.run

    def until(images: np.ndarray) -> dict[str, np.ndarray]:
        if len(runner.seen) == batches:
            raise Killed
        return run(images)

    runner.run = until  # type: ignore[method-assign]
    return runner


def resumed(images: ImageSet, path: Path, runner: Fake | None = None, **options: Any) -> Evaluation:
    against = options.pop("against", Fake(BEFORE, "fp32.onnx"))
    place = Resume(path, "a" * 64, None if against is None else "b" * 64)
    options = {"batch": 4, "resume": place, **options}
    return evaluate(runner or Fake(AFTER), images, PREPROCESSING, against=against, **options)


@pytest.mark.parametrize("batches", range(6))
def test_an_evaluation_that_was_killed_goes_on(images: ImageSet, tmp_path: Path, batches: int) -> None:
    path = tmp_path / "progress.jsonl"
    with pytest.raises(Killed):
        resumed(images, path, killed_after(Fake(AFTER), batches))
    assert path.exists() is (batches > 0)
    runner = Fake(AFTER)
    assert resumed(images, path, runner) == resumed(images, tmp_path / "whole")
    assert list(chain(*runner.seen)) == list(range(4 * batches, IMAGES))
    assert list(tmp_path.iterdir()) == []


def test_progress_cut_at_any_byte_is_good(images: ImageSet, tmp_path: Path) -> None:
    path, whole = tmp_path / "progress.jsonl", resumed(images, tmp_path / "whole")
    with pytest.raises(Killed):
        resumed(images, path, killed_after(Fake(AFTER), 5))
    content = path.read_bytes()
    assert content.count(b"\n") == 1 + 20
    ends = [0, 1, content.index(b"\n"), content.index(b"\n") + 1, len(content) - 1, len(content)]
    for size in sorted({*ends, *range(content.index(b"\n"), len(content), 37)}):
        path.write_bytes(content[:size])
        assert resumed(images, path) == whole
        assert not path.exists()


def test_an_evaluation_killed_again_and_again_ends_with_the_same_result(damaged: ImageSet, tmp_path: Path) -> None:
    path, table = tmp_path / "progress.jsonl", random_logits(3)
    options: dict[str, Any] = {"against": None, "batch": 2, "max_unreadable": 2}
    told: list[str] = []
    for _ in range(2):
        with pytest.raises(Killed):
            resumed(damaged, path, killed_after(Fake(table), 1), **options)
    assert resumed(damaged, path, Fake(table), **options, warn=told.append) == resumed(
        damaged, tmp_path / "whole", Fake(table), **options
    )
    assert len(told) == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"labels": (1,) * IMAGES}, "labels"),
        ({"model": "c" * 64}, "model"),
        ({"against": "c" * 64}, "file to compare with"),
        ({"preprocessing": replace(PREPROCESSING, mean=(0.5, 0.5, 0.5))}, "preprocessing"),
        ({"images": 20}, "set of images, labels"),
    ],
)
def test_progress_of_other_work_is_refused_and_left_alone(
    images: ImageSet, tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    path = tmp_path / "progress.jsonl"
    with pytest.raises(Killed):
        resumed(images, path, killed_after(Fake(AFTER), 2))
    before = path.read_bytes()
    count = change.get("images", IMAGES)
    labels = change.get("labels", images.labels)[:count]
    other = ImageSet(images.name, images.folder, images.files[:count], labels)
    resume = Resume(path, change.get("model", "a" * 64), change.get("against", "b" * 64))
    text = f"{path} is the progress of other work: another {what}; remove it to begin anew, or name another file"
    with pytest.raises(InputError, match=f"^{re.escape(text)}"):
        evaluate(
            Fake(AFTER),
            other,
            change.get("preprocessing", PREPROCESSING),
            against=Fake(BEFORE),
            batch=4,
            resume=resume,
        )
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", ["[1, 2]", "[21, 7, 0, 0.5, 0, 0, 0.5, 0, 1.0, 1.0]", '[0, 7, "x", 0, 0, 0, 0, 0, 0, 0]']
)
def test_records_that_are_no_records_of_images(images: ImageSet, tmp_path: Path, line: str) -> None:
    path = tmp_path / "progress.jsonl"
    with pytest.raises(Killed):
        resumed(images, path, killed_after(Fake(AFTER), 3))
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} holds no record of an image in line 3; remove it$"):
        resumed(images, path)


def test_an_evaluation_killed_when_all_was_done_runs_nothing(images: ImageSet, tmp_path: Path) -> None:
    path, twenty = tmp_path / "progress.jsonl", replace(images, files=images.files[:20], labels=images.labels[:20])

    def kill(share: float) -> None:
        if share == 1.0:
            raise Killed

    with pytest.raises(Killed):
        resumed(twenty, path, progress=kill)
    runner = Fake(AFTER)
    assert resumed(twenty, path, runner) == resumed(twenty, tmp_path / "whole")
    assert runner.seen == []


def test_a_failed_evaluation_keeps_its_progress(images: ImageSet, tmp_path: Path) -> None:
    path, table = tmp_path / "progress.jsonl", AFTER.copy()
    table[13] = math.nan
    with pytest.raises(InputError, match="not finite"):
        resumed(images, path, Fake(table))
    runner = Fake(AFTER)
    assert resumed(images, path, runner).images == IMAGES
    assert runner.seen[0][0] == 12
