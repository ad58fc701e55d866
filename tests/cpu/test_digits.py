"""The trained checkpoint, its pictures and its scale table: what the repository says of them is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sepvit_deploy import pipeline
from sepvit_deploy.artifact import sha256
from sepvit_deploy.errors import ImageError
from sepvit_deploy.graph import load_graph
from sepvit_deploy.image_sets import image_set
from sepvit_deploy.images import load_image
from sepvit_deploy.mask_sets import mask_set
from sepvit_deploy.masks import read_mask
from sepvit_deploy.scales import read_scales, weights_digest
from sepvit_deploy.spec_file import read_spec
from tests.repo.layers import ROOT

CHECKPOINT = ROOT / "models" / "sepvit_lite_digits.safetensors"
TABLE = ROOT / "calib" / "digits.scales.json"
TESTED = 120


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import digits
    finally:
        sys.path.pop(0)
    return digits


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `benchmarks/digits.py` makes it, with fewer test pictures, beside a copy of the manifest."""
    folder = tmp_path_factory.mktemp("pictures")
    command = [sys.executable, str(ROOT / "benchmarks" / "digits.py"), "--test", str(TESTED)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "calib").mkdir()
    (folder / "calib" / "digits.toml").write_bytes((ROOT / "calib" / "digits.toml").read_bytes())
    return folder


@pytest.fixture(scope="module")
def fp32(exported: Callable[..., Path]) -> Path:
    return exported("--variant", "lite", "--weights", str(CHECKPOINT))


def test_no_digit_is_in_two_splits(digits: ModuleType) -> None:
    sources = [digits.source(split) for split in digits.SPLITS]
    indices = np.concatenate([source.indices for source in sources])
    assert len(np.unique(indices)) == len(indices) == sum(digits.SPLITS.values())
    for source in sources:
        assert set(source.classes) == set(range(10))


def test_a_picture_depends_on_its_number_alone(digits: ModuleType) -> None:
    few = [np.asarray(picture) for picture, _ in digits.pictures("test", 3)]
    more = [np.asarray(picture) for picture, _ in digits.pictures("test", 5)]
    assert all((a == b).all() for a, b in zip(few, more, strict=False))
    assert not (few[0] == np.asarray(next(digits.pictures("test", 1, seed=1))[0])).all()
    assert {picture.shape for picture in more} == {(224, 224, 3)}


def test_the_calibration_pictures_are_those_of_the_manifest(pictures: Path) -> None:
    images = image_set(pictures / "calib" / "digits.toml")
    assert len(images.files) == 512
    assert images.sha256 == read_scales(TABLE).images.sha256
    first = images.files[0]
    content = bytearray(first.read_bytes())
    first.write_bytes(bytes(content) + b" ")
    try:
        with pytest.raises(Exception, match=r"python benchmarks/digits\.py"):
            image_set(pictures / "calib" / "digits.toml")
    finally:
        first.write_bytes(content)


def test_a_mask_is_of_the_digit_alone(digits: ModuleType) -> None:
    plain = list(digits.masked_pictures("test", 10, level=0.0))
    for number, (picture, mask) in enumerate(plain):
        values = np.asarray(mask)
        assert mask.mode == "L" and mask.size == picture.size
        assert set(np.unique(values)) == {0, number + 1}  # background, and the digit's class
        grey = np.asarray(picture.convert("L")).astype(float)
        # The edge of the digit is where the mask ends: both sides of it differ by the contrast of a plain picture.
        inside = grey[values > 0].mean()
        assert inside - grey[values == 0].mean() > digits.LEAST_CONTRAST
        moved = np.roll(values, 40, axis=1)
        assert inside > grey[moved > 0].mean() + digits.LEAST_CONTRAST / 2  # a mask of another place would not do
    for number, (_, mask) in enumerate(digits.masked_pictures("test", 10, level=1.0)):
        values = np.asarray(mask)
        assert set(np.unique(values)) == {0, number + 1}  # with distractors and fragments in the picture
        assert 0.01 < (values > 0).mean() < 0.3


