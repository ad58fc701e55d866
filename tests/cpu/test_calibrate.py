"""Calibration over ONNX Runtime: small graphs with SepViT's names, real pictures, and planted faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from PIL import Image

from sepvit_deploy.artifact import sha256
from sepvit_deploy.calibrate import calibrate
from sepvit_deploy.errors import GraphError, ImageError, OptionError, SepvitError
from sepvit_deploy.graph import load_graph
from sepvit_deploy.image_sets import ImageSet, decoded, image_set
from sepvit_deploy.placement import observed
from sepvit_deploy.ranges import METHODS
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.scales import ScaleTable, read_scales, write_scales
from sepvit_deploy.spec import Preprocessing

PREPROCESSING = Preprocessing((16, 16), None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""Pixels become -1 .. 1."""
GRAPH = "0" * 64
COUNT = 11
BODY = """
    stem = Conv<strides=[4, 4]>(images, kernel)
    maps = Abs(stem)
    down = Conv<strides=[2, 2]>(maps, kernel2)
    features = ReduceMean<keepdims=0>(down, axes)
    logits = MatMul(features, weight)
"""
NAMES = {"stem": "stage0.embed.proj/Conv", "down": "stage1.embed.proj/Conv", "logits": "head/MatMul"}
WATCHED = ["images", "stem", "maps", "down", "features"]


