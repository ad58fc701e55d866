"""Profiles, requests and what is known of an engine: what they accept, and JSON and back."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.building import BuildRequest, EngineFacts, NetworkFacts, Profile, default_profiles
from sepvit_deploy.errors import OptionError
from sepvit_deploy.gpu import Device
from sepvit_deploy.records import plain, record
from sepvit_deploy.spec import MAX_BATCH, MAX_DENSE_SIDE

BATCH = st.integers(1, MAX_BATCH)
PROFILE = Profile(1, 8, 32)
DEVICE = Device(
    index=0,
    name="NVIDIA H200",
    compute_capability="9.0",
    multiprocessors=132,
    memory_bytes=150_000_000_000,
    memory_bus_bits=6144,
    l2_cache_bytes=62_914_560,
    shared_memory_per_block_bytes=232_448,
    shared_memory_per_multiprocessor_bytes=233_472,
    texture_alignment_bytes=512,
    integrated=False,
    ecc=True,
    driver="13.0",
)
NETWORK = NetworkFacts(
    layers=7,
    matmuls={"INT8": 2, "HALF": 1},
    convolutions={},
    inputs={"images": [-1, 3, 224, 224]},
    outputs={"logits": [-1, 10]},
)
FACTS = EngineFacts(
    builder="tensorrt",
    builder_version="10.13.2.6",
    platform="linux x86_64",
    device=DEVICE,
    compute_capabilities=(),
    profiles=(PROFILE, Profile(1, 1, 1)),
    batch=None,
    workspace_mb=512,
    level=5,
    version_compatible=True,
    hardware_compatible="ampere+",
    refittable=False,
    network=NETWORK,
    build_seconds=12.5,
    timing_cache_hit=False,
    inspection={"layers": [{"name": "a", "ms": 0.5}]},
)
RTX = replace(
    FACTS,
    builder="rtx",
    device=None,
    compute_capabilities=("8.6", "12.0"),
    profiles=(),
    batch=2,
    workspace_mb=None,
    level=None,
    hardware_compatible=None,
    timing_cache_hit=None,
    inspection=None,
)
REQUEST = BuildRequest(
    "tensorrt",
    (PROFILE,),
    workspace_mb=1,
    level=0,
    timing_cache=Path("t.cache"),
    version_compatible=True,
    hardware_compatible="same-cc",
    refittable=True,
)


@given(st.tuples(BATCH, BATCH, BATCH).map(sorted))
def test_three_ascending_batches_are_a_profile(batches: list[int]) -> None:
    profile = Profile.parse(",".join(map(str, batches)))
    assert [profile.minimum, profile.optimum, profile.maximum] == batches
    assert Profile.parse(str(profile)) == profile


@given(BATCH)
def test_one_batch_is_a_profile_of_it_alone(batch: int) -> None:
    assert Profile.parse(str(batch)) == Profile(batch, batch, batch)


def test_spaces_around_batches_are_no_fault() -> None:
    assert Profile.parse(" 1, 8 ,32 ") == PROFILE


@given(st.text() | st.lists(st.integers()).map(lambda batches: ",".join(map(str, batches))))
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    try:
        profile = Profile.parse(text)
    except OptionError as error:
        assert str(error).startswith("--profile ")
        assert len(str(error).splitlines()) == 1
    else:
        assert 1 <= profile.minimum <= profile.optimum <= profile.maximum <= MAX_BATCH


@pytest.mark.parametrize(
    "text",
    ["", "0", "1,2", "8,1,32", "1,32,8", f"1,2,{MAX_BATCH + 1}", "1,2,3,4", "-1", "1.5", "1;8;32", "\u0661", "1e3"],
)
def test_what_is_no_profile_is_said(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Profile.parse(text)
    assert str(caught.value) == (
        f"--profile {text!r}; expected MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX <= 4096, such as 1,8,32; or one batch; "
        "for a file of any size with sizes up to 4096, such as 1,1,4@256x256,512x512,512x2048"
    )


SIDE = st.integers(1, MAX_DENSE_SIDE)
SIZES = st.tuples(st.tuples(SIDE, SIDE, SIDE).map(sorted), st.tuples(SIDE, SIDE, SIDE).map(sorted))


@given(st.tuples(BATCH, BATCH, BATCH).map(sorted), SIZES)
def test_a_profile_with_sizes_survives_its_text_and_json(
    batches: list[int], sides: tuple[list[int], list[int]]
) -> None:
    sizes = tuple(zip(*sides, strict=True))
    text = ",".join(map(str, batches)) + "@" + ",".join(f"{height}x{width}" for height, width in sizes)
    profile = Profile.parse(text)
    assert profile == Profile(*batches, sizes)  # type: ignore[arg-type]
    assert str(profile) == text
    assert record(Profile, json.loads(json.dumps(plain(profile)))) == profile
    assert all(profile.covers_size(size) for size in sizes)
    assert not profile.covers_size((sizes[2][0] + 1, sizes[2][1]))
    assert not profile.covers_size((sizes[0][0], sizes[0][1] - 1))


def test_one_size_stands_for_three() -> None:
    assert Profile.parse("1@512x768") == Profile(1, 1, 1, ((512, 768),) * 3)
    assert Profile.parse("1,2,4@64") == Profile(1, 2, 4, ((64, 64),) * 3)


@pytest.mark.parametrize(
    "text",
    ["1@", "1@64x64,64x64", "1@64x64,32x64,64x64", "1@64x64,64x32,64x64", "1@4097x1", "1@0x64", "8,1@64x64", "1@1@1",
     "@64x64", "1@64x64x64"],
)  # fmt: skip
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"such as 1,1,4@256x256,512x512,512x2048$"):
        Profile.parse(text)


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        ("1", "1"),
        ("1,8,32", "1 to 32"),
        ("2@64x96", "2 at 64x96"),
        ("1,1,4@32x32,64x96,64x128", "1 to 4 at 32x32 to 64x128"),
    ],
)
def test_what_a_profile_takes(profile: str, text: str) -> None:
    assert Profile.parse(profile).takes == text


def test_a_profile_gives_the_shapes_of_what_is_free_alone() -> None:
    profile = Profile.parse("1,2,4@32x32,64x96,64x128")
    assert profile.shapes([-1, 3, -1, -1]) == ((1, 3, 32, 32), (2, 3, 64, 96), (4, 3, 64, 128))
    assert profile.shapes([-1, 3, 8, 8]) == ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    assert PROFILE.shapes([-1, 5]) == ((1, 5), (8, 5), (32, 5))


def test_profiles_of_their_own() -> None:
    assert default_profiles(None, None) == (PROFILE,)
    assert default_profiles(2, None) == ()
    lying, standing = default_profiles(None, (512, 2048))
    assert (str(lying), str(standing)) == ("1,1,4@32x32,512x683,512x2048", "1,1,4@32x32,683x512,2048x512")
    assert default_profiles(None, (2048, 512)) == (lying, standing)
    assert list(map(str, default_profiles(2, (64, 64)))) == ["2,2,2@32x32,64x64,64x64"]
    assert list(map(str, default_profiles(None, (20, 20)))) == ["1,1,4@20x20,20x20,20x20"]


def test_passports_and_requests_from_before_sizes_are_read_and_written_as_they_were() -> None:
    document = FACTS.to_dict()
    assert document["profiles"][0] == {"minimum": 1, "optimum": 8, "maximum": 32}
    sized = replace(FACTS, profiles=(Profile.parse("1@64x64"),)).to_dict()
    assert sized["profiles"][0]["sizes"] == [[64, 64], [64, 64], [64, 64]]
    assert EngineFacts.from_dict(sized).profiles == (Profile.parse("1@64x64"),)
    for wrong in ([[64, 64]], [[64], [64], [64]], [[64, 64], [64, 64], [64, "64"]], [[64, 64], [32, 64], [64, 64]], 64):
        with pytest.raises((TypeError, ValueError)):
            EngineFacts.from_dict({**sized, "profiles": [{**sized["profiles"][0], "sizes": wrong}]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"builder": "trt"}, "--builder trt; expected tensorrt or rtx"),
        ({"profiles": (PROFILE, PROFILE)}, "--profile 1,8,32 is given twice; expected profiles that differ"),
        ({"workspace_mb": 0}, "--workspace-mb 0; expected 1 to 1048576"),
        ({"level": 6}, "--level 6; expected 0 to 5"),
        ({"level": -1}, "--level -1; expected 0 to 5"),
        ({"hardware_compatible": "all"}, "--hardware-compatible all; expected ampere+ or same-cc"),
        ({"compute_capabilities": ("86",)}, "--compute-capability '86'; expected one such as 8.6"),
        (
            {"compute_capabilities": ("8.6",)},
            "--compute-capability with TensorRT; expected no such option; TensorRT builds for the GPU of this machine; "
            "for another of its family: --hardware-compatible",
        ),
        (
            {"builder": "rtx", "compute_capabilities": ("8.6", "8.6")},
            "--compute-capability 8.6 is given twice; expected capabilities that differ",
        ),
        (
            {"builder": "rtx", "timing_cache": Path("t")},
            "--timing-cache with TensorRT-RTX; expected no such option; TensorRT-RTX times its kernels where the "
            "engine runs; choose GPUs with --compute-capability",
        ),
    ],
)
def test_an_unusable_request_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        BuildRequest(**{"builder": "tensorrt", "profiles": (PROFILE,), **options})
    assert str(caught.value) == message


@pytest.mark.parametrize("option", [{"version_compatible": True}, {"hardware_compatible": "ampere+"}])
def test_rtx_knows_no_compatible_engines(option: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="ible with TensorRT-RTX; expected no such option"):
        BuildRequest("rtx", (), **option)


def through_json(record: Any) -> Any:
    return json.loads(json.dumps(record.to_dict(), allow_nan=False))


@pytest.mark.parametrize("record", [FACTS, RTX, REQUEST, BuildRequest("rtx", (), compute_capabilities=("7.5",))])
def test_a_record_goes_through_json_without_loss(record: Any) -> None:
    assert record.to_dict() == through_json(record)
    assert type(record).from_dict(through_json(record)) == record


ODD = [None, "text", -1, 2.5, float("nan"), True, [], [1], [[]], {}, {"a": 1}, {"name": "x"}]


@pytest.mark.parametrize("key", [entry.name for entry in fields(EngineFacts)])
@pytest.mark.parametrize("value", ODD, ids=str)
def test_an_odd_value_is_refused_or_stays_what_it_is(key: str, value: Any) -> None:
    document = through_json(FACTS) | {key: value}
    try:
        facts = EngineFacts.from_dict(document)
    except (ValueError, TypeError) as error:
        assert str(error)
    else:
        assert facts.to_dict()[key] == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "unknown or missing keys of EngineFacts: more"),
        ({"builder": "onnx"}, "builder is 'onnx'"),
        ({"level": True}, "level is True"),
        ({"device": {"index": 0}}, "unknown or missing keys of Device: compute_capability, driver"),
        ({"profiles": [{"minimum": 8, "optimum": 1, "maximum": 1}]}, "--profile '8,1,1'; expected MIN,OPT,MAX"),
        ({"network": {}}, "unknown or missing keys of NetworkFacts: convolutions, inputs"),
        ({"network": through_json(FACTS)["network"] | {"matmuls": {"HALF": "2"}}}, "matmuls is '2'"),
        ({"batch": 2}, "profiles and the fixed batch 2"),
        ({"build_seconds": -1.0}, "build_seconds is -1.0"),
    ],
)
def test_what_is_odd_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        EngineFacts.from_dict(through_json(FACTS) | change)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("document", [None, [], "facts", 3])
def test_what_is_no_object_is_refused(document: object) -> None:
    with pytest.raises(TypeError, match="EngineFacts is "):
        EngineFacts.from_dict(document)
