"""The repository in a real Triton server: what is written loads, answers as we do, and stays up when it should not.

The stand-ins of ``standin/`` take the place of the two backends that need a GPU or a container; see CONTRIBUTING.md.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image

from sepvit_deploy.artifact import read_passport
from sepvit_deploy.classes import ranked
from sepvit_deploy.images import decode_image, preprocess
from sepvit_deploy.masks import class_mask
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.spec import Preprocessing
from tests.cpu.commands import PHOTO, call
from tests.cpu.serving import segmenter
from tests.cpu.tritonserver import Server, folder, serving
from tests.unit.triton_files import onnx_file, plan_file

CLASSES = 5


@pytest.fixture(scope="module")
def lite(exported: Callable[..., Path]) -> Path:
    return exported("--variant", "lite")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder()
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def repository(place: Path, lite: Path) -> Path:
    """``lite`` and others from ONNX; ``colour`` from a plan, on the CPU config; ``engine``, that plan on its own."""
    target = place / "repository"
    labels = place / "labels.txt"
    labels.write_text("\n".join(("rot", "grün", "blau", "weiß", "schwarz")), encoding="utf-8")
    colour = onnx_file(place / "colour.onnx")
    plan = plan_file(place / "colour.plan", colour)
    for arguments in (
        [lite, "--name", "lite"],
        [lite, "--name", "busy", "--max-batch", "1", "--no-ensemble"],
        [plan, "--labels", labels, "--max-batch", "2"],
        [plan, "--name", "engine", "--no-ensemble"],
        [onnx_file(place / "pair.onnx", batch=2)],
        [onnx_file(place / "coarse.onnx", signed_int8=True), "--no-ensemble"],
        [segmenter(place / "fields.onnx", size=(64, 96), output="mask", any_size=True)],
    ):
        done = call("triton", *arguments, "--repository", target)
        assert done.code == 0, done.err
    config = target / "engine" / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("kind: KIND_GPU", "kind: KIND_CPU"), encoding="utf-8")
    shutil.rmtree(target / "engine" / "configs")  # so that the server takes config.pbtxt
    return target


@pytest.fixture(scope="module")
def server(repository: Path, place: Path) -> Iterator[Server]:
    arguments = ("--model-config-name=cpu", "--model-control-mode=explicit", "--load-model=*")
    with serving(repository, place, *arguments) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc) as opened:
        yield opened


def tensor(kind: Any, name: str, values: np.ndarray) -> Any:
    types = {"float32": "FP32", "uint8": "UINT8", "object": "BYTES"}
    made = kind.InferInput(name, values.shape, types[str(values.dtype)])
    made.set_data_from_numpy(values)
    return made


def encoded(*pictures: bytes) -> np.ndarray:
    return np.array([[picture] for picture in pictures], dtype=np.object_)


def asked(client: Any, model: str, name: str, values: np.ndarray, version: str = "") -> Any:
    kind = grpc if isinstance(client, grpc.InferenceServerClient) else http
    return client.infer(model, [tensor(kind, name, values)], model_version=version)


def refusal(client: Any, model: str, *inputs: tuple[str, np.ndarray]) -> str:
    """Why a request is answered INVALID_ARGUMENT."""
    with pytest.raises(grpc.InferenceServerException) as raised:
        client.infer(model, [tensor(grpc, *pair) for pair in inputs])
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    return str(raised.value.message())


def flood(client: Any, model: str, inputs: Sequence[Any]) -> Counter[str]:
    """Send every request at once and count how each is answered; one that is not fails the test."""
    answers: Counter[str] = Counter()
    ended = threading.Semaphore(0)

    def end(result: Any, error: Any) -> None:
        answers[error.status() if error else "OK"] += 1
        ended.release()

    for each in inputs:
        client.async_infer(model, [each], end)
    for _ in inputs:
        assert ended.acquire(timeout=60), f"a request is not answered: {answers}"
    return answers


def picture(mode: str, size: tuple[int, int], suffix: str, seed: int = 0, **options: Any) -> bytes:
    rng = np.random.default_rng(seed)
    channels = {"RGB": (3,), "RGBA": (4,), "L": (), "I;16": ()}[mode]
    kind = np.uint16 if mode == "I;16" else np.uint8
    values = rng.integers(0, np.iinfo(kind).max, (size[1], size[0], *channels), dtype=kind, endpoint=True)
    content = io.BytesIO()
    Image.fromarray(values).save(content, suffix, **options)
    return content.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    return picture("RGB", (300, 200), "JPEG", exif=exif)


def preprocessing_of(path: Path) -> Preprocessing:
    passport = read_passport(path)
    assert passport is not None
    return Preprocessing.from_dict(passport.facts["preprocessing"])


@pytest.fixture(scope="module")
def preprocessing(lite: Path) -> Preprocessing:
    return preprocessing_of(lite)


def test_every_model_is_ready_and_clean(server: Server, repository: Path) -> None:
    with http.InferenceServerClient(server.http) as client:
        index = {(entry["name"], entry["state"]) for entry in client.get_model_repository_index()}
    assert {state for _, state in index} == {"READY"}
    assert {"lite", "lite_preprocess", "lite_rank", "lite_classify", "engine"} <= {name for name, _ in index}
    assert call("triton-lint", repository).code == 0


def test_values_are_those_of_our_runner_by_http_and_grpc(
    server: Server, client: Any, lite: Path, preprocessing: Preprocessing
) -> None:
    images = np.stack([preprocess(decode_image(p), preprocessing) for p in (PHOTO.read_bytes(), turned())])
    expected = OnnxRuntimeRunner(lite).run(images)["logits"]
    with http.InferenceServerClient(server.http) as by_http:
        for each in (client, by_http):
            np.testing.assert_allclose(asked(each, "lite", "images", images).as_numpy("logits"), expected, atol=2e-5)


def test_int8_as_tensorrt_takes_it_is_computed_as_written(client: Any, place: Path) -> None:
    images = np.random.default_rng(3).normal(size=(4, 3, 224, 224)).astype(np.float32)
    expected = OnnxRuntimeRunner(place / "coarse.onnx").run(images)["logits"]
    assert client.get_model_config("coarse").config.optimization.graph.level == 2
    np.testing.assert_allclose(asked(client, "coarse", "images", images).as_numpy("logits"), expected, atol=1e-5)


def test_a_plan_answers_with_its_own_config_and_with_that_of_a_cpu(client: Any, place: Path) -> None:
    images = np.random.default_rng(1).normal(size=(2, 3, 224, 224)).astype(np.float32)
    expected = OnnxRuntimeRunner(place / "colour.onnx").run(images)["logits"]
    platforms = {"colour": "onnxruntime_onnx", "engine": "tensorrt_plan"}
    for model, platform in platforms.items():
        assert client.get_model_config(model).config.platform == platform
        np.testing.assert_allclose(asked(client, model, "images", images).as_numpy("logits"), expected, atol=1e-5)
    with pytest.raises(grpc.InferenceServerException, match="batch-size must be <= 32"):
        asked(client, "engine", "images", np.zeros((33, 3, 224, 224), np.float32))


def test_requests_are_joined(server: Server, client: Any) -> None:
    inferences, runs = (f"nv_inference_{kind}" for kind in ("count", "exec_count"))
    before = {metric: server.counted(metric, "lite") for metric in (inferences, runs)}
    image = tensor(grpc, "images", np.zeros((1, 3, 224, 224), np.float32))
    assert flood(client, "lite", [image] * 40) == {"OK": 40}
    deadline = time.monotonic() + 10
    while server.counted(inferences, "lite") < before[inferences] + 40:  # it answers first, and counts then
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.counted(inferences, "lite") == before[inferences] + 40
    assert server.counted(runs, "lite") <= before[runs] + 20


@pytest.mark.parametrize(
    "content",
    [
        PHOTO.read_bytes(),
        turned(),
        picture("RGB", (1, 1), "PNG"),
        picture("RGB", (1000, 30), "PNG"),
        picture("RGBA", (260, 250), "PNG"),
        picture("L", (256, 256), "JPEG", quality=60),
        picture("I;16", (300, 280), "PNG"),
        picture("RGB", (256, 300), "WEBP", lossless=True),
    ],
    ids=["photo", "turned", "pixel", "strip", "alpha", "grey", "16 bits", "webp"],
)
def test_every_pixel_is_prepared_as_we_do(client: Any, preprocessing: Preprocessing, content: bytes) -> None:
    decoded = decode_image(content)
    expected = preprocess(decoded, preprocessing)[None]
    np.testing.assert_array_equal(
        asked(client, "lite_preprocess", "image", encoded(content)).as_numpy("images"), expected
    )
    pixels = np.asarray(decoded)[None]
    np.testing.assert_array_equal(asked(client, "lite_preprocess", "pixels", pixels).as_numpy("images"), expected)


def test_bytes_become_labels(server: Server, client: Any, place: Path) -> None:
    contents = [PHOTO.read_bytes(), picture("RGB", (640, 480), "PNG")]
    preprocessing = Preprocessing.for_task("classify", (224, 224))
    images = np.stack([preprocess(decode_image(content), preprocessing) for content in contents])
    best, scores = ranked(OnnxRuntimeRunner(place / "colour.onnx").run(images)["logits"])
    labels = (place / "labels.txt").read_text(encoding="utf-8").split()
    with http.InferenceServerClient(server.http) as by_http:
        for each in (client, by_http):
            answer = asked(each, "colour_classify", "image", encoded(*contents))
            np.testing.assert_array_equal(answer.as_numpy("class"), best)
            np.testing.assert_allclose(answer.as_numpy("score"), scores, rtol=1e-4)
            assert [[name.decode() for name in row] for row in answer.as_numpy("label")] == [
                [labels[k] for k in row] for row in best
            ]
        output = http.InferRequestedOutput("logits", class_count=1)  # Triton's own extension, from labels.txt
        (top,) = by_http.infer("colour", [tensor(http, "images", images[:1])], outputs=[output]).as_numpy("logits")
        assert top[0].decode().split(":")[1:] == [str(best[0, 0]), labels[best[0, 0]]]


def test_bytes_become_masks_of_the_pictures_own_size(server: Server, client: Any, place: Path) -> None:
    wide = [picture("RGB", (90, 30), "PNG", seed) for seed in (1, 2)]
    contents = [PHOTO.read_bytes(), turned(), picture("RGB", (1, 1), "PNG"), *wide]
    prepares, runner = preprocessing_of(place / "fields.onnx"), OnnxRuntimeRunner(place / "fields.onnx")
    masks = []
    for content in contents:
        decoded = decode_image(content)
        images = preprocess(decoded, prepares)[None]
        size = (decoded.height, decoded.width)
        masks.append(class_mask(runner.run(images), 0, input_size=images.shape[2:], picture_size=size))

    def require_equal(answer: Any, expected: Sequence[Any]) -> None:
        for (png,), mask in zip(answer.as_numpy("mask"), expected, strict=True):
            with Image.open(io.BytesIO(png)) as found:
                assert found.mode == "P"
                np.testing.assert_array_equal(np.asarray(found), mask)

    with ThreadPoolExecutor(5) as pool:  # pictures of several sizes at once, each a request
        answers = list(pool.map(lambda content: asked(client, "fields_segment", "image", encoded(content)), contents))
    for answer, mask in zip(answers, masks, strict=True):
        require_equal(answer, [mask])
    with http.InferenceServerClient(server.http) as by_http:
        require_equal(asked(by_http, "fields_segment", "image", encoded(*wide)), masks[-2:])
    reason = refusal(client, "fields_segment", ("image", encoded(*contents)))
    assert "expected such pictures in requests of their own" in reason


def test_a_fixed_batch_is_taken_whole_and_queued_with_an_end(client: Any) -> None:
    contents = encoded(PHOTO.read_bytes(), picture("RGB", (300, 300), "PNG"))
    assert asked(client, "pair_classify", "image", contents).as_numpy("class").shape == (2, CLASSES)
    assert "Expected [2,1], got [1,1]" in refusal(client, "pair_classify", ("image", contents[:1]))
    assert client.get_model_config("pair").config.dynamic_batching.default_queue_policy.max_queue_size > 0


def test_what_is_no_picture_is_refused(client: Any) -> None:
    photo = PHOTO.read_bytes()
    large = io.BytesIO()
    Image.new("L", (8000, 5000)).save(large, "PNG")
    for content, reason in (
        (b"", "picture 1 of 1 is empty"),
        (b"GIF89a", "picture 1 of 1 is not a picture"),
        (photo[: len(photo) // 2], "picture 1 of 1 cannot be read"),
        (large.getvalue(), "picture 1 of 1 has 5000x8000 pixels; expected at most 32 megapixels"),
        (
            picture("RGB", (1500, 1), "PNG"),
            "1x1500, resized has 256x384000 pixels; expected at most 32",
        ),
    ):
        assert reason in refusal(client, "lite_classify", ("image", encoded(content)))
    assert "picture 2 of 2 is not a picture" in refusal(client, "lite_classify", ("image", encoded(photo, b"no")))
    pixels = np.zeros((1, 9, 9, 3), np.uint8)
    both = (("image", encoded(photo)), ("pixels", pixels))
    assert "expected either image or pixels" in refusal(client, "lite_preprocess", *both)
    assert "has 0x9 pixels" in refusal(client, "lite_preprocess", ("pixels", pixels[:, :0]))
    assert "not finite" in refusal(client, "lite_rank", ("logits", np.full((1, 1000), np.nan, np.float32)))


def test_a_bad_picture_fails_its_own_request_alone(client: Any) -> None:
    good, bad = (tensor(grpc, "image", encoded(content)) for content in (PHOTO.read_bytes(), b"no picture"))
    answers = flood(client, "lite_preprocess", [good, bad, good, bad, good, good] * 4)
    assert answers == {"OK": 16, "StatusCode.INVALID_ARGUMENT": 8}


def test_pixels_of_several_sizes_are_answered_together(client: Any) -> None:
    sizes = [(60, 40), (224, 224), (300, 17), (256, 256)] * 3
    inputs = [tensor(grpc, "pixels", np.full((1, *size, 3), 7, np.uint8)) for size in sizes]
    assert flood(client, "lite_preprocess", inputs) == {"OK": len(sizes)}


@pytest.mark.parametrize(("model", "name"), [("busy", "images"), ("colour_classify", "image")])
def test_overload_is_unavailable_and_no_hang(client: Any, model: str, name: str) -> None:
    values = np.zeros((1, 3, 224, 224), np.float32) if name == "images" else encoded(PHOTO.read_bytes())
    answers = flood(client, model, [tensor(grpc, name, values)] * 300)
    assert answers.keys() == {"OK", "StatusCode.UNAVAILABLE"}
    asked(client, model, name, values)  # and it answers again


def test_a_version_is_swapped_under_load(client: Any, place: Path, repository: Path) -> None:
    images = np.random.default_rng(2).normal(size=(1, 3, 224, 224)).astype(np.float32)
    first = OnnxRuntimeRunner(place / "colour.onnx").run(images)["logits"]
    newer = place / "newer"
    newer.mkdir()
    second = OnnxRuntimeRunner(onnx_file(newer / "colour.onnx", seed=1)).run(images)["logits"]
    plan_file(newer / "colour.plan", newer / "colour.onnx")
    options = ("--labels", place / "labels.txt", "--max-batch", "2")
    seen: list[np.ndarray] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            seen.append(asked(client, "colour", "images", images).as_numpy("logits"))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            done = call("triton", newer / "colour.plan", *options, "--repository", repository, "--json")
            client.load_model("colour")
            deadline = time.monotonic() + 10
            while not np.allclose(seen[-1], second, atol=1e-5) and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            ended.set()
        for each in asking:
            each.result()  # none of its requests failed
    assert {"model": "colour", "version": 2, "change": "new version", "settings": []} in done.document["models"]
    which = [[bool(np.allclose(answer, of, atol=1e-5)) for of in (first, second)] for answer in seen]
    assert set(map(tuple, which)) == {(True, False), (False, True)}
    np.testing.assert_allclose(asked(client, "colour", "images", images, "1").as_numpy("logits"), first, atol=1e-5)
    assert call("triton-lint", repository).code == 0


def test_a_leftover_stops_a_server_and_the_linter_says_so(place: Path, repository: Path) -> None:
    target = place / "small"
    shutil.copytree(repository / "lite_rank", target / "lite_rank")
    (target / ".lite_rank.tmp").mkdir()
    done = call("triton-lint", target)
    assert done.code == 1
    assert ".lite_rank.tmp was left by an interrupted writer" in done.err
    with serving(target, place, ready=False) as server:
        try:
            assert server.process.wait(20) != 0
        except subprocess.TimeoutExpired:
            pytest.fail("the server stays up")
