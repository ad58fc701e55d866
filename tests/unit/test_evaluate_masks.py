"""mIoU against a count pixel by pixel, its intervals, folders that do not fit, and evaluations that were killed."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sepvit_deploy.errors import ImageError, InputError, OptionError
from sepvit_deploy.evaluate_masks import MaskEvaluation, evaluate_masks
from sepvit_deploy.mask_sets import Labelling, MaskSet, mask_set
from sepvit_deploy.segmentation_scores import Estimate, count, judged
from sepvit_deploy.spec import Preprocessing
from tests.unit.segmenters import COLOURS, ade20k

CLASSES = len(COLOURS)
SIZE = (32, 48)
PREPROCESSING = Preprocessing(SIZE, None, "bilinear")
ADE = Labelling(CLASSES, reduce_zero_label=True)
IMAGES = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ade20k(tmp_path_factory.mktemp("ade"), IMAGES)


@pytest.fixture
def pairs(root: Path) -> MaskSet:
    return mask_set(root)


class Fake:
    """Gives each pixel the nearest of the five colours, as a mask or as logits; ``swap`` makes it take 0 for 1."""

    def __init__(
        self, name: str = "m.onnx", *, output: str = "mask", classes: int = CLASSES, batch: int | None = None,
        size: tuple[int | None, int | None] = SIZE, swap: bool = False, fill: float | None = None,
    ) -> None:  # fmt: skip
        self.name, self.input_shape = name, (batch, 3, *size)
        self._output, self._classes, self._swap, self._fill = output, classes, swap, fill
        self.shapes: list[tuple[int, ...]] = []

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert self.input_shape[0] in (None, len(images))
        self.shapes.append(images.shape)
        rgb = images * np.array(PREPROCESSING.std)[:, None, None] + np.array(PREPROCESSING.mean)[:, None, None]
        distance = ((rgb[:, None] - np.array(COLOURS)[None, :, :, None, None] / 255) ** 2).sum(axis=2)
        if self._swap:
            distance[:, 1] = np.minimum(distance[:, 0], distance[:, 1]) - 1e-3
        if self._output == "mask":
            mask = distance.argmin(axis=1).astype(np.uint8)
            return {"mask": mask if self._fill is None else np.full_like(mask, self._fill)}
        logits = -distance[:, :, ::4, ::4].astype(np.float32)
        more = np.full((len(images), max(0, self._classes - CLASSES), *logits.shape[2:]), -9, np.float32)
        logits = np.concatenate([logits, more], axis=1)[:, : self._classes]
        return {self._output: logits if self._fill is None else np.full_like(logits, self._fill)}


def brute_force(labels: list[np.ndarray], found: list[np.ndarray], classes: int) -> dict[int, float]:
    """IoU of each class that is there, by sets of pixels."""
    ious = {}
    for k in range(classes):
        truth = {(i, p) for i, a in enumerate(labels) for p in range(a.size) if a.flat[p] == k}
        guess = {
            (i, p) for i, a in enumerate(found) for p in range(a.size) if a.flat[p] == k and labels[i].flat[p] >= 0
        }
        if truth | guess:
            ious[k] = len(truth & guess) / len(truth | guess)
    return ious


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    images=st.integers(1, 4),
    classes=st.integers(1, 7),
    kinds=st.integers(1, 7),
)
def test_the_figures_are_those_of_a_count(seed: int, images: int, classes: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    high = min(kinds, classes)
    labels = [rng.integers(-1, high, (5, 4)).astype(np.int16) for _ in range(images)]
    labels[0][0, 0] = 0  # something is labelled
    own, other = ([rng.integers(0, classes, (5, 4), np.uint8) for _ in range(images)] for _ in range(2))
    records = [count(i, labels[i], own[i], other[i], classes) for i in range(images)]
    alone = judged([count(i, labels[i], own[i], None, classes) for i in range(images)], classes)
    found, against = judged(records, classes, None, "fp32")
    assert against is not None
    assert (found, None) == alone
    expected = brute_force(labels, own, classes)
    assert {score.index: pytest.approx(score.iou) for score in found.classes} == expected
    assert found.miou.value == pytest.approx(sum(expected.values()) / len(expected))
    assert found.absent == classes - len(expected)
    truth, guess = np.concatenate([a.ravel() for a in labels]), np.concatenate([a.ravel() for a in own])
    accuracies = [(guess[truth == k] == k).mean() for k in range(classes) if (truth == k).any()]
    assert found.mean_accuracy == pytest.approx(np.mean(accuracies))
    assert found.pixel_accuracy == pytest.approx((guess == truth)[truth >= 0].mean())
    assert found.pixels == (truth >= 0).sum()
    theirs = brute_force(labels, other, classes)
    assert against.scores.miou.value == pytest.approx(sum(theirs.values()) / len(theirs))
    assert against.difference.value == pytest.approx(found.miou.value - against.scores.miou.value)
    assert against.agreement == pytest.approx(np.mean(np.concatenate(own) == np.concatenate(other)))
    changed = {k for k in range(classes) if (truth == k).any() and expected[k] != pytest.approx(theirs[k])}
    assert {change.index for change in against.changes} == changed
    losses = [change.after - change.before for change in against.changes]
    assert losses == sorted(losses)
    for estimate in (found.miou, against.difference):
        assert (estimate.low is None) == (images == 1)
        if estimate.low is not None and estimate.high is not None:
            assert estimate.low <= estimate.high


def resampled_miou(labels: np.ndarray, found: np.ndarray, draws: np.ndarray) -> np.ndarray:
    classes = np.arange(5)[:, None, None, None]
    valid, truth, guess = labels >= 0, labels == classes, found == classes
    right = (truth & guess).sum(axis=(2, 3))[:, draws].sum(axis=2)  # (class, draw)
    union = ((truth | guess) & valid).sum(axis=(2, 3))[:, draws].sum(axis=2)
    return np.nanmean(np.where(union > 0, right / np.maximum(union, 1), np.nan), axis=0)


def test_the_interval_is_that_of_drawing_pictures_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(-1, 4, (12, 6, 6)).astype(np.int16)
    labels[5, :2] = 4  # in one picture alone: many draws are without this class
    own = np.where(rng.random(labels.shape) < 0.8, labels % 5, rng.integers(0, 4, labels.shape)).astype(np.uint8)
    other = np.where(rng.random(labels.shape) < 0.6, labels % 5, rng.integers(0, 4, labels.shape)).astype(np.uint8)
    records = [count(i, labels[i], own[i], other[i], 5) for i in range(12)]
    draws = np.random.default_rng(1).integers(0, 12, (4000, 12))
    mine, theirs = (resampled_miou(labels, each, draws) for each in (own, other))
    own_scores, against = judged(records, 5, None, "b")
    assert against is not None
    found, difference = own_scores.miou, against.difference
    for estimate, values in ((found, mine), (difference, mine - theirs)):
        low, high = np.quantile(values, [0.025, 0.975])
        assert estimate.low == pytest.approx(low, abs=0.004)
        assert estimate.high == pytest.approx(high, abs=0.004)
    assert difference.low is not None
    assert difference.low > 0
    monkeypatch.setattr("sepvit_deploy.segmentation_scores._ENTRIES", 1200)  # a hundred draws, or classes, at a time
    assert judged(records, 5)[0].miou == found
    monkeypatch.setattr("sepvit_deploy.segmentation_scores._ENTRIES", 36)  # three
    assert judged(records, 5)[0].miou == Estimate(found.value, pytest.approx(found.low), pytest.approx(found.high))


def run(pairs: MaskSet, *runners: Fake, **options: Any) -> MaskEvaluation:
    options = {"preprocessing": PREPROCESSING, "labelling": ADE, "workers": 2} | options
    preprocessing, labelling = options.pop("preprocessing"), options.pop("labelling")
    against = runners[1] if runners[1:] else None
    return evaluate_masks(runners[0], pairs, preprocessing, labelling, against=against, **options)


@pytest.mark.parametrize("output", ["mask", "logits"])
@pytest.mark.parametrize(("batch", "fixed"), [(1, None), (4, None), (8, 4)])
def test_an_evaluation_however_it_is_batched(pairs: MaskSet, output: str, batch: int, fixed: int | None) -> None:
    shares: list[float] = []
    result = run(pairs, Fake(output=output, batch=fixed), batch=batch, progress=shares.append)
    assert (result.images, result.classes, result.unreadable) == (IMAGES, CLASSES, ())
    assert result.scores.miou.value > 0.7
    assert result.scores.pixels == sum((48 + k - 2) * 80 for k in range(IMAGES))
    assert (shares[-1], shares) == (1.0, sorted(shares))
    assert (result.images_folder, result.masks_folder) == (str(pairs.images.folder), str(pairs.folder))
    assert result.scores == run(pairs, Fake(output=output)).scores
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["scores"]["miou"]["meaningful"] is True


def test_against_another_file(pairs: MaskSet) -> None:
    result = run(pairs, Fake("int8.onnx", swap=True), Fake("fp32.onnx", output="logits"))
    assert result.against is not None
    assert result.against.model == "fp32.onnx"
    assert result.against.scores == run(pairs, Fake(output="logits")).scores
    assert result.against.changes[0].index == 0  # all of its pixels are taken for another class
    assert result.against.changes[0].after == 0
    assert result.against.difference.value < 0
    same = run(pairs, Fake("a"), Fake("b")).against
    assert same is not None
    assert (same.agreement, same.changes, same.difference) == (1.0, (), Estimate(0.0, 0.0, 0.0))


def test_figures_of_random_weights_say_so(pairs: MaskSet) -> None:
    values = run(pairs, Fake("a"), Fake("b"), meaningful=False, names=list("abcde")).to_dict()
    assert values["meaningful"] is False
    for found in (values["scores"], values["against"]["scores"]):
        assert [found[name]["meaningful"] for name in ("miou", "mean_accuracy", "pixel_accuracy")] == [False] * 3
    assert values["against"]["difference"]["meaningful"] is False
    assert [score["name"] for score in values["scores"]["classes"]] == list("abcde")


def test_a_file_of_any_size_gets_one_picture_at_a_time(pairs: MaskSet) -> None:
    runner = Fake(size=(None, None))
    preprocessing = Preprocessing((40, 64), None, "bilinear", keep_ratio=True)
    result = run(pairs, runner, preprocessing=preprocessing, batch=4)
    assert result.scores.miou.value > 0.7
    assert [shape[0] for shape in runner.shapes] == [1] * IMAGES
    assert len({shape[2:] for shape in runner.shapes}) > 1


def test_a_single_picture_has_no_interval(root: Path) -> None:
    result = run(mask_set(root, samples=1), Fake("a"), Fake("b"))
    assert (result.images, result.scores.miou.low, result.against and result.against.difference.high) == (1, None, None)


def ready(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root, tmp_path / "ade")
    return tmp_path / "ade"


def test_unreadable_pictures_are_passed_over(root: Path, tmp_path: Path) -> None:
    copy = ready(root, tmp_path)
    bad = copy / "images/validation/ADE_val_00000002.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    told: list[str] = []
    result = run(mask_set(copy), Fake(), warn=told.append)
    assert (result.images, result.unreadable) == (IMAGES - 1, ("ADE_val_00000002.jpg",))
    assert re.match(r"passed over: .*ADE_val_00000002\.jpg cannot be read", told[0])
    with pytest.raises(ImageError, match=r"^validation has 1 unreadable pictures or more, the last: .*at most 0; "):
        run(mask_set(copy), Fake(), max_unreadable=0)


class Picky(Fake):
    """Takes no image of a side below 16, as an engine whose profiles begin there."""

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if min(images.shape[2:]) < 16:
            raise InputError(
                f"{self.name} was given a batch of 1 at {images.shape[2]}x{images.shape[3]}", expected="1 at 16x16"
            )
        return super().run(images)


@pytest.mark.parametrize("picky", [0, 1], ids=["the evaluated file", "the other file"])
def test_a_picture_of_a_size_that_a_file_does_not_take_is_passed_over_by_both(
    root: Path, tmp_path: Path, picky: int
) -> None:
    copy = ready(root, tmp_path)
    Image.new("RGB", (400, 5)).save(copy / "images/validation/sliver.jpg")
    Image.new("L", (400, 5), 1).save(copy / "annotations/validation/sliver.png")
    runners: list[Fake] = [Fake(size=(None, None)), Fake(size=(None, None))]
    runners[picky] = Picky(size=(None, None))
    told: list[str] = []
    options: dict[str, Any] = {"preprocessing": Preprocessing((40, 64), None, "bilinear", keep_ratio=True)}
    result = run(mask_set(copy), *runners, **options, warn=told.append, resume=tmp_path / "progress")
    assert (result.images, result.unreadable) == (IMAGES, ("sliver.jpg",))
    assert result.scores == run(mask_set(root), Fake(size=(None, None)), **options).scores
    assert [line.partition("sliver.jpg")[2] for line in told] == [
        ": m.onnx was given a batch of 1 at 1x64; it takes 1 at 16x16"
    ]
    with pytest.raises(ImageError, match=r"the last: .*sliver\.jpg: m\.onnx was given .* 1x64; .*at most 0; "):
        run(mask_set(copy), *runners, **options, max_unreadable=0)


@pytest.mark.parametrize("layout", ["root", "images", "split", "val", "flat", "masks", "inside"])
def test_masks_are_found_beside_the_pictures(
    root: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = ready(root, tmp_path)
    source, masks, split = copy, None, "validation"
    if layout in ("images", "split"):
        source = copy / "images" / ("" if layout == "images" else split)
    elif layout == "inside":
        monkeypatch.chdir(copy / "images")
        source = Path(split)
    elif layout == "val":
        split = "val"
        for name in ("images", "annotations"):
            (copy / name / "validation").rename(copy / name / "val")
            shutil.copytree(copy / name / "val", copy / name / "training")
    elif layout == "flat":
        split = ""
        for name in ("images", "annotations"):
            shutil.copytree(copy / name / "validation", copy / name, dirs_exist_ok=True)
            shutil.rmtree(copy / name / "validation")
    elif layout == "masks":
        source, masks = copy / "images" / split, tmp_path / "elsewhere"
        (copy / "annotations" / split).rename(masks)
    pairs = mask_set(source, masks)
    assert len(pairs.files) == len(pairs.images.files) == IMAGES
    assert [path.stem for path in pairs.files] == [path.stem for path in pairs.images.files]
    if layout not in ("masks", "images"):
        assert pairs.folder.resolve() == (copy / "annotations" / split).resolve()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ("no masks", OptionError, "no masks are given for {root}/pictures; expected --masks DIR, or ADE20K's layout"),
        ("no split", ImageError, "{masks} is no folder"),
        ("no folder", ImageError, "{root}/nowhere is no folder; expected a folder with the mask of each picture"),
        (
            "no mask",
            ImageError,
            "{images}/ADE_val_00000001.jpg and 1 more without a mask; expected {masks}/ADE_val_00000001.png",
        ),
        (
            "no picture",
            ImageError,
            "{masks}/ADE_val_00000003.png without a picture; expected {images}/ADE_val_00000003.*; remove",
        ),
        (
            "two of one name",
            ImageError,
            "{images}/ADE_val_00000000.jpg and {images}/ADE_val_00000000.png have one name",
        ),
    ],
)
def test_folders_that_do_not_fit(root: Path, tmp_path: Path, change: str, kind: type[Exception], message: str) -> None:
    copy = ready(root, tmp_path)
    images, masks = copy / "images/validation", copy / "annotations/validation"
    source, named = images, None
    if change == "no masks":
        source = images.rename(copy / "pictures")
    elif change == "no split":
        source = copy
        shutil.rmtree(masks)
    elif change == "no folder":
        named = copy / "nowhere"
    elif change == "no mask":
        (masks / "ADE_val_00000001.png").unlink()
        (masks / "ADE_val_00000002.png").unlink()
    elif change == "no picture":
        (images / "ADE_val_00000003.jpg").unlink()
    else:
        shutil.copy(masks / "ADE_val_00000000.png", images)
    text = message.format(root=copy, images=images, masks=masks)
    with pytest.raises(kind, match=f"^{re.escape(text)}"):
        mask_set(source, named)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0, 3, 5], {}, "holds the value 5; expected 0 to 4 or 255, because m.onnx has 5 classes; add --reduce-zero"),
        ([0, 3, 6], {}, "holds the value 6; expected 0 to 4 or 255, because m.onnx has 5 classes$"),
        (
            [0, 6],
            {"reduce_zero_label": True},
            "holds the value 6; expected 0 to 5 or 255, because m.onnx has 5 classes$",
        ),
        ([0, 255], {"ignore": 7}, "holds the value 255; expected 0 to 4 or 7, because m.onnx has 5 classes$"),
    ],
)
def test_numbers_that_are_no_class(
    root: Path, tmp_path: Path, values: list[int], options: dict[str, Any], message: str
) -> None:
    copy = ready(root, tmp_path)
    for place in (copy / "annotations/validation").iterdir():
        with Image.open(place) as image:
            size = image.size
        Image.new("L", size, 1).save(place)
    bad = copy / "annotations/validation/ADE_val_00000004.png"
    Image.fromarray(np.resize(np.array(values, np.uint8), (52, 80))).save(bad)
    runner = Fake()
    with pytest.raises(ImageError, match=f"^{re.escape(str(bad))} {message}"):
        run(mask_set(copy), runner, labelling=Labelling(CLASSES, **options))
    assert runner.shapes == []  # before anything was run


@pytest.mark.parametrize(("values", "held"), [([0], "0"), ([0, 255], "0, 255")])
def test_masks_that_ignore_every_pixel(root: Path, tmp_path: Path, values: list[int], held: str) -> None:
    copy = ready(root, tmp_path)
    for k in range(IMAGES):
        path = copy / f"annotations/validation/ADE_val_{k:08}.png"
        Image.fromarray(np.resize(np.array(values, np.uint8), (48 + k, 80))).save(path)
    with pytest.raises(InputError, match=f"^all pixels of the masks are ignored: they hold {held} alone"):
        run(mask_set(copy), Fake())


def test_a_mask_of_another_size(root: Path, tmp_path: Path) -> None:
    copy = ready(root, tmp_path)
    Image.new("L", (80, 47), 1).save(copy / "annotations/validation/ADE_val_00000000.png")
    with pytest.raises(ImageError, match=r"00\.png has 47x80 pixels; expected 48x80, as .*00\.jpg has; a mask has"):
        run(mask_set(copy), Fake())


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        (Fake(output="logits", classes=6), {}, "^m.onnx gives logits of 6 classes; expected 5$"),
        (Fake(fill=5), {}, r"^m.onnx gave for .*00\.jpg the class 5; expected 0 to 4$"),
        (Fake(output="logits", fill=math.nan), {}, r"^m.onnx gave for .*00\.jpg logits that are not finite; check"),
        (Fake(output="stride4"), {}, r"^m.onnx gave for .*00\.jpg outputs stride4; expected logits or mask"),
        (Fake(), {"batch": 0}, "^--batch 0; expected 1 or more$"),
        (Fake(), {"workers": 0}, "^--workers 0; expected 1 or more$"),
    ],
    ids=["classes", "a class too high", "not finite", "no mask", "batch", "workers"],
)
def test_what_cannot_be_evaluated(pairs: MaskSet, runner: Fake, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(pairs, runner, **options)


def test_a_number_that_no_mask_can_hold() -> None:
    with pytest.raises(OptionError, match=r"^--ignore 256; expected 0 to 255"):
        Labelling(CLASSES, 256)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (
            256,
            {},
            "255, which is ignored in masks, is class 255 of 256; expected a number that is no class; "
            "type: --ignore 255 to leave it out",
        ),
        (
            255,
            {"reduce_zero_label": True},
            "255, which is ignored in masks, is class 254 of 255; expected a number that is no class; "
            "type: --ignore 0, which is no class",
        ),
        (257, {"ignore": 255}, "masks of 257 classes cannot be evaluated; expected at most 256, for a mask has 8 bits"),
    ],
    ids=["256", "255 reduced", "257"],
)
def test_classes_that_no_mask_can_tell_apart(classes: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        Labelling(classes, **options)


@pytest.mark.parametrize(
    ("labelling", "left_out"),
    [
        (Labelling(150, 3), 3),
        (Labelling(150, 3, True), 2),
        (Labelling(150, 0, True), None),
        (Labelling(150, 150), None),
        (Labelling(150, 150, True), 149),
        (Labelling(255), None),
        (Labelling(254, reduce_zero_label=True), None),
        (Labelling(256, 255), 255),
    ],
    ids=["3", "3-reduced", "0-reduced", "150", "150-reduced", "255-of-255", "255-of-254-reduced", "255-of-256"],
)
def test_the_class_that_is_ignored(labelling: Labelling, left_out: int | None) -> None:
    assert labelling.ignored_class == left_out
    assert sorted({*range(labelling.classes)} - {*labelling.table.tolist()}) == ([] if left_out is None else [left_out])


class Killed(BaseException):
    pass


class Dying(Fake):
    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if not self._left:
            raise Killed
        self._left -= 1
        return super().run(images)


def test_a_killed_evaluation_goes_on(pairs: MaskSet, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    kept: dict[str, Any] = {"resume": progress, "belongs": {"model": "a"}, "batch": 2}
    whole = run(pairs, Fake())
    with pytest.raises(Killed):
        run(pairs, Dying(2), **kept)
    lines = progress.read_bytes()
    assert lines.count(b"\n") == 5
    for cut in (lines, lines[:-9]):  # as it was, and torn in its last line
        progress.write_bytes(cut)
        rest = Fake()
        assert run(pairs, rest, **kept) == whole
        assert sum(shape[0] for shape in rest.shapes) == (2 if cut == lines else 4)
        assert not progress.exists()
    progress.write_bytes(lines)
    for options, what in (
        ({"belongs": {"model": "b"}}, "model"),
        ({"labelling": Labelling(CLASSES, 254, True)}, "labels"),
        ({"preprocessing": Preprocessing(SIZE, None)}, "preprocessing"),
    ):
        with pytest.raises(InputError, match=f"is the progress of other work: another {what}; remove it"):
            run(pairs, Fake(), **kept | options)


@pytest.mark.parametrize(
    "line",
    [
        "[0, 3840, 0, [[5, 1, 1, 1]]]",
        "[9, 3840, 0, []]",
        "[0, 3840, 0, [[0, 1, 1]]]",
        "[0, 3840, 0, [[0, 1, 1, 1, 1, 1]]]",
        "[0, 3840, 0, [[0, -1, 1, 1]]]",
        "[0, 3840.0, 0, []]",
        "[0, 0, 0, []]",
        "[0, 3840, 0, 7]",
        "[0, 3840, 0]",
    ],
)
def test_progress_with_a_record_that_cannot_be(pairs: MaskSet, tmp_path: Path, line: str) -> None:
    progress = tmp_path / "progress"
    kept: dict[str, Any] = {"resume": progress, "batch": 1}
    with pytest.raises(Killed):
        run(pairs, Dying(1), **kept)
    progress.write_bytes(progress.read_bytes().splitlines(keepends=True)[0] + line.encode() + b"\n")
    with pytest.raises(InputError, match=r"holds no record of a picture in line 2; remove it$"):
        run(pairs, Fake(), **kept)