def graph(body: str = BODY, batch: str = "batch", head: str = "features", **weights: Any) -> onnx.ModelProto:
    """A graph of two patch embeddings and a head, its nodes named as export names them."""
    rng = np.random.default_rng(0)
    arrays = {
        "kernel": rng.standard_normal((6, 3, 4, 4)),
        "kernel2": rng.standard_normal((4, 6, 2, 2)),
        "weight": rng.standard_normal((4, 5)),
    } | weights
    ends = f"g (float[{batch},3,16,16] images) => (float[{batch},5] logits)"
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {ends} {{{body}}}')
    tensors = {name: np.asarray(values, np.float32) for name, values in arrays.items()} | {"axes": np.array([2, 3])}
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    for node in model.graph.node:
        node.name = NAMES.get(node.output[0], f"{node.output[0]}/{node.op_type}")
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Pictures of noise between smooth and rough, dark and bright."""
    folder = tmp_path_factory.mktemp("sets") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(COUNT):
        small = rng.integers(0, 256, (2 + number, 3 + number, 3), dtype=np.uint8)
        Image.fromarray(small).resize((20, 24), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return image_set(folder, samples=COUNT)


def table(model: onnx.ModelProto, images: ImageSet, **options: Any) -> ScaleTable:
    return calibrate(model, images, PREPROCESSING, **{"graph_sha256": GRAPH, "batch": 4, "threads": 1, **options})


def refusal(kind: type[SepvitError], model: onnx.ModelProto, images: ImageSet, **options: Any) -> str:
    with pytest.raises(kind) as error:
        table(model, images, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def values_of(model: onnx.ModelProto, images: ImageSet) -> dict[str, np.ndarray]:
    """Every watched tensor on all images at once, from the plain runner."""
    inputs = np.stack([values for _, values in decoded(images, PREPROCESSING)])
    more = onnx.ModelProto()
    more.CopyFrom(model)
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in WATCHED[1:])
    return {"images": inputs, **OnnxRuntimeRunner(more, threads=1).run(inputs)}


def test_ranges_are_those_of_all_images(images: ImageSet) -> None:
    found, values = table(graph(), images).tensors, values_of(graph(), images)
    assert list(found) == WATCHED
    for name, its in found.items():
        assert its.minimum == pytest.approx(values[name].min(), rel=1e-5)
        assert its.maximum == pytest.approx(values[name].max(), rel=1e-5)
        exact = np.percentile(np.abs(values[name]), 99.99, method="inverted_cdf")
        assert exact * (1 - 1e-5) <= its.threshold <= exact * (1 + 1 / 2048)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_table_that_survives_a_file(images: ImageSet, tmp_path: Path, method: str) -> None:
    found = table(graph(), images, method=method)
    write_scales(tmp_path / "a.json", found)
    write_scales(tmp_path / "b.json", table(graph(), images, method=method))
    assert read_scales(tmp_path / "a.json") == found
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes(), "equal inputs, equal bytes"
    for its in found.tensors.values():
        largest = max(-its.minimum, its.maximum)
        assert its.threshold == largest if method == "minmax" else 0 < its.threshold <= largest


def test_the_table_says_what_it_is_made_from(images: ImageSet) -> None:
    found = table(graph(), images, graph_sha256="f" * 64, percentile=99)
    assert found.graph_sha256 == "f" * 64 and found.images.sha256 == images.sha256
    assert (found.images.name, found.images.samples, found.images.skipped) == ("photos", COUNT, 0)
    assert found.preprocessing == PREPROCESSING.to_dict()
    assert (found.method, found.settings, found.batch) == ("percentile", {"bins": 8192, "percentile": 99}, 4)
    assert {"python", "onnxruntime", "numpy", "pillow"} <= found.tools.keys()
    found.require_for(graph_sha256="f" * 64, weights_sha256=found.weights_sha256, tensors=WATCHED)
    other = table(graph(weight=np.ones((4, 5))), images)
    assert other.weights_sha256 != found.weights_sha256


@pytest.mark.parametrize("size", [1, 3, COUNT, 64])
def test_the_batch_changes_nothing_but_rounding(images: ImageSet, size: int) -> None:
    found, other = table(graph(), images).tensors, table(graph(), images, batch=size)
    assert other.batch == size
    for name in WATCHED:
        assert other.tensors[name].threshold == pytest.approx(found[name].threshold, rel=1e-5)


def test_a_graph_of_a_fixed_batch_fills_the_last_one_with_nothing_that_counts(images: ImageSet) -> None:
    found = table(graph(batch="4"), images, batch=64)
    assert found.batch == 4
    assert found.tensors == table(graph(), images, batch=4).tensors


def test_the_filling_would_show(images: ImageSet) -> None:
    """The last picture, alone in a batch of four, is counted once: a percentile below its share does not see it."""
    bright = replace(images, files=(*images.files[:4], images.files[-1]))
    once = table(graph(batch="4"), bright, percentile=90).tensors["features"].threshold
    often = table(graph(), replace(bright, files=(*bright.files, *bright.files[-1:] * 3)), percentile=90)
    assert once != often.tensors["features"].threshold


def test_the_order_of_the_images_does_not_matter(images: ImageSet) -> None:
    turned = replace(images, files=images.files[::-1])
    assert table(graph(), turned, batch=COUNT) == table(graph(), images, batch=COUNT)


def test_the_graph_is_left_as_it_is(images: ImageSet) -> None:
    model = graph()
    before = model.SerializeToString()
    table(model, images)
    assert model.SerializeToString() == before


def test_progress_runs_from_0_to_1(images: ImageSet) -> None:
    shares: list[float] = []
    table(graph(), images, progress=shares.append)
    assert shares == [4 / COUNT, 8 / COUNT, 1.0]


def test_unreadable_images_are_passed_over_by_name_and_counted(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    for path in images.files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    said: list[str] = []
    some = image_set(tmp_path, samples=COUNT + 1)
    found = table(graph(), some, warn=said.append)
    assert (found.images.samples, found.images.skipped) == (COUNT, 1)
    assert found.tensors == table(graph(), images).tensors
    assert len(said) == 1 and said[0].startswith(f"passed over: {tmp_path / 'x.png'} is not a picture")
    assert "1 unreadable image or more" in refusal(ImageError, graph(), some, max_unreadable=0)
    message = refusal(ImageError, graph(), replace(some, files=(tmp_path / "x.png",)))
    assert message.startswith(f"no image of {tmp_path.name} can be read")


def pictures(folder: Path, *arrays: np.ndarray) -> ImageSet:
    folder.mkdir(exist_ok=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array.astype(np.uint8)).save(folder / f"{number}.png")
    return image_set(folder, samples=len(arrays))


def ramp(low: int, high: int) -> np.ndarray:
    """A grey picture from ``low`` to ``high``."""
    return np.repeat(np.linspace(low, high, 256).reshape(16, 16, 1), 3, axis=2)


def test_images_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    message = refusal(ImageError, graph(), pictures(tmp_path, *[np.zeros((16, 16, 3))] * 9))
    assert message == (
        f"all 9 images of {tmp_path.name} are the same once they are resized and cropped; "
        "expected different images, as the model will see"
    )
    assert "all 2 images" in refusal(ImageError, graph(), pictures(tmp_path / "two", ramp(0, 9), ramp(0, 9)))


@pytest.mark.parametrize("greys", [[0], [0, 7, 200]])
def test_images_of_a_single_colour_each_are_refused(tmp_path: Path, greys: list[int]) -> None:
    flat = pictures(tmp_path, *(np.full((16, 16, 3), grey) for grey in greys))
    assert refusal(ImageError, graph(), flat).startswith(f"every image of {tmp_path.name} is of a single colour")


def test_one_real_image_is_enough_where_it_was_asked_for(tmp_path: Path) -> None:
    assert table(graph(), pictures(tmp_path, ramp(0, 255))).images.samples == 1


@pytest.mark.parametrize("batch", ["batch", "4"])
@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_not_finite_is_named_with_the_image(tmp_path: Path, batch: str, method: str) -> None:
    body = BODY.replace("Abs(stem)", "Mul(stem, huge)")
    model = graph(
        body, batch, kernel=np.full((6, 3, 4, 4), 1 / 48), kernel2=np.full((4, 6, 2, 2), 1e-9), huge=3e38 * np.ones(1)
    )
    model.graph.node.insert(2, helper.make_node("Add", ["maps", "maps"], ["double"], name="double/Add"))
    model.graph.node[3].input[0] = "double"
    dim, bright = ramp(100, 150), ramp(0, 255)  # only the bright one is beyond half of float32's range
    some = pictures(tmp_path, dim, dim + 1, dim + 2, dim + 3, dim + 4, bright, dim + 5)
    assert refusal(GraphError, model, some, method=method) == (
        f"double has numbers that are not finite on {tmp_path / '5.png'}; expected finite activations; "
        "check the weights, or leave this image out"
    )
    assert table(model, replace(some, files=some.files[:5]), method="minmax").tensors["double"].maximum < 1.2e38


def test_a_tensor_that_is_never_but_zero_is_named(images: ImageSet) -> None:
    message = refusal(GraphError, graph(kernel=np.zeros((6, 3, 4, 4))), images)
    assert message == (
        "stem is 0 everywhere, on every image; expected values to measure a range on; "
        "check the weights and the preprocessing"
    )
    assert "down is at most" in refusal(GraphError, graph(kernel2=np.full((4, 6, 2, 2), 1e-42)), images)


def test_a_graph_of_lower_precision_is_refused(images: ImageSet) -> None:
    body = BODY.replace("Abs(stem)", "Cast<to=10>(stem)").replace(
        "Conv<strides=[2, 2]>(maps", "Conv<strides=[2, 2]>(maps"
    )
    model = graph(body)
    half = numpy_helper.from_array(np.ones((4, 6, 2, 2), np.float16), "kernel2")
    next(t for t in model.graph.initializer if t.name == "kernel2").CopyFrom(half)
    model.graph.node[3].input[0] = "wide"
    model.graph.node.insert(3, helper.make_node("Cast", ["down"], ["wide"], name="wide/Cast", to=1))
    assert refusal(GraphError, model, images) == "maps is float16; expected float32 tensors; calibrate the FP32 file"


def test_a_tensor_without_the_images_in_front_is_refused(images: ImageSet) -> None:
    body = BODY.replace("MatMul(features, weight)", "MatMul(turned, weight2)").replace(
        "logits =", "turned = Transpose<perm=[1, 0]>(features) logits ="
    )
    message = refusal(GraphError, graph(body, "3", weight2=np.ones((3, 5))), images)
    assert message == "turned has shape (4, 3) for 3 images; expected images along the first axis"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": "max"}, "--method max; expected percentile, entropy, mse or minmax"),
        ({"percentile": 0.9999}, "--percentile 0.9999; expected 90 to 100, such as 99.99"),
        ({"percentile": 101}, "--percentile 101; expected 90 to 100"),
        ({"percentile": float("nan")}, "--percentile nan; expected 90 to 100"),
        ({"batch": 0}, "--batch 0; expected 1 or more"),
        ({"threads": -1}, "--threads -1; expected 1 or more"),
    ],
)
def test_an_unusable_option_is_refused(images: ImageSet, options: dict[str, Any], words: str) -> None:
    assert refusal(OptionError, graph(), images, **options).startswith(words)


def test_a_graph_without_sites_is_refused(images: ImageSet) -> None:
    model = graph()
    for node in model.graph.node:
        node.name = ""
    assert "no linear layer or patch embedding of SepViT" in refusal(GraphError, model, images)


def test_images_of_another_size_than_the_graph_takes_are_refused(images: ImageSet) -> None:
    with pytest.raises(SepvitError, match=r"the graph was given float32 4 x 3 x 8 x 8; expected float32 any x 3 x 16"):
        calibrate(graph(), images, Preprocessing((8, 8), None), graph_sha256=GRAPH, batch=4)


def test_every_tensor_of_an_exported_model_gets_a_range(exported: Callable[..., Path], images: ImageSet) -> None:
    path = exported("--variant", "lite")
    model, some = load_graph(path), replace(images, files=images.files[:3])
    preprocessing = Preprocessing.for_task("classify", (224, 224))
    found = calibrate(model, some, preprocessing, graph_sha256=sha256(path), attention=True, batch=2, threads=1)
    assert list(found.tensors) == observed(model, attention=True)
    for name, its in found.tensors.items():
        assert its.minimum < its.maximum and its.scale > 0, name
        assert not name.endswith("Gelu") or its.minimum == pytest.approx(-0.17, abs=0.01), name
