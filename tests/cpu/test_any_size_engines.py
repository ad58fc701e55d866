"""Files whose inputs may have any height and width: build, doctor and bench, as a user calls them.

The model is a convolution and a resize with the names that export gives; what runs a plan is a fake.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from sepvit_deploy import artifact, builders, plans
from sepvit_deploy.artifact import Parent, Passport
from sepvit_deploy.building import BuildRequest, Profile
from sepvit_deploy.engine import engine_from_onnx
from sepvit_deploy.errors import OptionError
from sepvit_deploy.latency import read_results
from sepvit_deploy.pipeline import climbing, timing
from sepvit_deploy.pipeline.models import OpenedPlan, open_plan
from sepvit_deploy.pipeline.opened import Running, open_onnx
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.runners.tensorrt import TensorRtRunner
from sepvit_deploy.spec import ModelSpec
from tests.cpu.commands import PHOTO, call, complaint
from tests.cpu.rtx import SKIP
from tests.unit import fake_tensorrt
from tests.unit.fake_cuda import FakeCuda
from tests.unit.triton_files import plan_file

SPEC = ModelSpec("lite", "segment", (64, 96), 5, head="fpn", any_size=True)
QUICK = ("--seconds", "0", "--samples", "3", "--threads", "1")
TEXT = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[batch,3,height,width] images) => (float[batch,classes,h,w] logits) {
    ["stage0.embed/Conv"] x = Conv<strides = [4, 4], pads = [0, 0, 3, 3]>(images, weight)
    ["head/Conv"] scores = Conv(x, classifier)
    three = Constant<value = int64[1] {3}>()
    four = Constant<value = int64[1] {4}>()
    batch_classes = Shape<start = 0, end = 2>(scores)
    hw = Shape<start = 2>(images)
    more = Add(hw, three)
    quarter = Div(more, four)
    sizes = Concat<axis = 0>(batch_classes, quarter)
    ["head/Resize"] logits = Resize<mode = "linear">(scores, , , sizes)
}
"""
MASK = """
    full = Concat<axis = 0>(batch_classes, hw)
    ["head/Resize_1"] large = Resize<mode = "linear">(logits, , , full)
    best = ArgMax<axis = 1, keepdims = 0>(large)
    ["head/Cast"] mask = Cast<to = 2>(best)
}
"""


