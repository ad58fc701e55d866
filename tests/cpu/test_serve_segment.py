"""The embedded server with segmentation files: masks as PNG and as JSON, tensors of free sizes, and what is refused."""

from __future__ import annotations

import http.client
import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from sepvit_deploy.images import decode_image, preprocess
from sepvit_deploy.load import load
from sepvit_deploy.masks import class_mask, from_run_lengths
from sepvit_deploy.pipeline import Running, open_model
from sepvit_deploy.server import segments
from sepvit_deploy.server.pictures import Prepared
from sepvit_deploy.server.refusal import Refusal
from tests.cpu.commands import PHOTO, call, complaint, spawn
from tests.cpu.serving import NAMES, Served, segmenter, served

JSON = {"Accept": "application/json"}
COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9], [200, 200, 0]]
RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small.onnx`` gives masks and says its names and colours; ``free.onnx`` gives logits for any size."""
    folder = tmp_path_factory.mktemp("masks")
    segmenter(folder / "small.onnx", output="mask", facts={"classes": list(NAMES), "palette": COLOURS})
    segmenter(folder / "free.onnx", any_size=True, size=(64, 96))
    return folder


@pytest.fixture(scope="module")
def small(folder: Path) -> Iterator[Served]:
    with served(folder / "small.onnx", "--max-batch", "4") as found:
        yield found
        assert found.stop() == 0
    assert len(found.said) == 3, found.said
    assert f"curl --data-binary @photo.jpg --output mask.png {found.url}/v1/segment" in found.said[2]


@pytest.fixture(scope="module")
def free(folder: Path) -> Iterator[Served]:
    """With names that its user gives, and half a second to fill a batch of three."""
    labels = folder / "labels.txt"
    labels.write_text("\n".join("abcde"), encoding="utf-8")
    options = ("--labels", str(labels), "--max-batch", "3", "--queue-delay-ms", "300")
    with served(folder / "free.onnx", *options) as found:
        yield found


def png(width: int, height: int, blocks: int = 4) -> bytes:
    """Coloured tiles."""
    tiles = RNG.integers(0, 255, (-(-height // blocks), -(-width // blocks), 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(tiles.repeat(blocks, 0).repeat(blocks, 1)[:height, :width]).save(buffer, "PNG")
    return buffer.getvalue()


def expected(file: Path, picture: bytes) -> Any:
    """The mask that the file's own runner leads to."""
    opened = open_model(file)
    image = decode_image(picture)
    assert opened.preprocessing is not None
    images = preprocess(image, opened.preprocessing)[None]
    with opened.running(Running(threads=1)) as runner:
        outputs = runner.run(images)
    return class_mask(outputs, 0, input_size=images.shape[2:], picture_size=(image.height, image.width))


def values(content: bytes) -> Any:
    """Class numbers of a PNG, as a palette or as grey."""
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        return np.asarray(image)


def encoded(*pictures: bytes) -> Any:
    found = tritonclient.http.InferInput("image", [len(pictures), 1], "BYTES")
    found.set_data_from_numpy(np.array([[picture] for picture in pictures], dtype=np.object_))
    return found


