"""The record of a deployed model: what it accepts, what it refuses and with which words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.errors import OptionError
from sepvit_deploy.masks import MOST_CLASSES
from sepvit_deploy.spec import ModelSpec, Preprocessing, parse_image_size, parse_input_size
from sepvit_deploy.variants import VARIANTS

CLASSIFY = ModelSpec("lite", "classify", (224, 224), 1000)
DENSE = ModelSpec("t", "dense", (512, 768), 21)
SIDES = st.integers(1, 4096)


def refused(match: str) -> Any:
    return pytest.raises(OptionError, match=re.escape(match))


def test_classification_is_imagenets_evaluation() -> None:
    assert Preprocessing.for_task("classify", (224, 224)).to_dict() == {
        "size": [224, 224],
        "resize_shorter": 256,
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "channel_order": "RGB",
    }


@pytest.mark.parametrize(("side", "shorter"), [(224, 256), (192, 219), (384, 439), (1, 1), (7, 8)])
def test_classification_keeps_the_ratio_of_256_to_224(side: int, shorter: int) -> None:
    assert Preprocessing.for_task("classify", (side, side)).resize_shorter == shorter


def test_dense_pictures_are_resized_without_a_crop() -> None:
    preprocessing = Preprocessing.for_task("dense", (512, 768))
    assert (preprocessing.size, preprocessing.resize_shorter) == ((512, 768), None)


@given(task=st.sampled_from(["classify", "dense"]), size=st.tuples(SIDES, SIDES))
def test_preprocessing_survives_json(task: Any, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing.for_task(task, size)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


BAD_PREPROCESSING = [
    ("size", [0, 224], "preprocessing.size is 0; expected an integer of at least 1"),
    ("size", [224, -1], "preprocessing.size is -1"),
    ("size", [224.0, 224], "preprocessing.size is 224.0"),
    ("size", [True, 224], "preprocessing.size is True"),
    ("size", [224], "preprocessing.size is [224]; expected height and width, two integers"),
    ("size", "224x224", "preprocessing.size is '224x224'"),
    ("resize_shorter", 223, "preprocessing.resize_shorter is 223; expected an integer of at least 224"),
    ("resize_shorter", 256.0, "preprocessing.resize_shorter is 256.0"),
    ("interpolation", "nearest", "preprocessing.interpolation is 'nearest'; expected bicubic or bilinear"),
    ("keep_ratio", True, "preprocessing.keep_ratio is True, resize_shorter 256; expected true or false, and true"),
    ("keep_ratio", "no", "preprocessing.keep_ratio is 'no'"),
    ("interpolation", ["bicubic"], "preprocessing.interpolation is ['bicubic']"),
    ("channel_order", "BGR", "preprocessing.channel_order is 'BGR'; expected RGB"),
    ("mean", [0.5, 0.5], "preprocessing.mean is [0.5, 0.5]; expected three numbers"),
    ("mean", [0.5, 0.5, float("nan")], "preprocessing.mean is [0.5, 0.5, nan]"),
    ("mean", [0.5, float("-inf"), 0.5], "preprocessing.mean is [0.5, -inf, 0.5]"),
    ("mean", [0.5, 0.5, "0.5"], "preprocessing.mean is [0.5, 0.5, '0.5']"),
    ("mean", 0.5, "preprocessing.mean is 0.5"),
    ("mean", [10**400, 0, 0], "preprocessing.mean is [1000"),
    ("std", [0.2, 0.0, 0.2], "preprocessing.std is [0.2, 0.0, 0.2]; expected three numbers from 1e-06 to 1e+06"),
    ("std", [0.2, 0.2, -0.2], "preprocessing.std is [0.2, 0.2, -0.2]"),
    ("std", [0.2, 0.2, 1e-300], "preprocessing.std is [0.2, 0.2, 1e-300]"),  # zero in float32
    ("std", [0.2, 0.2, float("inf")], "preprocessing.std is [0.2, 0.2, inf]"),
    ("std", [True, 0.2, 0.2], "preprocessing.std is [True, 0.2, 0.2]"),
]


@pytest.mark.parametrize(("key", "value", "match"), BAD_PREPROCESSING)
def test_preprocessing_refuses_and_names_the_key(key: str, value: Any, match: str) -> None:
    good = CLASSIFY.preprocessing
    with refused(match):
        Preprocessing.from_dict(good.to_dict() | {key: value})
    with refused(match):
        replace(good, **{key: value})


def test_pixels_may_be_scaled_to_any_range() -> None:
    preprocessing = Preprocessing((8, 8), None, mean=(-1, 0, 1), std=(2, 2, 2))
    assert (preprocessing.mean, preprocessing.std) == ((-1.0, 0.0, 1.0), (2.0, 2.0, 2.0))


@pytest.mark.parametrize("record", [CLASSIFY, DENSE, CLASSIFY.preprocessing, DENSE.preprocessing])
def test_every_key_is_required_and_no_other_is_taken(record: ModelSpec | Preprocessing) -> None:
    what = "model" if isinstance(record, ModelSpec) else "preprocessing"
    values = record.to_dict()
    for key in values:
        with refused(f"missing: {what}.{key}; expected the keys {', '.join(values)}"):
            type(record).from_dict({name: value for name, value in values.items() if name != key})
    with refused(f"unknown: {what}.colour"):
        type(record).from_dict(values | {"colour": 1})
    with refused(f"{what} is [1]; expected a table of keys and values"):
        type(record).from_dict([1])  # type: ignore[arg-type]


def test_a_spec_is_frozen_and_hashable() -> None:
    with pytest.raises(FrozenInstanceError):
        CLASSIFY.task = "dense"  # type: ignore[misc]
    listed = ModelSpec("t", "dense", [512, 768], 21)  # type: ignore[arg-type]
    assert len({DENSE, listed}) == 1


def test_tensor_names() -> None:
    assert (CLASSIFY.input_name, CLASSIFY.output_names) == ("images", ("logits",))
    assert (DENSE.input_name, DENSE.output_names) == ("images", ("stride4", "stride8", "stride16", "stride32"))


def test_a_spec_knows_its_preprocessing() -> None:
    assert CLASSIFY.preprocessing == Preprocessing((224, 224), 256)
    assert DENSE.preprocessing == Preprocessing((512, 768), None)


@pytest.mark.parametrize("variant", VARIANTS)
@given(size=st.tuples(SIDES, SIDES), num_classes=st.integers(1, 1_000_000))
def test_a_spec_survives_toml(variant: str, size: tuple[int, int], num_classes: int) -> None:
    spec = ModelSpec(variant, "dense", size, num_classes)
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in spec.to_dict().items())
    assert ModelSpec.from_dict(tomllib.loads(text)) == spec


BAD_MODEL = [
    ("variant", "xl", "there is no variant 'xl'; expected one of lite, t, s, b"),
    ("variant", ["t"], "variant is ['t']; expected the name of a variant"),
    ("task", "detect", "task is 'detect'; expected classify or dense or segment"),
    ("task", "segment", "--task segment without --head; expected --head fpn or --head upernet"),
    ("head", "fpn", "--head fpn with --task dense; expected --task segment"),
    ("output", "mask", "--output-kind mask with --task dense; expected --task segment"),
    ("output", "masks", "output is 'masks'; expected logits or mask"),
    ("any_size", 1.5, "any_size is 1.5 for the task dense; expected true or false, and false for classification"),
    ("task", None, "task is None"),
    ("size", [0, 32], "size is 0"),
    ("size", [4097, 32], "size is 4097x32; expected sides of 1 to 4096 pixels"),
    ("size", [32, 4097], "size is 32x4097"),
    ("num_classes", 0, "num_classes is 0; expected an integer from 1 to 1000000"),
    ("num_classes", 1_000_001, "num_classes is 1000001"),
    ("num_classes", True, "num_classes is True"),
    ("num_classes", "21", "num_classes is '21'"),
]


@pytest.mark.parametrize(("key", "value", "match"), BAD_MODEL)
def test_a_spec_refuses_and_names_the_key(key: str, value: object, match: str) -> None:
    with refused(match):
        ModelSpec.from_dict(DENSE.to_dict() | {key: value})


@pytest.mark.parametrize("size", [(192, 192), (224, 225), (256, 224), (4097, 4097)])
def test_classification_is_locked_and_says_why(size: tuple[int, int]) -> None:
    with pytest.raises(OptionError) as caught:
        replace(CLASSIFY, size=size)
    assert str(caught.value) == (
        f"size is {size[0]}x{size[1]} for classification; expected 224x224, because the learned window tokens are "
        "counted for 224 pixels; other sizes need the task dense or segment"
    )


@pytest.mark.parametrize("size", [(1, 1), (4096, 4096), (1, 4096)])
def test_the_limits_of_dense_sizes_are_accepted(size: tuple[int, int]) -> None:
    assert replace(DENSE, size=size).size == size


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("512x768", (512, 768)), ("1x1", (1, 1))])
def test_image_sizes_are_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "224x0", "x", "224x", "x224", "-1", "+1", "1.5", "224X224", " 224", "224\n", "1x2x3", "२२४", "9" * 9],
)
def test_other_texts_are_no_image_size(text: str) -> None:
    with refused(f"image size {text!r}; expected pixels as 224, or height x width as 512x768"):
        parse_image_size(text)


@given(text=st.text(alphabet="0123456789x-. d", max_size=8))
def test_a_size_is_parsed_whole_or_refused(text: str) -> None:
    try:
        height, width = parse_image_size(text)
    except OptionError:
        return
    assert text in {f"{height}x{width}", f"{height}" if height == width else ""}


@pytest.mark.parametrize(
    ("text", "size", "any_size"),
    [("512x768", (512, 768), False), ("dynamic", (512, 2048), True), ("dynamic:300x400", (300, 400), True)],
)
def test_an_input_size_may_be_any(text: str, size: tuple[int, int], any_size: bool) -> None:
    assert parse_input_size(text) == (size, any_size)


@pytest.mark.parametrize("text", ["dynamic:", "dynamic:0x4", "dynamically", "any"])
def test_an_input_size_that_is_none(text: str) -> None:
    with pytest.raises(OptionError, match="expected pixels as 224"):
        parse_input_size(text)


def test_what_segmentation_adds_is_written_only_where_it_is_said() -> None:
    spec = ModelSpec("t", "segment", (512, 512), 150, head="fpn")
    assert spec.output_names == ("logits",)
    always = {"variant": "t", "task": "segment", "size": [512, 512], "num_classes": 150}
    assert spec.to_dict() == always | {"head": "fpn"}
    masks = replace(spec, output="mask", any_size=True)
    assert masks.output_names == ("mask",)
    assert ModelSpec.from_dict(masks.to_dict()) == masks
    assert masks.preprocessing.keep_ratio
    assert masks.preprocessing.interpolation == "bilinear"
    assert "keep_ratio" not in spec.preprocessing.to_dict()
    with pytest.raises(OptionError, match="at most 256, for a mask is of uint8"):
        replace(masks, num_classes=257)
    assert replace(spec, num_classes=MOST_CLASSES).num_classes == MOST_CLASSES
    with pytest.raises(OptionError, match=r"^a segmentation model has 65537 classes; expected at most 65536, for a"):
        replace(spec, num_classes=MOST_CLASSES + 1)


@pytest.mark.parametrize("module", ["spec", "images"])
def test_importing_needs_neither_numpy_nor_pillow_nor_torch(module: str) -> None:
    code = f"import sys, sepvit_deploy.{module}; print(sorted({{'numpy', 'PIL', 'torch'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
