"""The ladder from torch to the engine: which rung and which block are wrong, and what is no ladder at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sepvit_deploy import gpu, plans
from sepvit_deploy.building import Profile
from sepvit_deploy.engine import engine_from_onnx
from sepvit_deploy.pipeline import climbing
from sepvit_deploy.pipeline.models import OpenedPlan
from sepvit_deploy.pipeline.opened import Running, open_onnx
from sepvit_deploy.runners import cuda, tensorrt
from sepvit_deploy.runners.base import Runner
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.cpu.commands import PHOTO, call, certified, changed, complaint, shift

BUILD = ("--builder", "rtx", "--level", "0")
ENGINE = 'builder = "rtx"\nprofiles = ["1,4,8"]'


@pytest.fixture(scope="module")
def deployed(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec, and the FP32, FP16 and engine files that it describes."""
    folder = tmp_path_factory.mktemp("deployed")
    source = exported("--variant", "lite")
    for path in (source, Path(f"{source}.json")):
        shutil.copy(path, folder / path.name.replace(source.stem, "fp32"))
    certified(source, folder / "fp32.onnx")
    spec = call("init", "lite", "fp16").out.replace('builder = "tensorrt"\nprofiles = []', ENGINE)
    (folder / "spec.toml").write_text(spec, encoding="utf-8")
    done = call("quantize", folder / "fp32.onnx", "--precision", "fp16", "--output", folder / "sepvit_lite_fp16.onnx")
    assert done.code == 0, done
    return folder


@pytest.fixture
def copy(deployed: Path, tmp_path: Path) -> Path:
    """The same folder, to be spoilt."""
    return Path(shutil.copytree(deployed, tmp_path / "copy"))


def climb(folder: Path, *options: str | Path) -> list[str | Path]:
    return ["check", folder / "spec.toml", "--out", folder, *options]


def test_every_rung_of_a_spec_agrees(deployed: Path) -> None:
    document = call(*climb(deployed, "--images", PHOTO.parent, "--json")).document
    assert document["passed"]
    assert document["verdict"] == "agrees"
    assert "the ladder ends at sepvit_lite_fp16.onnx" in document["left_out"]
    rungs = {step["rung"]: step for step in document["steps"]}
    assert list(rungs) == ["rewritten", "onnx", "precision"]
    for step in rungs.values():
        names = [tensor["name"] for tensor in step["first"]["tensors"]]
        assert names[-1] == "logits"
        assert "stage2.block0.pwa" in names
    assert rungs["onnx"]["first"]["tensors"][-1]["sqnr_db"] > 100
    assert 45 < rungs["precision"]["before"]["tensors"][-1]["sqnr_db"] < 100


def test_a_fault_in_a_file_is_the_models_and_has_an_address(copy: Path) -> None:
    path = copy / "sepvit_lite_fp16.onnx"
    changed(path, path, lambda model: model.CopyFrom(spoilt(model, 3.0)))
    done = call(*climb(copy))
    complaint(done, "the model is wrong", "precision (sepvit_lite_fp16.onnx)", "stage1.block0.mlp differs", code=1)
    assert "FAILED" in done.out
    assert "verdict: the model is wrong" in done.out


def test_a_fault_in_the_fp32_file_is_found_on_its_own_rung(copy: Path) -> None:
    path = copy / "fp32.onnx"
    changed(path, path, shift("head.bias", 0.5))
    lowered = copy / "sepvit_lite_fp16.onnx"
    passport = json.loads(Path(f"{lowered}.json").read_text(encoding="utf-8"))
    passport["parents"][0]["sha256"] = open_onnx(path).sha256
    certified(lowered, lowered, parents=passport["parents"])
    complaint(call(*climb(copy)), "the model is wrong", "onnx (fp32.onnx) against torch", "logits differs", code=1)


def test_files_that_are_not_of_the_chain(copy: Path) -> None:
    path = copy / "fp32.onnx"
    path.rename(copy / "elsewhere.onnx")
    complaint(call(*climb(copy)), "was made from fp32.onnx, which is not beside it")
    Path(f"{path}.json").unlink()
    shutil.copy(copy / "sepvit_lite_fp16.onnx", path)
    complaint(call(*climb(copy)), "fp32.onnx is not what sepvit_lite_fp16.onnx was made from")


