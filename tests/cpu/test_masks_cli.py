"""`evaluate` and `predict` with segmentation files as a stranger meets them, and their resize beside torch's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sepvit_deploy.masks import class_mask, palette, read_mask
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.cpu.commands import PHOTO, call, complaint
from tests.unit.segmenters import COLOURS, NAMES, ade20k, passport_of, scene, segmenter

CLIENT = PHOTO.with_name("client.py")
IMAGES = 5
UNTRAINED = "warning: this file holds random weights: "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one task in their forms, and pictures in ADE20K's layout."""
    folder = tmp_path_factory.mktemp("made")
    segmenter(folder / "fp32.onnx", classes=NAMES)
    segmenter(folder / "int8.onnx", bias=(0, 0, 3, 0, 0), classes=NAMES)
    segmenter(folder / "mask.onnx", output="mask")
    segmenter(folder / "any.onnx", size=(64, 256), any_size=True)
    segmenter(folder / "random.onnx", seed=0)
    segmenter(folder / "four.onnx", colours=COLOURS[:4])
    ade20k(folder / "ade", IMAGES)
    return folder


@pytest.mark.parametrize(
    ("small", "middle", "picture"),
    [
        ((8, 8), (32, 32), (50, 70)),
        ((16, 9), (61, 35), (7, 600)),
        ((16, 16), (64, 64), (5, 5)),
        ((1, 1), (4, 4), (3, 2)),
    ],
    ids=str,
)
def test_masks_are_those_of_torch(small: tuple[int, int], middle: tuple[int, int], picture: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 7, *small)).astype(np.float32)
    maps = torch.from_numpy(logits)
    for size in (middle, picture):
        maps = torch.nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    mask = class_mask({"logits": logits}, 1, input_size=middle, picture_size=picture)
    top = maps[1].topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-5).numpy()
    assert clear.mean() > 0.99
    assert np.array_equal(mask[clear], maps[1].argmax(dim=0).numpy()[clear])


@pytest.mark.parametrize("name", ["fp32.onnx", "mask.onnx", "any.onnx"])
def test_evaluate_finds_ade20ks_masks(made: Path, name: str) -> None:
    done = call("evaluate", made / name, "--images", made / "ade", "--reduce-zero-label", "--json")
    assert done.code == 0, done
    document = done.document
    assert (document["images"], document["classes"], document["ignore"]) == (IMAGES, 5, 255)
    assert document["masks_folder"] == str(made / "ade/annotations/validation")
    miou = document["scores"]["miou"]
    assert miou["meaningful"] is True
    assert 0.8 < miou["low"] <= miou["value"] <= miou["high"] <= 1
    assert document["model_sha256"] == passport_of(made / name)["sha256"]


def test_a_class_that_is_ignored_is_named(made: Path) -> None:
    given: tuple[Any, ...] = ("evaluate", made / "mask.onnx", "--images", made / "ade", "--reduce-zero-label")
    done = call(*given, "--ignore", "3")
    assert done.code == 0, done
    assert (
        "\npixels of class 2 are left out, for their value 3 is ignored; where it is predicted elsewhere, " in done.out
    )
    assert call(*given, "--ignore", "3", "--json").document["ignored_class"] == 2