def model(output: str = "logits", batch: str = "batch") -> onnx.ModelProto:
    text = TEXT.replace("batch,", f"{batch},")
    if output == "mask":
        given = "(float[batch,classes,h,w] logits)".replace("batch", batch)
        text = text.replace(given, f"(uint8[{batch},height,width] mask)").replace("\n}\n", MASK)
    found = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("weight", (8, 3, 4, 4)), ("classifier", (5, 8, 1, 1))):
        found.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``logits.onnx`` and ``mask.onnx``, and their passports."""
    folder = tmp_path_factory.mktemp("any-size")
    for output in ("logits", "mask"):
        spec = replace(SPEC, output=output)
        facts = {"precision": "fp32", "preprocessing": spec.preprocessing.to_dict(), "opset": 20, "batch": "dynamic"}
        passport = Passport("export", (Parent("weights", "random", seed=0),), spec.to_dict(), facts)
        artifact.write_with_passport(folder / f"{output}.onnx", model(output).SerializeToString(), passport)
    return folder


RTX = ("--builder", "rtx", "--level", "0", "--compute-capability", "8.6")


@SKIP
@pytest.mark.parametrize("output", ["logits", "mask"])
def test_a_plan_knows_the_sizes_that_it_was_built_for(output: str, files: Path, tmp_path: Path) -> None:
    plan = tmp_path / "a.plan"
    sizes = ("--profile", "1,1,4@32x32,64x96,64x128", "--profile", "2@128x128")
    done = call("build", files / f"{output}.onnx", *RTX, *sizes, "--output", plan)
    assert done.code == 0, done
    told = "batch 1 to 4 at 32x32 to 64x128, tuned for 1 at 64x96; batch 2 at 128x128"
    assert told in done.out
    facts = open_plan(plan).plan.facts
    assert facts is not None
    assert [str(each) for each in facts.profiles] == [sizes[1], "2,2,2@128x128,128x128,128x128"]
    assert facts.network.inputs == {"images": [-1, 3, -1, -1]}
    assert told in call("doctor", plan).out
    document = call("doctor", plan, "--json").document
    assert document["facts"]["profiles"][1]["sizes"] == [[128, 128]] * 3


@SKIP
def test_without_a_profile_pictures_fit_in_one_as_they_are_prepared(files: Path, tmp_path: Path) -> None:
    plan = tmp_path / "a.plan"
    done = call("build", files / "logits.onnx", *RTX, "--output", plan)
    assert done.code == 0, done
    facts = plans.read_plan(plan).facts
    assert facts is not None
    assert [str(each) for each in facts.profiles] == ["1,1,4@32x32,64x86,64x96", "1,1,4@32x32,86x64,96x64"]
    assert call("build", files / "mask.onnx", *RTX, "--dry-run").code == 0


@pytest.mark.parametrize(
    ("batch", "fixed", "profiles", "words"),
    [
        ("batch", False, ["1,8,32"], "which input is: takes any size; type: --profile 1,8,32@256x256,512x512,512x2048"),
        ("batch", False, [], "takes any size; expected the batches and sizes to be ready for; type: --profile 1,1,4@"),
        ("batch", True, ["1,8,32@64x64"], "expected no sizes for a file of a fixed size; type: --profile 1,8,32, or"),
        ("2", False, ["1@64x64"], "expected batches of 2; type: --profile 2@64x64,64x64,64x64, or export again"),
        ("2", True, ["1@64x64"], "expected no profile for a file of a fixed batch; leave --profile out"),
    ],
)
def test_a_profile_for_another_kind_of_file_says_what_to_type(
    batch: str, fixed: bool, profiles: list[str], words: str
) -> None:
    made = model(batch=batch)
    if fixed:
        for dim in made.graph.input[0].type.tensor_type.shape.dim[2:]:
            dim.dim_value = 64
    with pytest.raises(OptionError) as caught:
        engine_from_onnx(
            made.SerializeToString(),
            BuildRequest("rtx", tuple(map(Profile.parse, profiles))),
            name="a.onnx",
            precision="fp32",
        )
    assert words.removeprefix("which input is: takes any size; ") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@SKIP
def test_a_fixed_batch_of_any_size_builds() -> None:
    request = BuildRequest("rtx", (Profile.parse("2@32x32,64x64,64x96"),), level=0)
    facts = engine_from_onnx(model(batch="2").SerializeToString(), request, name="a", precision="fp32").facts
    assert (facts.batch, facts.network.inputs) == (None, {"images": [2, 3, -1, -1]})


def test_bench_times_at_the_size_of_the_passport_or_another(files: Path, tmp_path: Path) -> None:
    work = {}
    for size, options in (((64, 96), ()), ((33, 50), ("--image-size", "33x50"))):
        output = tmp_path / "r.json"
        done = call("bench", "--engine", files / "logits.onnx", "--batch", "1,2", *options, *QUICK, "--output", output)
        assert done.code == 0, done
        assert f"latency per batch of {size[0]}x{size[1]} images" in done.out
        (engine,) = read_results(output).engines
        assert engine.image_size == size
        assert engine.work is not None
        work[size] = engine.work
        pixels = -(-size[0] // 4) * -(-size[1] // 4)
        assert engine.work.macs == {"FP32": pixels * 8 * (48 + 5)}
        assert engine.work.image_bytes == 4 * (3 * size[0] * size[1] + 5 * pixels)
    assert len(work) == 2


def test_pictures_are_made_one_size_to_be_timed(files: Path) -> None:
    arguments = ("bench", "--engine", files / "mask.onnx", "--images", PHOTO.parent, "--boundary", "end-to-end")
    document = call(*arguments, "--batch", "3", *QUICK, "--json").document
    assert [point["batch"] for point in document["points"]] == [3]
    assert document["image_sizes"] == {"mask.onnx": [64, 96]}
    assert document["failures"] == []


def test_a_file_of_one_size_is_timed_at_it_alone(files: Path, tmp_path: Path) -> None:
    made = model()
    for dim, side in zip(made.graph.input[0].type.tensor_type.shape.dim[2:], (64, 96), strict=True):
        dim.dim_value = side
    onnx.save(made, tmp_path / "one.onnx")
    line = complaint(call("bench", "--engine", tmp_path / "one.onnx", "--image-size", "32x32"), "--image-size 32x32")
    assert "expected 64x96, its only size; for another one, export it with --image-size dynamic" in line
    sized = ("--image-size", "64x96", "--batch", "1", *QUICK)
    assert call("bench", "--engine", tmp_path / "one.onnx", *sized).code == 0
    onnx.save(model(), tmp_path / "any.onnx")
    line = complaint(call("bench", "--engine", tmp_path / "any.onnx"), "any.onnx takes images of any size")
    assert "--image-size HxW" in line
    several = call("bench", "--engine", tmp_path / "any.onnx", "--engine", files / "logits.onnx", *sized)
    assert several.code == 0
    complaint(call("bench", "--engine", tmp_path / "any.onnx", "--image-size", "0x4"), "image size '0x4'")


def test_engines_timed_at_different_sizes_are_told_apart(files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    spec = replace(SPEC, size=(32, 32))
    facts = {"precision": "fp32", "preprocessing": spec.preprocessing.to_dict(), "opset": 20, "batch": "dynamic"}
    passport = Passport("export", (Parent("weights", "random", seed=0),), spec.to_dict(), facts)
    artifact.write_with_passport(other, model().SerializeToString(), passport)
    done = call("bench", "--engine", other, "--engine", files / "logits.onnx", "--batch", "1", *QUICK)
    assert done.code == 0, done
    assert "latency per batch of" not in done.out
    assert {"32x32", "64x96"} <= set(done.out.split())
    assert "engines got images of different sizes" in done.err


@pytest.fixture
def plan(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real plan, which a fake TensorRT runs on a fake device."""
    path = tmp_path / "a.plan"
    sizes = ("--profile", "1,1,4@2x2,4x6,4x12", "--profile", "2@4x16")
    done = call("build", files / "mask.onnx", *RTX, *sizes, "--output", path)
    assert done.code == 0, done
    batches, shapes = [[1, 1, 4], [2, 2, 2]], [[[2, 2], [4, 6], [4, 12]], [[4, 16]] * 3]

    @contextlib.contextmanager
    def running(opened: OpenedPlan, how: Running, *, name: str | None = None, taps: bool = False) -> Iterator[object]:
        cuda = FakeCuda()
        monkeypatch.setattr(builders, "load", lambda builder: fake_tensorrt.module(cuda))
        content = fake_tensorrt.plan(batches, sizes=shapes)
        with TensorRtRunner(content, name=name or "plan", builder="rtx", cuda=cuda, cuda_graph=how.cuda_graph) as found:
            yield found
        assert not cuda.live

    monkeypatch.setattr(OpenedPlan, "running", running)
    return path