def test_a_spec_that_was_not_deployed_or_is_another(copy: Path, tmp_path: Path) -> None:
    complaint(call("check", copy / "spec.toml", "--out", tmp_path), "is not there", "sepvit-deploy deploy")
    text = (copy / "spec.toml").read_text(encoding="utf-8")
    (copy / "spec.toml").write_text(text.replace("num_classes = 1000", "num_classes = 7"), encoding="utf-8")
    complaint(call(*climb(copy)), "sepvit_lite_fp16.onnx has another model; expected what")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("opset = 20", "opset = 19", "has export.opset 20; expected what"),
        ("batch = 0", "batch = 4", "has export.batch dynamic; expected what"),
        ('sha256 = ""', f'sha256 = "{"0" * 64}"', "has another weights.sha256; expected what"),
        ("resize_shorter = 256", "resize_shorter = 300", "has another preprocessing; expected what"),
        ("keep = []", 'keep = ["head"]', "has another precision.keep; expected what"),
        ("level = -1", "level = 3", "sepvit_lite_fp16.plan was built with other level; expected as in"),
        ("1,4,8", "1,8,8", "sepvit_lite_fp16.plan was built with other profiles; expected as in"),
        ('builder = "rtx"', 'builder = "tensorrt"', "sepvit_lite_fp16.plan was built by rtx; expected tensorrt"),
    ],
)
def test_files_that_are_not_what_their_spec_describes(
    old: str, new: str, words: str, engine: Callable[[float], Path], copy: Path
) -> None:
    del engine  # only that it was built
    text = (copy / "spec.toml").read_text(encoding="utf-8")
    if "export.batch" in words:
        text = text.replace('["1,4,8"]', "[]")  # a fixed batch has no profiles
    (copy / "spec.toml").write_text(text.replace(old, new), encoding="utf-8")
    complaint(call(*climb(copy)), words, "sepvit-deploy deploy")


def test_a_plan_of_another_file_is_found_without_a_gpu(engine: Callable[[float], Path], copy: Path) -> None:
    del engine
    path = copy / "sepvit_lite_fp16.onnx"
    changed(path, path, lambda model: setattr(model, "producer_name", "another"))
    complaint(call(*climb(copy)), "sepvit_lite_fp16.plan was built from another sepvit_lite_fp16.onnx; expected this")


def test_options_of_a_climb_alone(deployed: Path) -> None:
    complaint(call("check", deployed / "fp32.onnx", "--noise-floor", "3"), "--noise-floor 3 with ", "a plan or a spec")
    complaint(call(*climb(deployed, "--noise-floor", "3")), "--noise-floor 3 without a GPU", "2 builds or more")
    complaint(call(*climb(deployed, "--samples", "2")), "--samples 2 without --images")
    complaint(call(*climb(deployed, "--samples", "0", "--images", PHOTO.parent)), "--samples 0")


SPOILT = "stages.1.blocks.0.mlp.fc2.weight"


def spoilt(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    more = onnx.ModelProto()
    more.CopyFrom(model)
    (tensor,) = (tensor for tensor in more.graph.initializer if tensor.name == SPOILT)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), SPOILT))
    return more


@pytest.fixture
def engine(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Path]:
    """A real plan whose engine is ONNX Runtime in disguise, with a fault of its own: ``engine(3.0)``."""
    plan = deployed / "sepvit_lite_fp16.plan"
    source = deployed / "sepvit_lite_fp16.onnx"
    if not plan.exists():
        done = call("build", source, "--builder", "rtx", "--profile", "1,4,8", "--output", plan)
        assert done.code == 0, done

    def faulty(factor: float) -> Path:
        @contextlib.contextmanager
        def running(self: OpenedPlan, how: Running, **more: object) -> Iterator[Runner]:
            yield OnnxRuntimeRunner(spoilt(open_onnx(source).graph, factor), name=plan.name)

        @contextlib.contextmanager
        def built(file: object, graph: onnx.ModelProto, *rest: object) -> Iterator[Runner]:
            yield OnnxRuntimeRunner(spoilt(graph, factor), name="built here")

        monkeypatch.setattr(OpenedPlan, "running", running)
        monkeypatch.setattr(plans, "obstacles", lambda facts, machine: ())
        monkeypatch.setattr(climbing, "_engine", built)
        return plan

    return faulty


def test_the_engine_is_the_last_rung(engine: Callable[[float], Path], deployed: Path) -> None:
    for arguments in (["check", engine(1.0)], climb(deployed)):
        document = call(*arguments, "--json").document
        assert document["passed"]
        assert [step["rung"] for step in document["steps"]] == ["rewritten", "onnx", "precision", "engine"]
        assert document["left_out"] == ""


def test_a_fault_in_the_engine_is_the_runtimes_and_has_an_address(engine: Callable[[float], Path]) -> None:
    done = call("check", engine(3.0))
    words = ("the runtime is wrong", "engine (sepvit_lite_fp16.plan) against precision", "first in stage1.block0.mlp")
    complaint(done, *words, code=1)
    assert "verdict: the runtime is wrong" in done.out
    assert "first block out of tolerance: stage1.block0.mlp" in done.out


