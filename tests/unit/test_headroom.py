"""What a float32 graph needs of FP16's range, against NumPy, and the gate behind it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sepvit_deploy.errors import CheckFailed, GraphError, HeadroomFailed, ImageError
from sepvit_deploy.half import LARGEST, SMALLEST_NORMAL
from sepvit_deploy.headroom import Headroom, headroom
from tests.unit.graphs import graph

IMAGES = np.random.default_rng(3).standard_normal((5, 3, 4, 4), dtype=np.float32)
ENDS = {"x": "float[B,3,4,4] images", "y": "float[B,3,4,4] y"}
BODY = """["a.b/Mul"] big = Mul(images, k)
["a/Transpose"] moved = Transpose<perm = [0, 2, 3, 1]>(big)
["c/Mul"] small = Mul(images, tiny)
["d/Sub"] other = Add(big, small)
["y/Neg"] y = Neg(other)"""


def scaled(k: float, tiny: float = 1e-5, **ends: str) -> onnx.ModelProto:
    model = graph(BODY, {"k": (), "tiny": ()}, **(ENDS | ends))
    for tensor in model.graph.initializer:
        value = np.array(k if tensor.name == "k" else tiny, np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def measured(model: onnx.ModelProto, images: np.ndarray = IMAGES, *, at_once: int = 3) -> Headroom:
    names = [f"{i}.png" for i in range(len(images))]
    starts = range(0, len(images), at_once)
    return headroom(model, [(names[i : i + at_once], images[i : i + at_once]) for i in starts], threads=1)


def test_each_tensor_has_what_numpy_finds() -> None:
    report = measured(scaled(100.0))
    assert report.images == 5
    found = {tensor.tensor: tensor for tensor in report.tensors}
    assert found.keys() == {"images", "big", "small", "other", "y"}  # what only moves makes no new numbers
    for name, factor in (("images", 1.0), ("big", 100.0), ("small", 1e-5)):
        values = np.abs(IMAGES * np.float32(factor))
        assert found[name].largest == values.max()
        assert found[name].share == values.max() / LARGEST
        assert found[name].subnormal == pytest.approx((values < SMALLEST_NORMAL).mean())
        assert found[name].image == f"{int(values.max(axis=(1, 2, 3)).argmax())}.png"
    assert found["big"].node == "a.b/Mul"
    assert found["small"].subnormal > 0.9


def test_zeros_are_not_subnormal() -> None:
    found = {tensor.tensor: tensor for tensor in measured(scaled(0.0)).tensors}
    assert (found["big"].largest, found["big"].subnormal) == (0.0, 0.0)


def test_the_worst_come_first() -> None:
    largest = [tensor.largest for tensor in measured(scaled(100.0)).tensors]
    assert largest == sorted(largest, reverse=True)


def test_a_finite_graph_passes() -> None:
    measured(scaled(100.0)).require_finite("f.onnx")


@pytest.mark.parametrize("k", [1e5, 1e38, np.inf])
def test_an_overflow_is_refused_with_its_layer_and_image(k: float) -> None:
    report = measured(scaled(k))
    culprit = int(np.abs(IMAGES).max(axis=(1, 2, 3)).argmax()) if k < np.inf else 0
    pattern = rf"f\.onnx reaches \S+ on {culprit}\.png, and 2 more tensors do; expected at most 65504.*--keep"
    with pytest.raises(HeadroomFailed, match=pattern) as error:
        report.require_finite("f.onnx")
    assert isinstance(error.value, CheckFailed)
    assert {tensor.tensor for tensor in report.tensors if tensor.beyond} == {"big", "other", "y"}


def test_one_bad_image_is_named() -> None:
    images = IMAGES.copy()
    images[4, 0, 0, 0] = np.nan
    report = measured(scaled(1.0), images)
    assert (report.tensors[0].image, report.tensors[0].beyond, report.tensors[0].largest) == ("4.png", 1, np.inf)


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_any_opset_can_be_measured(opset: int) -> None:
    model = graph("y = Neg(images)", **ENDS, opset=opset)
    assert {tensor.largest for tensor in measured(model).tensors} == {float(np.abs(IMAGES).max())}


def test_a_fixed_batch_is_filled_up() -> None:
    ends = {"x": "float[4,3,4,4] images", "y": "float[4,3,4,4] y"}
    report = measured(graph("y = Neg(images)", **ends), at_once=5)
    assert report.images == 5
    assert report.tensors[0].largest == np.abs(IMAGES).max()


def test_images_that_do_not_lie_along_the_first_axis_are_refused() -> None:
    body = "y = ReduceSum<keepdims = 1>(images)"
    with pytest.raises(GraphError, match=r"y has 1 rows for 2 images; expected images along the first axis"):
        measured(graph(body, x=ENDS["x"], y="float[1,1,1,1] y"))


def test_no_images_are_refused() -> None:
    with pytest.raises(ImageError, match="a measurement of no images; expected at least one"):
        headroom(scaled(1.0), [])