def test_a_mask_leaves_its_picture_as_it_is_without(digits: ModuleType) -> None:
    masked = list(digits.masked_pictures("calibration", 4))
    for (picture, _), (plain, _) in zip(masked, digits.pictures("calibration", 4), strict=True):
        assert picture.tobytes() == plain.tobytes()
    for (_, mask), (_, again) in zip(masked, digits.masked_pictures("calibration", 3), strict=False):
        assert mask.tobytes() == again.tobytes()


def test_masks_are_written_in_the_layout_of_ade20k(digits: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "digits.py"), "--masks", "--calibration", "2", "--test", "3"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = mask_set(tmp_path / "digits_masks")
    assert [path.name for path in found.files] == ["00000.png", "00001.png", "00002.png"]
    assert found.folder == tmp_path / "digits_masks" / "annotations" / "validation"
    assert len(mask_set(tmp_path / "digits_masks" / "images" / "calibration").files) == 2
    made = digits.masked_pictures("test", 3)
    for image, file, (picture, mask) in zip(found.images.files, found.files, made, strict=True):
        assert load_image(image).tobytes() == picture.tobytes()
        assert (read_mask(file) == np.asarray(mask)).all()


def test_the_masked_calibration_pictures_are_those_of_their_manifest(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits_masks" / "images" / "calibration"
    folder.mkdir(parents=True)
    for path in (pictures / "digits" / "calibration").rglob("*.png"):
        (folder / path.name).symlink_to(path)  # the same pictures, without folders of their classes
    (tmp_path / "calib").mkdir()
    manifest = tmp_path / "calib" / "digits_segmentation.toml"
    manifest.write_bytes((ROOT / "calib" / "digits_segmentation.toml").read_bytes())
    assert len(image_set(manifest).files) == 512
    (folder / "00000.png").unlink()
    (folder / "00000.png").symlink_to(folder / "00001.png")
    with pytest.raises(ImageError, match=r"python benchmarks/digits\.py --masks"):
        image_set(manifest)


def test_the_scale_table_is_of_the_checkpoint(fp32: Path) -> None:
    assert read_scales(TABLE).weights_sha256 == weights_digest(load_graph(fp32))


def test_int8_keeps_the_decisions(fp32: Path, pictures: Path, tmp_path: Path) -> None:
    scales, int8 = tmp_path / "digits.scales.json", tmp_path / "int8.onnx"
    spec = read_spec(ROOT / "models" / "sepvit_lite_digits_int8.toml")
    pipeline.calibrate(fp32, pictures / "digits" / "calibration", scales, method=spec.calibration.method, samples=80)
    made = pipeline.quantize(fp32, int8, precision="int8", scales=scales)
    assert made.lint.products["INT8"] == {"Conv": 4, "MatMul": 50}
    found = pipeline.evaluate(int8, pictures / "digits" / "test", against=fp32)
    assert found.images == TESTED and found.meaningful
    assert found.top1 is not None and found.top1.share > 0.8
    assert found.against is not None and found.against.agreement.share >= 0.97


def test_the_card_tells_the_checkpoint_and_the_last_run() -> None:
    card = CHECKPOINT.with_suffix(".md").read_text(encoding="utf-8")
    trained = json.loads(CHECKPOINT.with_suffix(".training.json").read_text(encoding="utf-8"))
    assert sha256(CHECKPOINT) == trained["sha256"]
    assert trained["sha256"] in card and f"{trained['minutes']} minutes" in card
    (top1,) = re.findall(r"^- Top-1 on (\d+) test pictures: ([\d.]+) %", card, re.MULTILINE)
    assert int(top1[0]) >= 1000 and 90 <= float(top1[1]) <= 99
    assert CHECKPOINT.stat().st_size <= 16 << 20