def test_a_plan_that_does_not_load_here_is_left_off_a_specs_ladder(
    engine: Callable[[float], Path], deployed: Path
) -> None:
    del engine  # the real one has no GPU
    document = call(*climb(deployed, "--json")).document
    assert document["passed"]
    plan = deployed / "sepvit_lite_fp16.plan"
    if plan.exists():
        assert "no NVIDIA GPU is seen here" in document["left_out"]
        complaint(call("check", plan), "no NVIDIA GPU is seen here")


class Strict:
    """An engine in disguise that takes the batches of its profiles alone."""

    profiles = (Profile(1, 1, 1), Profile(4, 8, 8))

    def __init__(self, runner: OnnxRuntimeRunner) -> None:
        self.name, self.input_shape, self._runner = runner.name, runner.input_shape, runner

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert any(p.minimum <= len(images) <= p.maximum for p in self.profiles), f"a batch of {len(images)}"
        return self._runner.run(images)


def test_engines_that_are_built_to_compare_are_those_of_the_plan(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers kept out of FP16, and profiles with a gap: the builds are real, what runs them is not."""
    source = exported("--variant", "lite")
    fp32, fp16, plan = tmp_path / "fp32.onnx", tmp_path / "fp16.onnx", tmp_path / "x.plan"
    shutil.copy(source, fp32)
    certified(source, fp32)
    for step in (
        ("quantize", fp32, "--precision", "fp16", "--keep", "head", "--output", fp16),
        ("build", fp16, *BUILD, "--profile", "1", "--profile", "4,8,8", "--output", plan),
    ):
        done = call(*step)
        assert done.code == 0, done
    asked: list[bytes] = []
    engines: dict[tuple[object, ...], object] = {}

    def remembered(content: bytes, request: object, **more: object) -> object:
        asked.append(content)
        monkeypatch.setattr(gpu, "devices", lambda: ())  # the builder itself needs none, and here is none
        if (content, request) not in engines:  # what is asked for twice is built once
            engines[content, request] = engine_from_onnx(content, request, **more)  # type: ignore[arg-type]
        monkeypatch.setattr(gpu, "devices", lambda: ("one",))
        return engines[content, request]

    @contextlib.contextmanager
    def runner(content: bytes, **more: object) -> Iterator[Strict]:
        yield Strict(OnnxRuntimeRunner(spoilt(onnx.load_model_from_string(asked[-1]), 3.0), name="built here"))

    @contextlib.contextmanager
    def running(self: OpenedPlan, how: Running, **more: object) -> Iterator[Strict]:
        yield Strict(OnnxRuntimeRunner(spoilt(open_onnx(fp16).graph, 3.0), name=plan.name))

    monkeypatch.setattr(climbing, "engine_from_onnx", remembered)
    monkeypatch.setattr(tensorrt, "TensorRtRunner", runner)
    monkeypatch.setattr(cuda, "open_cuda", lambda package: None)
    monkeypatch.setattr(OpenedPlan, "running", running)
    monkeypatch.setattr(gpu, "devices", lambda: ("one",))
    done = call("check", plan, "--noise-floor", "2")
    complaint(done, "the runtime is wrong", "engine (x.plan) against precision", "first in stage1.block0.mlp", code=1)
    assert len(asked) == 3  # two for the floor, and one with the inner tensors


def test_drift_within_that_of_two_builds_is_no_fault(
    engine: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = engine(3.0)
    monkeypatch.setattr(gpu, "devices", lambda: ("one",))
    factors = iter((1.0, 1.0, 5.0))

    @contextlib.contextmanager
    def built(file: object, graph: onnx.ModelProto, *rest: object) -> Iterator[Runner]:
        more = onnx.ModelProto()
        more.CopyFrom(graph)
        factor = next(factors, 3.0)
        for tensor in more.graph.initializer:
            if tensor.name == SPOILT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), SPOILT))
        yield OnnxRuntimeRunner(more, name="built here")

    monkeypatch.setattr(climbing, "_engine", built)
    document = call("check", plan, "--noise-floor", "3", "--json").document
    assert document["floor"]["builds"] == 3
    assert document["floor"]["pairs"] == 3
    assert document["floor"]["min_db"] < 40
    assert (document["passed"], document["verdict"]) == (True, "agrees")
    assert document["steps"][-1]["before"]["first_out"] is not None
    assert document["steps"][-1]["excused"]