def test_predict_looks_for_its_folder_before_it_loads_the_file(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(OnnxRuntimeRunner, "__init__", load)
    with pytest.raises(AssertionError, match="loaded"):
        call("predict", made / "mask.onnx", PHOTO, "--output", made)
    assert "the folder none does not exist" in complaint(call("predict", made / "mask.onnx", PHOTO, "--output", "none"))


def test_the_client_writes_no_mask_over_another(tmp_path: Path) -> None:
    asked = (sys.executable, CLIENT, "--url", "127.0.0.1:1", "--segment", "m", "a/x.jpg", "b/x.jpg")
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (1, "", [])
    assert done.stderr == "error: a/x.jpg and b/x.jpg would both be written to x.mask.png; rename one of them\n"


def test_what_evaluate_prints(made: Path) -> None:
    images = made / "ade/images/validation"
    done = call(
        "evaluate", made / "int8.onnx", "--images", images, "--reduce-zero-label", "--against", made / "fp32.onnx"
    )
    assert done.code == 0, done
    masks = made / "ade/annotations/validation"
    assert done.out.startswith(f"int8.onnx on {IMAGES} images of {images}; masks of {masks}\n")
    for text in (
        "classes, the lowest IoU first",
        "water",
        "\nmIoU: 9",
        "\nmean accuracy: 9",
        "\nfp32.onnx mIoU: 9",
        "\nmIoU less that of fp32.onnx: ",
        "\nagreement with fp32.onnx: 9",
        "IoU that changed, the greatest loss first",
    ):
        assert text in done.out, text
    assert "meaningful" not in done.out


def test_random_weights_are_not_meaningful(made: Path) -> None:
    done = call("evaluate", made / "random.onnx", "--images", made / "ade", "--reduce-zero-label", "--samples", "1")
    assert done.code == 0, done
    assert UNTRAINED in done.err
    assert "(of one image: no interval) (not meaningful: untrained weights)\n" in done.out
    assert "in no mask and never predicted, and not in the means" in done.out


def test_masks_of_another_folder_with_another_number_to_ignore(made: Path, tmp_path: Path) -> None:
    for number in range(3):
        pixels, labels = scene(number)
        labels[:4] = 77
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "masks" / f"{number}.png")
    shutil.move(tmp_path / "masks", tmp_path.parent / f"{tmp_path.name}-masks")
    masks = tmp_path.parent / f"{tmp_path.name}-masks"
    given: tuple[Any, ...] = ("evaluate", made / "mask.onnx", "--images", tmp_path, "--masks", masks)
    done = call(*given, "--ignore", "77", "--json")
    assert done.code == 0, done
    assert done.document["scores"]["pixels"] == 3 * 44 * 80
    assert "are left out" not in call(*given, "--ignore", "77").out
    assert "holds the value 77; expected 0 to 4 or 255, because mask.onnx has 5 classes" in complaint(call(*given))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("fp32.onnx",),
            "holds the value 5; expected 0 to 4 or 255, because fp32.onnx has 5 classes; add --reduce-zero",
        ),
        (("fp32.onnx", "--labels", "l.txt"), "fp32.onnx, a segmentation file; expected --masks DIR"),
        (("fp32.onnx", "--masks", "nowhere"), "nowhere is no folder; expected a folder with the mask of each picture"),
        (("fp32.onnx", "--ignore", "256"), "--ignore 256; expected 0 to 255"),
        (("fp32.onnx", "--against", "four.onnx"), "four.onnx has 4 classes; expected 5, as "),
        (("fp32.onnx", "--against", "any.onnx"), "any.onnx prepares pictures in another way than "),
        (("fp32.onnx", "--against", "torch:lite"), "torch:lite is of the task classify; expected segment, as "),
        (("torch:lite", "--against", "fp32.onnx"), "fp32.onnx is of the task segment; expected classify, as torch:l"),
        (
            ("torch:lite", "--masks", "m", "--reduce-zero-label"),
            "--masks, --reduce-zero-label with torch:lite, a file of the task classify; expected a segmentation file",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_evaluate_refuses(made: Path, arguments: tuple[str, ...], message: str) -> None:
    placed = [made / word if word.endswith((".onnx", "nowhere")) else word for word in arguments]
    assert message in complaint(call("evaluate", *placed, "--images", made / "ade"))


def test_a_folder_without_masks(made: Path) -> None:
    text = complaint(call("evaluate", made / "fp32.onnx", "--images", PHOTO.parent))
    assert "no masks are given for" in text
    assert "expected --masks DIR, or ADE20K's layout" in text


@pytest.mark.parametrize("name", ["fp32.onnx", "mask.onnx", "any.onnx"])
def test_predict_lays_the_mask_over_the_picture(
    made: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = scene(1, (64, 96))
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    done = call("predict", made / name, "scene.png", "--masks", "--json")
    assert done.code == 0, done
    (prediction,) = done.document["predictions"]
    assert done.document["meaningful"] is True
    assert (prediction["image"], prediction["overlay"], prediction["mask"]) == (
        "scene.png", "scene.overlay.png", "scene.mask.png",
    )  # fmt: skip
    assert (prediction["height"], prediction["width"]) == (64, 96)
    mask = read_mask("scene.mask.png")
    assert (mask == labels).mean() > 0.95
    first = prediction["classes"][0]
    assert first["share"] == pytest.approx((mask == first["class"]).mean())
    assert first["label"] == (NAMES[first["class"]] if name == "fp32.onnx" else f"class {first['class']}")
    with Image.open("scene.overlay.png") as image:
        assert image.size > (288, 192)  # three times as large, and the legend beside it
        assert image.mode == "RGB"


def test_what_predict_prints(made: Path, tmp_path: Path) -> None:
    done = call("predict", made / "random.onnx", PHOTO, "--output", tmp_path, "--top", "2")
    assert done.code == 0, done
    assert UNTRAINED in done.err
    assert done.out.startswith(f"{PHOTO}: {tmp_path / 'chelsea.overlay.png'}\n")
    assert "class 0" in done.out
    assert "more: --top 4 shows them all\n" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["chelsea.overlay.png"]


def test_names_and_colours_of_the_passport_and_of_a_file(tmp_path: Path) -> None:
    colours = [[10 * k, 0, 255] for k in range(5)]
    file = segmenter(tmp_path / "m.onnx", output="mask", classes=NAMES, palette=colours)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    given: tuple[Any, ...] = ("predict", file, PHOTO, "--output", tmp_path, "--masks", "--json")
    assert {row["label"] for row in call(*given).document["predictions"][0]["classes"]} <= set(NAMES)
    labels = ("--labels", tmp_path / "labels.txt")
    assert {row["label"] for row in call(*given, *labels).document["predictions"][0]["classes"]} <= set("abcde")
    with Image.open(tmp_path / "chelsea.mask.png") as image:
        assert image.getpalette()[:15] == [channel for colour in colours for channel in colour]
    assert palette(5) != [tuple(colour) for colour in colours]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"classes": NAMES[:4]}, "the passport's classes are 4 entries; expected 5 names; export again"),
        ({"palette": [[0, 0, 256]] * 5}, "the passport's palette are 5 entries; expected 5 colours"),
    ],
    ids=["classes", "palette"],
)
def test_a_passport_that_names_other_classes(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    file = segmenter(tmp_path / "m.onnx", **facts)
    assert message in complaint(call("predict", file, PHOTO, "--output", tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fp32.onnx", PHOTO, PHOTO), "chelsea.jpg, would overwrite that of "),
        (("fp32.onnx", PHOTO, "--top", "0"), "--top 0; expected 1 or more"),
        (("fp32.onnx", PHOTO, "--output", "none"), "the folder none does not exist; type: mkdir -p none"),
        (("torch:lite", PHOTO, "--masks"), "--masks with torch:lite, which is no segmentation file"),
        (("torch:lite", PHOTO, "--output", "x"), "--output with torch:lite, which is no segmentation file"),
    ],
    ids=["twice", "top", "folder", "masks", "output"],
)
def test_what_predict_refuses(
    made: Path, arguments: tuple[Any, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    placed = [made / word if str(word).endswith(".onnx") else word for word in arguments]
    assert message in complaint(call("predict", *placed))
    assert list(tmp_path.iterdir()) == []


def test_labels_that_are_too_few(made: Path, tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps(["a", "b"]))
    text = complaint(call("predict", made / "fp32.onnx", PHOTO, "--labels", tmp_path / "l.json", "--output", tmp_path))
    assert "--labels has 2 labels; expected 5, one for each class" in text