def tensor(images: np.ndarray) -> Any:
    found = tritonclient.http.InferInput("images", images.shape, "FP32")
    found.set_data_from_numpy(images)
    return found


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1000, 33), (90, 200), (0, 0)], ids=str)
def test_a_mask_has_the_size_of_its_picture_and_the_classes_of_its_pixels(
    small: Served, free: Served, folder: Path, width: int, height: int
) -> None:
    picture = png(width, height) if width else PHOTO.read_bytes()
    for server, file in ((small, folder / "small.onnx"), (free, folder / "free.onnx")):
        mask = expected(file, picture)
        found = server.post("/v1/segment", picture)
        assert (found.status, found.headers["content-type"], found.headers["vary"]) == (200, "image/png", "accept")
        np.testing.assert_array_equal(values(found.body), mask)
        document = server.post("/v1/segment", picture, JSON).document
        np.testing.assert_array_equal(from_run_lengths(document["runs"], document["height"], document["width"]), mask)
        shares = {entry["class"]: entry["share"] for entry in document["classes"]}
        assert shares == {int(k): pytest.approx((mask == k).mean(), abs=1e-6) for k in np.unique(mask)}
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_names_and_colours_are_the_files_own_or_those_that_were_given(small: Served, free: Served) -> None:
    found = small.post("/v1/segment", PHOTO.read_bytes(), JSON).document
    assert (found["model"], found["version"], found["batch"]) == ("small", "1", 1)
    assert 0 < found["timings"]["compute_ms"] < found["timings"]["total_ms"]
    for entry in found["classes"]:
        assert (entry["label"], entry["colour"]) == (NAMES[entry["class"]], COLOURS[entry["class"]])
    with Image.open(io.BytesIO(small.post("/v1/segment", PHOTO.read_bytes()).body)) as image:
        assert (image.getpalette() or [])[:15] == np.ravel(COLOURS).tolist()
    given = free.post("/v1/segment", png(40, 30), JSON).document
    assert {(entry["class"], entry["label"]) for entry in given["classes"]} <= set(enumerate("abcde"))
    about = free.get("/v1/model").document
    assert (about["task"], about["classes"], about["any_size"], about["output"]) == ("segment", 5, True, "logits")


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "words"),
    [
        ("/v1/segment", b"x", {"Accept": "text/html"}, 406, "Accept is 'text/html'; expected image/png or application"),
        ("/v1/segment", b"", {}, 400, "the body is empty"),
        ("/v1/segment", b"GIF89a", JSON, 400, "is not a picture"),
        ("/v1/segment", b"x", {"Content-Type": "text/html"}, 415, "'text/html' is not taken"),
        ("/v1/segment", b"x", {"X-Deadline-Ms": "soon"}, 400, "X-Deadline-Ms is 'soon'"),
        ("/v1/classify", PHOTO.read_bytes(), {}, 404, "small gives masks: send the picture to /v1/segment"),
        ("/v2/models/small_classify/infer", b"{}", {}, 404, "expected small or small_segment"),
    ],
)
def test_each_kind_of_bad_request_has_one_answer(
    small: Served, path: str, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    found = small.post(path, body, headers)
    assert found.status == status, found
    assert words in found.document["error"]


@pytest.mark.parametrize(
    ("accepts", "kind"),
    [(["text/html", "application/json"], "application/json"), ([",", " , "], "image/png")],
    ids=["the second", "blank"],
)
def test_every_header_accept_counts_and_a_blank_one_does_not(small: Served, accepts: list[str], kind: str) -> None:
    connection = http.client.HTTPConnection(small.address, timeout=30)
    try:
        connection.putrequest("POST", "/v1/segment")
        picture = png(8, 8)
        for accept in accepts:
            connection.putheader("Accept", accept)
        connection.putheader("Content-Length", str(len(picture)))
        connection.endheaders(picture)
        found = connection.getresponse()
        assert (found.status, found.headers["content-type"]) == (200, kind), found.read()
    finally:
        connection.close()


def test_a_mask_that_would_be_late_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tiles, in its own thread: the deadline passes while the first are decided."""
    logits = {"logits": np.zeros((1, 5, 16, 16), np.float32)}
    picture = Prepared(np.zeros((1, 3, 64, 64), np.float32), ((640, 64),))
    now = itertools.count()
    monkeypatch.setattr(segments, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    with pytest.raises(Refusal, match="the deadline has passed") as caught:
        segments.tensors(logits, picture, [(0, 0, 0)] * 5, 3)
    assert (caught.value.status, next(now)) == (503, 4)
    assert segments.mask(logits, picture, 1000).shape == (640, 64)


def test_tritonclient_gets_tensors_of_bytes_and_of_free_sizes(small: Served, free: Served, folder: Path) -> None:
    with tritonclient.http.InferenceServerClient(small.address) as client:
        assert client.get_model_metadata("small")["outputs"] == [
            {"name": "mask", "datatype": "UINT8", "shape": [-1, 64, 64]}
        ]
        assert client.get_model_config("small")["output"] == [
            {"name": "mask", "data_type": "TYPE_UINT8", "dims": [64, 64]}
        ]
        images = RNG.normal(size=(2, 3, 64, 64)).astype(np.float32)
        with open_model(folder / "small.onnx").running(Running(threads=1)) as runner:
            masks = runner.run(images)["mask"]
        for binary in (True, False):
            asked = [tritonclient.http.InferRequestedOutput("mask", binary_data=binary)]
            found = client.infer("small", [tensor(images)], outputs=asked).as_numpy("mask")
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, masks)
        pictures = [PHOTO.read_bytes(), png(20, 90)]
        found = client.infer("small_segment", [encoded(*pictures)]).as_numpy("mask")
        for content, picture in zip(found[:, 0], pictures, strict=True):
            np.testing.assert_array_equal(values(content), expected(folder / "small.onnx", picture))
        asked = [tritonclient.http.InferRequestedOutput("mask", binary_data=False)]
        with pytest.raises(InferenceServerException, match="holds encoded pictures, which JSON cannot"):
            client.infer("small_segment", [encoded(pictures[0])], outputs=asked)
    with tritonclient.http.InferenceServerClient(free.address) as client:
        assert client.get_model_metadata("free")["inputs"][0]["shape"] == [-1, 3, -1, -1]
        assert client.get_model_metadata("free")["outputs"][0]["shape"] == [-1, 5, -1, -1]
        with open_model(folder / "free.onnx").running(Running(threads=1)) as runner:
            for size in ((64, 96), (96, 64), (5, 31)):
                images = RNG.normal(size=(1, 3, *size)).astype(np.float32)
                found = client.infer("free", [tensor(images)]).as_numpy("logits")
                np.testing.assert_allclose(found, runner.run(images)["logits"], atol=1e-6)
        for size in ((65, 96), (97, 1), (0, 4)):
            with pytest.raises(InferenceServerException, match="expected height and width within 64x96, or turned"):
                client.infer("free", [tensor(np.zeros((1, 3, *size), np.float32))])
        with pytest.raises(InferenceServerException, match="picture 2 of 2 becomes 96x64 pixels, and the first one 64"):
            client.infer("free_segment", [encoded(png(90, 60), png(60, 90))])


def test_pictures_of_one_shape_are_computed_together_and_others_beside_them(free: Served) -> None:
    pictures = [png(90, 60), png(60, 90)] * 3
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda picture: free.post("/v1/segment", picture, JSON).document, pictures))
    assert [answer["batch"] for answer in answers] == [3] * 6
    assert [(answer["height"], answer["width"]) for answer in answers] == [(60, 90), (90, 60)] * 3


def test_a_load_judges_masks_and_logits_of_free_sizes(small: Served, free: Served, tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(png(30 + k, 40))
    found = load(f"{small.url}/v2/models/small", seconds=0.2, clients=2, images=tmp_path)
    assert (found.model, found.lost, found.answered > 0) == ("small_segment", 0, True)
    found = load(small.url, seconds=0.2, clients=2, batch=2)
    assert (found.model, found.lost, found.mean_batch) == ("small", 0, pytest.approx(3, abs=1))
    done = call("load", free.url, "--seconds", "0.7", "--batch", "3", "--size", "48x96", "--json")
    assert (done.document["model"], done.document["lost"]) == ("free", 0)
    complaint(call("load", free.url, "--seconds", "0.2"), "answers 400, without any load", "within 64x96")


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    known = segmenter(tmp_path / "names.onnx", facts={"classes": ["one"]})
    complaint(spawn("serve", known, "--port", "0"), "the passport's classes are 1 entries", "expected 5 names")
