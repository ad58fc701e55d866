"""The Open Inference Protocol: what is understood, what is refused and in which words; nothing else happens."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.server.protocol import Signature, answer, header_length, parse
from sepvit_deploy.server.refusal import Refusal
from sepvit_deploy.server.values import Tensor

IMAGES = Signature(
    "m",
    Tensor("images", "FP32", (None, 3, 2, 2)),
    (Tensor("a", "FP32", (None, 4)), Tensor("b", "FP32", (None, 2))),
    max_batch=4,
)
PICTURES = Signature(
    "m_classify",
    Tensor("image", "BYTES", (None, 1)),
    (Tensor("class", "INT64", (None, 2)), Tensor("label", "BYTES", (None, 2))),
    max_batch=4,
)
ZEROS = np.zeros((1, 3, 2, 2), np.float32)


def tensor(values: np.ndarray = ZEROS, **fields: Any) -> dict[str, Any]:
    """An input whose data is JSON."""
    return {"name": "images", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()} | fields


def body(*inputs: Any, **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs or [tensor()])} | fields).encode()


def binary(block: bytes, size: Any = None, signature: Signature = IMAGES, **fields: Any) -> tuple[bytes, int]:
    """A request whose data follows its JSON, and the length of the JSON."""
    shape = [1, *signature.input.shape[1:]]
    entry = {"name": signature.input.name, "shape": shape, "datatype": signature.input.datatype} | fields
    entry["parameters"] = {"binary_data_size": len(block) if size is None else size} | fields.get("parameters", {})
    head = json.dumps({"inputs": [entry]}).encode()
    return head + block, len(head)


def strings(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def refusal(request: bytes, length: int | None = None, signature: Signature = IMAGES, status: int = 400) -> str:
    with pytest.raises(Refusal) as caught:
        parse(request, length, signature)
    assert caught.value.status == status
    assert "\n" not in caught.value.text
    assert len(caught.value.text) < 400
    return caught.value.text


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.integers(1, 4).flatmap(lambda b: st.lists(finite, min_size=12 * b, max_size=12 * b)), st.booleans())
def test_what_a_client_sends_is_what_the_model_gets(numbers: list[float], nested: bool) -> None:
    values = np.array(numbers, np.float32).reshape(-1, 3, 2, 2)
    data = values.tolist() if nested else values.ravel().tolist()
    found = parse(body(tensor(values, data=data), id="7"), None, IMAGES)
    assert np.array_equal(found.values, values)
    assert (found.id, found.shape) == ("7", values.shape)
    found = parse(*binary(values.tobytes(), shape=list(values.shape)), IMAGES)
    assert np.array_equal(found.values, values)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4))
def test_strings_keep_their_bytes(values: list[bytes]) -> None:
    request, length = binary(strings(*values), signature=PICTURES, shape=[len(values), 1])
    assert parse(request, length, PICTURES).values == values


scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalar, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x), max_leaves=8
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["images", "image"]) | anything,
        "shape": st.just([1, 3, 2, 2]) | st.just([1, 1]) | anything,
        "datatype": st.sampled_from(["FP32", "BYTES"]) | anything,
        "data": st.lists(finite, min_size=12, max_size=12) | anything,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 60)}) | anything,
    },
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(fields, max_size=2) | anything,
        "outputs": anything,
        "parameters": anything,
        "id": anything,
    },
)


@settings(max_examples=400)
@given(
    documents | anything, st.binary(max_size=60), st.none() | st.integers(0, 300), st.sampled_from([IMAGES, PICTURES])
)
def test_whatever_is_sent_is_understood_or_refused(
    document: Any, tail: bytes, length: int | None, signature: Signature
) -> None:
    head = json.dumps(document).encode()
    for size in (length, len(head)):
        try:
            found = parse(head + tail, size, signature)
        except Refusal as refused:
            assert refused.status == 400
        else:
            assert found.shape[1:] == signature.input.shape[1:]


@given(st.binary(max_size=80))
def test_bytes_that_are_no_json_are_refused(noise: bytes) -> None:
    refusal(b"\xff" + noise)


BAD = [
    (b"", "no JSON"),
    (b"[]", "the request is [], expected a JSON object"),
    (b"[" * 60_000, "nested too deeply"),
    (b'{"inputs":' + b"9" * 5000 + b"}", "no JSON"),
    (body(tensor(data=[float("nan")] * 12)), "NaN is no JSON number"),
    (body(tensor(data=[1e39] * 12)), "not finite"),
    (body(tensor(data=[10**400] * 12)), "beyond float32"),
    (body(tensor(data=["1"] * 12)), "no number"),
    (body(tensor(data=[True] * 12)), "no number"),
    (body(tensor(data=[None] * 12)), "no number"),
    (body(tensor(data=[0.0] * 11)), "has 11 values, and its shape [1, 3, 2, 2] 12"),
    (body(tensor(data=[[0.0] * 12])), "not nested as its shape"),
    (body(tensor(data=3)), "has data 3, expected a list"),
    (b'{"inputs": []}', "no inputs, expected images for m"),
    (body(tensor(), tensor()), "2 inputs, expected images alone"),
    (body("x"), 'an input is "x"'),
    (body(tensor(name="pixels")), "the input is \"pixels\", expected 'images'"),
    (body(tensor(datatype="FP16")), 'datatype "FP16", expected FP32'),
    (body(tensor(shape=[1, 3, 2, 3])), "has shape [1, 3, 2, 3], expected [B,3,2,2]"),
    (body(tensor(shape=[3, 2, 2])), "expected [B,3,2,2]"),
    (body(tensor(shape=[0, 3, 2, 2], data=[])), "expected [B,3,2,2]"),
    (body(tensor(shape=[True, 3, 2, 2])), "expected [B,3,2,2]"),
    (body(tensor(np.zeros((5, 3, 2, 2)))), "a batch of 5, and m takes at most 4"),
    (body(tensor(), id=3), "id is 3"),
    (body(tensor(), id="x" * 2000), "at most 1024 characters"),
    (body(tensor(), outputs={"name": "a"}), "outputs is dict"),
    (body(tensor(), outputs=[{"name": "c"}]), 'the output "c" is none of m, expected a, b'),
    (body(tensor(), outputs=[{"name": "a"}, {"name": "a"}]), "asked for twice"),
    (body(tensor(), outputs=[{"name": "a", "parameters": {"binary_data": 1}}]), "binary_data is 1"),
    (body(tensor(), outputs=[{"name": "a", "parameters": {"classification": 3}}]), "ask m_classify"),
    (body(tensor(), outputs=[{"name": "a", "parameters": {"shared_memory_region": "r"}}]), "shared_memory_region"),
    (body(tensor(parameters={"shared_memory_region": "/etc/passwd"})), "memory that is named is not read"),
    (body(tensor(), parameters={"binary_data_output": "yes"}), "binary_data_output"),
    (body(tensor(), parameters={"timeout": -1}), "timeout is -1"),
    (body(tensor(), parameters={"timeout": 10**400}), "timeout is 1000"),
    (body(tensor(), parameters=[]), "parameters of the request is []"),
    (body(tensor()) + b"\0\0", "no JSON"),
]


@pytest.mark.parametrize(("request_body", "words"), BAD)
def test_each_mistake_has_its_words(request_body: bytes, words: str) -> None:
    assert words in refusal(request_body)


def test_json_is_no_longer_than_its_images_make_it() -> None:
    values = np.full((4, 3, 2, 2), -1.2345678901234567e-100)
    assert parse(body(tensor(values)), None, IMAGES).shape == (4, 3, 2, 2)
    assert parse(*binary(bytes(48), parameters={"key": "x" * 60_000}), IMAGES).shape == (1, 3, 2, 2)
    assert "the JSON has 70000 bytes, and m takes 66784: at most 4" in refusal(b" " * 70_000, status=413)
    wide = Signature("w", Tensor("images", "FP32", (None, 3, 224, 224)), IMAGES.outputs, max_batch=1)
    hostile = b"[" + b"{}," * 200_000 + b"{}]"
    assert "more values than w takes" in refusal(hostile, signature=wide, status=413)
    ones = np.ones((1, 3, 224, 224))
    for data in (ones.tolist(), ones.ravel().tolist()):
        assert parse(body(tensor(ones, data=data)), None, wide).shape == ones.shape


def test_a_key_is_not_repeated_whole() -> None:
    assert len(refusal(body(tensor(), parameters={"shared_memory" + "x" * 9000: 1}))) < 200


def test_mistakes_of_binary_data_have_their_words() -> None:
    whole = ZEROS.tobytes()
    assert "has 47 bytes, and its shape [1, 3, 2, 2] 48" in refusal(*binary(whole[:-1]))
    assert "binary_data_size is 47, and 48 bytes follow" in refusal(*binary(whole, 47))
    assert "binary_data_size is true" in refusal(*binary(whole, True))
    assert "both data and binary_data_size" in refusal(*binary(whole, data=[0.0]))
    assert "not finite" in refusal(*binary(np.full((1, 3, 2, 2), np.nan, np.float32).tobytes()))
    request = body()
    assert "4 bytes follow the JSON" in refusal(request + bytes(4), len(request))
    assert "the body has" in refusal(request, 10_000)
    for data, words in (
        (b"\x01", "within the length"),
        (struct.pack("<I", 9) + b"x", "a string of 9 bytes, and 1 are left"),
        (b"", "has 0 strings, and its shape 1"),
        (strings(b"a", b"b"), "has more than 1 strings"),
    ):
        assert words in refusal(*binary(data, signature=PICTURES), PICTURES)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "٣", "9" * 20, "x"])
def test_a_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="expected a number of bytes"):
        header_length(text)


def test_unknown_parameters_mean_nothing_and_timeouts_are_kept() -> None:
    found = parse(body(tensor(parameters={"x": 1}), parameters={"priority": 3, "timeout": 500}), None, IMAGES)
    assert found.timeout_us == 500
    assert parse(body(tensor(), parameters={"timeout": 0}), None, IMAGES).timeout_us is None


def test_outputs_are_given_as_they_are_asked_for() -> None:
    a, b = np.arange(4, dtype=np.float32)[None], np.array([[0.1, 2]], np.float32)
    outputs = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    request = parse(body(tensor(), outputs=outputs, id="q"), None, IMAGES)
    found, length = answer("m", "3", request, {"a": a, "b": b}, IMAGES)
    assert length is not None
    document = json.loads(found[:length])
    assert (document["id"], document["model_name"], document["model_version"]) == ("q", "m", "3")
    assert [output["name"] for output in document["outputs"]] == ["b", "a"]
    assert found[length:] == b.tobytes()
    assert document["outputs"][1] == {"name": "a", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 1.0, 2.0, 3.0]}


FREE = Signature(
    "m",
    Tensor("images", "FP32", (None, 3, None, None), within=(2, 4)),
    (Tensor("mask", "UINT8", (None, None, None)), Tensor("logits", "FP32", (None, 5, None, None))),
    max_batch=4,
)


@pytest.mark.parametrize("size", [(2, 4), (4, 2), (1, 1), (1, 3)], ids=str)
def test_a_free_size_fits_upright_or_lying(size: tuple[int, int]) -> None:
    values = np.zeros((2, 3, *size), np.float32)
    assert parse(body(tensor(values)), None, FREE).shape == values.shape
    assert parse(*binary(values.tobytes(), shape=list(values.shape)), FREE).shape == values.shape


@pytest.mark.parametrize("size", [(3, 3), (2, 5), (0, 2), (-1, -8), (10**40, 1)], ids=str)
def test_a_size_that_does_not_fit_is_refused(size: tuple[int, int]) -> None:
    assert "expected height and width within 2x4, or turned" in refusal(body(tensor(shape=[1, 3, *size])), None, FREE)
    assert "expected [B,3,height,width]" in refusal(body(tensor(shape=[1, 3, 2])), None, FREE)


def test_masks_and_maps_are_given_in_binary_and_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.arange(8, dtype=np.uint8).reshape(1, 2, 4) + np.uint8(248)
    logits = np.arange(10, dtype=np.float32).reshape(1, 5, 1, 2)
    outputs = [{"name": "mask", "parameters": {"binary_data": True}}, {"name": "logits"}]
    request = parse(body(tensor(np.zeros((1, 3, 2, 4), np.float32)), outputs=outputs), None, FREE)
    found, length = answer("m", "1", request, {"mask": mask, "logits": logits}, FREE)
    first, second = json.loads(found[:length])["outputs"]
    assert first == {"name": "mask", "datatype": "UINT8", "shape": [1, 2, 4], "parameters": {"binary_data_size": 8}}
    assert found[length:] == bytes(range(248, 256))
    assert (second["shape"], second["data"]) == ([1, 5, 1, 2], logits.ravel().tolist())
    monkeypatch.setattr("sepvit_deploy.server.protocol.MOST_JSON_VALUES", 9)
    with pytest.raises(Refusal, match="logits has 10 values, too many for JSON"):
        answer("m", "1", request, {"mask": mask, "logits": logits}, FREE)


def test_strings_are_given_as_text_or_with_their_lengths() -> None:
    tensors: dict[str, Any] = {"class": np.array([[4, 2]]), "label": ["Füchse".encode(), b"cat"]}
    request = parse(*binary(strings(b"x"), signature=PICTURES), PICTURES)
    found, length = answer("m", "1", request, tensors, PICTURES)
    assert length is None
    assert json.loads(found)["outputs"][1]["data"] == ["Füchse", "cat"]
    head = {"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}]}
    asked = json.dumps(head | {"parameters": {"binary_data_output": True}}).encode()
    found, length = answer("m", "1", parse(asked, None, PICTURES), tensors, PICTURES)
    assert found[length:] == struct.pack("<qq", 4, 2) + strings("Füchse".encode(), b"cat")
