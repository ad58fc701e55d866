"""Plans and their passports: what is refused, what stops one from loading, and that nothing of it is run to tell."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy import gpu, plans
from sepvit_deploy.artifact import Parent, Passport, passport_path
from sepvit_deploy.building import EngineFacts, NetworkFacts, Profile
from sepvit_deploy.doctor import diagnose_plan
from sepvit_deploy.errors import PassportError, PlanError
from sepvit_deploy.gpu import Device
from sepvit_deploy.plans import Here, Plan
from sepvit_deploy.triton_releases import IMAGES, image_for

H200 = Device(0, "NVIDIA H200", "9.0", 132, 150_000_000_000, 6144, 62914560, 49152, 233472, 512, False, True, "13.0")
RTX = b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + b"engine"
TENSORRT = b"ftrt" + b"engine" * 9
NETWORK = NetworkFacts(3, {"HALF": 2}, {}, {"images": [-1, 3, 224, 224]}, {"logits": [-1, 10]})


def facts(**more: Any) -> EngineFacts:
    known: dict[str, Any] = {
        "builder": "tensorrt",
        "builder_version": "10.13.3.9",
        "platform": "linux x86_64",
        "device": H200,
        "compute_capabilities": (),
        "profiles": (Profile(1, 8, 32),),
        "batch": None,
        "workspace_mb": None,
        "level": None,
        "version_compatible": False,
        "hardware_compatible": None,
        "refittable": False,
        "network": NETWORK,
        "build_seconds": 61.5,
        "timing_cache_hit": None,
        "inspection": None,
    }
    return EngineFacts(**known | more)


def rtx_facts(**more: Any) -> EngineFacts:
    return facts(**{"builder": "rtx", "builder_version": "1.7.1.116", "device": None} | more)


def here(**more: Any) -> Here:
    return Here(**{"builders": {"tensorrt": "10.13.3.9"}, "devices": (H200,), "platform": "linux x86_64"} | more)


def written(path: Path, known: EngineFacts | None = None, content: bytes = TENSORRT) -> Path:
    passport = Passport(
        stage="build",
        parents=(Parent("onnx", "t.onnx", sha256="ab" * 32), Parent("weights", "random", seed=0)),
        model={"variant": "t", "task": "classify", "size": [224, 224], "num_classes": 10},
        facts={"precision": "fp16", "engine": (known or facts()).to_dict()},
    )
    plans.write_plan(path, content, passport)
    return path


def edited(path: Path, change: Any) -> Path:
    location = passport_path(path)
    document = json.loads(location.read_text(encoding="utf-8"))
    change(document)
    location.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_plan_is_read_with_what_its_passport_says(tmp_path: Path) -> None:
    for name, known, content in (("a.plan", facts(), TENSORRT), ("b.plan", rtx_facts(), RTX)):
        plan = plans.read_plan(written(tmp_path / name, known, content))
        assert plan.content == content
        assert plan.builder == known.builder
        assert plan.facts == known
        assert plan.passport is not None
        assert plan.passport.sha256 == plan.sha256


def test_a_pair_may_be_renamed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.plan")
    path.rename(tmp_path / "b.plan")
    passport_path(path).rename(passport_path(tmp_path / "b.plan"))
    assert plans.read_plan(tmp_path / "b.plan").facts == facts()


def test_plans_that_are_another(tmp_path: Path) -> None:
    path = written(tmp_path / "a.plan")
    other = written(tmp_path / "b.plan", content=TENSORRT + b"other")
    path.write_bytes(other.read_bytes())
    with pytest.raises(PassportError, match=r"a\.plan\.json is the passport of another a\.plan .*; build it again$"):
        plans.read_plan(path)
    path.write_bytes(TENSORRT[:20])
    with pytest.raises(PassportError, match=r"the passport of another a\.plan"):
        plans.read_plan(path)
    passport_path(path).unlink()
    with pytest.raises(
        PassportError, match=r"has no passport.*a plan is code.*; expected a\.plan\.json beside it.*--trust"
    ):
        plans.read_plan(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["facts"]["engine"].update(builder_version="99.0"),
        lambda d: d["facts"]["engine"]["device"].update(compute_capability="8.6"),
        lambda d: d["facts"].update(precision="int8"),
        lambda d: d["parents"][0].update(sha256="cd" * 32),
        lambda d: d["model"].update(variant="s"),
        lambda d: d["facts"].pop("seal"),
    ],
)
def test_an_edited_passport_breaks_its_seal(change: Any, tmp_path: Path) -> None:
    path = edited(written(tmp_path / "a.plan"), change)
    with pytest.raises(PassportError, match=r"a\.plan\.json was edited after the build: its seal is broken; build it"):
        plans.read_plan(path)
    assert plans.read_plan(path, trust=True).facts is None


@pytest.mark.parametrize("version", ["\N{SUPERSCRIPT TWO}", "1.\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_versions_that_are_none_compare_with_any(version: str, tmp_path: Path) -> None:
    plan = written(tmp_path / "a.plan", facts(builder_version=version))
    assert not diagnose_plan(plan, machine=here()).loads


def test_a_build_time_beyond_any_number(tmp_path: Path) -> None:
    path = written(tmp_path / "a.plan")
    passport = plans.read_plan(path).passport
    assert passport is not None
    engine = passport.facts["engine"] | {"build_seconds": 10**400}
    told = {key: value for key, value in passport.facts.items() if key != "seal"}
    plans.write_plan(path, TENSORRT, replace(passport, facts=told | {"engine": engine}))
    with pytest.raises(PassportError, match="is no passport of an engine"):
        plans.read_plan(path)


def test_a_plan_beyond_the_largest_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.plan"
    with path.open("wb") as file:
        file.truncate(plans.MAX_BYTES + 1)
    with pytest.raises(PlanError, match=r"sparse\.plan is larger than 4 GiB"):
        plans.read_plan(path)
    with passport_path(written(tmp_path / "b.plan")).open("wb") as file:
        file.truncate(1 << 27)
    with pytest.raises(PassportError, match="it is larger than 64 MiB"):
        plans.read_plan(tmp_path / "b.plan")


def test_passports_that_are_none_of_an_engine(tmp_path: Path) -> None:
    path = edited(written(tmp_path / "a.plan"), lambda d: d.update(stage="export"))
    with pytest.raises(PassportError, match=r"is of stage export; expected build"):
        plans.read_plan(path)
    edited(path, lambda d: d.pop("model"))
    with pytest.raises(PassportError, match=r"a\.plan\.json is no passport \(unknown or missing keys: model\)"):
        plans.read_plan(path)
    plan_of_other_builder = written(tmp_path / "c.plan", rtx_facts(), TENSORRT)
    with pytest.raises(PassportError, match=r"c\.plan is a plan of TensorRT; expected TensorRT-RTX 1\.7\.1\.116"):
        plans.read_plan(plan_of_other_builder)


def test_a_plan_that_its_passport_proves_may_begin_with_anything(tmp_path: Path) -> None:
    path = written(tmp_path / "a.plan", content=b"another version's first bytes")
    assert plans.read_plan(path).facts == facts()
    edited(path, lambda d: d["facts"].pop("seal"))
    with pytest.raises(PassportError, match="its seal is broken"):
        plans.read_plan(path)
    with pytest.raises(PlanError, match=r"a\.plan is no TensorRT plan"):
        plans.read_plan(path, trust=True)


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    for name, content in (("empty.plan", b""), ("text.plan", b"ONNX or so"), ("short.plan", b"ft")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PlanError, match=rf"{name} is no TensorRT plan; expected a plan as sepvit-deploy build"):
            plans.read_plan(tmp_path / name, trust=True)
    with pytest.raises(PlanError, match=r"is a folder"):
        plans.read_plan(tmp_path)
    with pytest.raises(PlanError, match=r"absent\.plan does not exist; .*type: sepvit-deploy build"):
        plans.read_plan(tmp_path / "absent.plan")
    os.mkfifo(tmp_path / "pipe.plan")
    with pytest.raises(PlanError, match=r"pipe\.plan is no regular file"):
        plans.read_plan(tmp_path / "pipe.plan")


def test_nothing_stops_a_plan_on_the_machine_that_built_it() -> None:
    assert plans.obstacles(facts(), here()) == ()
    assert plans.differences(facts(), here()) == ()
    ours = replace(H200, compute_capability="8.6")
    rtx = here(builders={"rtx": "1.7.1.116"}, devices=(ours,))
    assert plans.obstacles(rtx_facts(compute_capabilities=("8.6", "12.0")), rtx) == ()
    assert plans.obstacles(rtx_facts(), rtx) == ()


OTHER = [
    (facts(), here(builders={}), "TensorRT is not installed", "pip install 'sepvit-deploy[tensorrt]'"),
    (facts(), here(builders={"tensorrt": "10.14.1.48"}), "TensorRT 10.14.1.48 is installed", "sepvit-deploy build"),
    (facts(), here(builders={"tensorrt": "10.12.0.36"}), "TensorRT 10.12.0.36 is installed", "TensorRT 10.13.3"),
    (facts(), here(platform="linux aarch64"), "this machine is linux aarch64", "linux x86_64"),
    (facts(), here(devices=()), "no NVIDIA GPU is seen here", "sepvit-deploy doctor"),
    (facts(), here(devices=(replace(H200, compute_capability="8.0"),)), "has compute capability 8.0", "9.0"),
    (rtx_facts(), here(builders={"rtx": "1.7.1.116"}), "has compute capability 9.0", "none of RTX's"),
    (
        rtx_facts(compute_capabilities=("8.6",)),
        here(builders={"rtx": "1.7.1.116"}, devices=(replace(H200, compute_capability="8.9"),)),
        "has compute capability 8.9",
        "8.6",
    ),
    (
        rtx_facts(),
        here(builders={"rtx": "1.7.2.1"}, devices=(replace(H200, compute_capability="8.6"),)),
        "TensorRT-RTX 1.7.2.1 is installed",
        "TensorRT-RTX 1.7.1",
    ),
    (facts(version_compatible=True), here(builders={"tensorrt": "10.12.0.36"}), "10.12.0.36 is installed", "or newer"),
    (facts(version_compatible=True), here(builders={"tensorrt": "12.0.0.1"}), "12.0.0.1 is installed", "or newer"),
    (
        facts(hardware_compatible="same-cc"),
        here(devices=(replace(H200, compute_capability="8.0"),)),
        "has compute capability 8.0",
        "9.0",
    ),
    (
        facts(hardware_compatible="ampere+"),
        here(devices=(replace(H200, compute_capability="7.5"),)),
        "has compute capability 7.5",
        "8.0 or higher",
    ),
]


@pytest.mark.parametrize(("known", "machine", "found", "then"), OTHER)
def test_one_thing_that_differs_is_one_obstacle(known: EngineFacts, machine: Here, found: str, then: str) -> None:
    (obstacle,) = plans.obstacles(known, machine)
    assert found in obstacle.found
    assert then in f"{obstacle.expected}; {obstacle.hint}"


@pytest.mark.parametrize(
    ("known", "machine"),
    [
        (facts(), here(builders={"tensorrt": "10.13.3.11"})),
        (facts(version_compatible=True), here(builders={"tensorrt": "10.14.1.48"})),
        (facts(version_compatible=True), here(builders={"tensorrt": "11.4.0.106"})),
        (facts(hardware_compatible="ampere+"), here(devices=(replace(H200, compute_capability="12.0"),))),
        (facts(), here(devices=(replace(H200, driver="13.2"),))),
        (facts(), here(devices=(replace(H200, driver="12.8"),))),
    ],
)
def test_what_does_not_matter_is_no_obstacle(known: EngineFacts, machine: Here) -> None:
    assert plans.obstacles(known, machine) == ()


@given(st.integers(1, 500), st.integers(1, 1 << 40))
def test_another_size_of_gpu_loads_and_is_told(multiprocessors: int, memory: int) -> None:
    device = replace(H200, name="other", multiprocessors=multiprocessors, memory_bytes=memory)
    machine = here(devices=(device,))
    assert plans.obstacles(facts(), machine) == ()
    told = " ".join(plans.differences(facts(), machine))
    assert "name other, built on NVIDIA H200" in told
    assert ("multiprocessors" in told) == (multiprocessors != 132)


def test_the_doctor_tells_a_plan_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "probe", lambda plan: pytest.fail("the plan was run"))
    path = written(tmp_path / "a.plan")
    found = diagnose_plan(path, machine=here())
    assert found.loads
    assert found.precision == "fp16"
    assert found.triton == "tritonserver:25.10-py3"
    assert [parent.role for parent in found.chain] == ["onnx", "weights"]
    assert found.to_dict()["loads"] is True
    json.dumps(found.to_dict(), allow_nan=False)
    away = diagnose_plan(path, machine=here(devices=(), builders={}))
    assert len(away.obstacles) == 2


def test_images_of_triton_are_known_or_said_to_be_unknown(tmp_path: Path) -> None:
    for version, tag in IMAGES.items():
        assert image_for(f"{version}.99") == image_for(version) == tag
    assert image_for("99.1.0.2") is None
    newer = diagnose_plan(written(tmp_path / "a.plan", facts(builder_version="99.1.0.2")), machine=here())
    assert newer.triton.startswith("unknown: TensorRT 99.1.0.2 is not in the table of 20")
    rtx = diagnose_plan(written(tmp_path / "b.plan", rtx_facts(), RTX), machine=here())
    assert rtx.triton.startswith("none: Triton runs plans of TensorRT")


CHILDREN = [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"p\.plan crashes TensorRT \(SIGSEGV\)"),
    ("print('hello')", r"p\.plan does not load: its process ended with status 0"),
    ("raise SystemExit(3)", r"does not load: its process ended with status 3"),
    (
        'print(\'{"loads": false, "reason": "version tag does not match"}\')',
        r"does not load: version tag does not match",
    ),
    ("print('[1, 2]')", r"does not load: its process ended with status 0"),
    ("import time; time.sleep(60)", r"p\.plan had not loaded after 0\.5 s"),
]


@pytest.mark.parametrize(("code", "words"), CHILDREN)
def test_a_plan_is_tried_in_another_process(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: (H200,))
    monkeypatch.setattr(plans, "CHILD", (sys.executable, "-c", code))
    monkeypatch.setattr(plans, "PROBE_SECONDS", 0.5 if "sleep" in code else 60)
    with pytest.raises(PlanError, match=words):
        plans.probe(Plan(Path("p.plan"), TENSORRT, "", "tensorrt", None, None))


def test_a_plan_that_loads_elsewhere_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(Path("p.plan"), TENSORRT, "", "tensorrt", None, None)
    with pytest.raises(PlanError, match=r"p\.plan: no NVIDIA GPU is seen here.*deserialising without a driver ends"):
        plans.probe(plan)
    monkeypatch.setattr(gpu, "devices", lambda: (H200,))
    code = f"import sys; sys.stdin.buffer.readline(); assert sys.stdin.buffer.read() == {TENSORRT!r}; "
    monkeypatch.setattr(plans, "CHILD", (sys.executable, "-c", code + "print('{\"loads\": true}')"))
    plans.probe(plan)


def test_the_child_itself_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: (H200,))
    with pytest.raises(PlanError, match=r"p\.plan does not load: tensorrt is not installed|lacks"):
        plans.probe(Plan(Path("p.plan"), TENSORRT, "", "tensorrt", None, None))