@SKIP
def test_a_plan_is_timed_at_a_size_that_a_profile_covers(plan: Path) -> None:
    found = timing.bench([plan], image_size=(4, 9), cuda_graph="both", seconds=0, least=3, limits=False)
    assert [(p.engine, p.batch) for p in found.points] == [
        (name, batch) for name in ("a.plan", "a.plan, CUDA graph") for batch in (1, 2, 4)
    ]
    assert found.failures == ()
    assert {engine.image_size for engine in found.engines} == {(4, 9)}
    assert [p.batch for p in timing.bench([plan], image_size=(4, 16), seconds=0, least=3, limits=False).points] == [2]
    line = complaint(call("bench", "--engine", plan))  # the size of the passport
    takes = "1 to 4 at 2x2 to 4x12 or 2 at 4x16"
    assert f"--image-size 64x96 with a.plan; expected {takes}; build it with --profile 1@64x96" in line
    line = complaint(call("bench", "--engine", plan, "--image-size", "4x12", "--batch", "8"))
    assert "--batch 8; expected 1 to 4, which a.plan takes at 4x12; build it with --profile 1,8,8@4x12" in line


def test_random_images_of_a_climb_are_of_sizes_that_every_profile_takes() -> None:
    profiles = (Profile.parse("1@32x32,64x64,80x80"), Profile.parse("1,1,4@256x128,256x128,512x512"))
    sizes = [(batch.shape[2], batch.shape[3]) for batch in climbing._random_sizes(profiles)]
    assert all(any(profile.covers_size(size) for profile in profiles) for size in sizes)
    assert all(any(profile.covers_size(size) for size in sizes) for profile in profiles)
    assert len(set(sizes)) == len(sizes)


SPOILT = "stages.1.blocks.0.mlp.fc2.weight"


class Strict:
    """An engine in disguise, with a fault of its own, that takes the batches and sizes of its profiles alone."""

    def __init__(self, graph: onnx.ModelProto, name: str, profiles: tuple[Profile, ...]) -> None:
        spoilt = onnx.ModelProto()
        spoilt.CopyFrom(graph)
        (tensor,) = (each for each in spoilt.graph.initializer if each.name == SPOILT)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(3), SPOILT))
        self._runner = OnnxRuntimeRunner(spoilt, name=name)
        self.name, self.input_shape, self.profiles = name, self._runner.input_shape, profiles
        self.sizes: set[tuple[int, int]] = set()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        batch, _, height, width = images.shape
        assert any(p.minimum <= batch <= p.maximum and p.covers_size((height, width)) for p in self.profiles)
        self.sizes.add((height, width))
        return self._runner.run(images)


def test_a_plan_of_any_size_is_climbed_on_images_that_its_profiles_take(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = exported("--variant", "lite", "--task", "dense", "--image-size", "dynamic:64x96")
    file = open_onnx(source)
    assert file.spec is not None
    for path in (source, Path(f"{source}.json")):
        shutil.copy(path, tmp_path / path.name)
    profiles = (Profile.parse("1@64x64"), Profile.parse("1,1,2@32x48,32x96,32x128"))
    plan = plan_file(tmp_path / "a.plan", tmp_path / source.name, *profiles, model=file.spec.to_dict())
    engine = Strict(file.graph, "a.plan", profiles)

    @contextlib.contextmanager
    def built(file: object, graph: onnx.ModelProto, request: BuildRequest, how: Running) -> Iterator[Strict]:
        assert request.profiles == profiles
        yield Strict(graph, "built here", request.profiles)

    monkeypatch.setattr(OpenedPlan, "running", lambda *_, **__: contextlib.nullcontext(engine))
    monkeypatch.setattr(plans, "obstacles", lambda facts, machine: ())
    monkeypatch.setattr(climbing, "_engine", built)
    done = call("check", plan)
    complaint(done, "the runtime is wrong", "engine (a.plan) against onnx", "first in stage1.block0.mlp", code=1)
    assert {(64, 64), (32, 96), (32, 48)} <= engine.sizes, engine.sizes
