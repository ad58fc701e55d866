"""Engines by TensorRT-RTX: what is built, what is refused and in which words, and that the child ends in every case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sepvit_deploy import engine
from sepvit_deploy.building import BuildRequest, EngineFacts, Profile
from sepvit_deploy.engine import Built, engine_from_onnx
from sepvit_deploy.errors import (
    AuditFailed,
    BuildFailed,
    GraphError,
    InputError,
    OptionError,
    SepvitError,
)
from sepvit_deploy.gpu import Device
from sepvit_deploy.graph import rename_values
from sepvit_deploy.precision import fp16_from_fp32, int8_from_fp32
from sepvit_deploy.variants import STRIDES, VARIANTS, count_parameters, map_sizes
from tests.cpu.rtx import BATCHES, SKIP, built, request, skip_reason
from tests.unit.graphs import BLOCK, DIGEST, mlp, table

pytestmark = SKIP

FC1, FC2 = f"{BLOCK}.mlp.fc1/MatMul", f"{BLOCK}.mlp.fc2/MatMul"
X = np.random.default_rng(1).standard_normal((2, 5, 6), dtype=np.float32)


def small(precision: str = "fp32", *keep: str) -> onnx.ModelProto:
    """norm2 -> fc1 -> GELU -> fc2 with the input images (B, 5, 6)."""
    model = mlp()
    if precision == "fp16":
        model = fp16_from_fp32(model, keep=keep).model
    if precision == "int8":
        model = int8_from_fp32(model, table(model, X, ["n", "h"]), graph_sha256=DIGEST, keep=keep).model
    rename_values(model, {"x": "images"})
    return model


def as_onnx(graph: str) -> onnx.ModelProto:
    """A graph in ONNX's text form; ``nowhere`` is an operator set that nothing implements."""
    return onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 19, "nowhere": 1]> ' + graph)


def build(model: onnx.ModelProto | bytes, *profiles: Profile, **options: Any) -> Built:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return engine_from_onnx(
        content, options.pop("asked", request(*profiles)), **{"name": "a.onnx", "precision": None, **options}
    )


def refusal(kind: type[SepvitError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        build(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def children(pid: int | None = None) -> list[str]:
    """The processes that the main thread of this or another process has started and that have not ended."""
    pid = pid or os.getpid()
    return [child for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if not ended(child)]


def ended(pid: str) -> bool:
    """Also of a process that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("opset", [17, 19, 21])
def test_a_classifier_builds_for_one_batch_at_other_opsets(opset: int, exported: Callable[..., Path]) -> None:
    network, _ = built(exported("--variant", "lite", "--batch", "2", "--opset", str(opset)))
    assert network.inputs == {"images": [2, 3, 224, 224]}
    assert network.outputs == {"logits": [2, 1000]}
    assert network.matmuls.keys() == {"FLOAT"}


def test_a_backbone_of_an_odd_size_builds_for_any_batch(exported: Callable[..., Path]) -> None:
    height, width = size = (200, 264)
    path = exported("--variant", "lite", "--task", "dense", "--image-size", f"{height}x{width}")
    network, _ = built(path, BATCHES)
    maps = zip(STRIDES, VARIANTS["lite"].channels, map_sizes(size), strict=True)
    assert network.inputs == {"images": [-1, 3, height, width]}
    assert network.outputs == {f"stride{stride}": [-1, channels, *hw] for stride, channels, hw in maps}
    assert network.matmuls.keys() == {"FLOAT"}


def test_what_is_known_of_an_engine(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = exported("--variant", "lite").read_bytes()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shares: list[float] = []
    asked = BuildRequest(
        "rtx",
        (Profile(1, 1, 1), BATCHES),
        compute_capabilities=("8.6", "12.0"),
        level=1,
        workspace_mb=4096,
    )
    done = build(content, asked=asked, precision="fp32", progress=shares.append)
    assert done.plan is not None
    assert done.plan.startswith(b"vtrt")
    assert len(done.plan) > 0.9 * 4 * count_parameters(VARIANTS["lite"])
    facts = done.facts
    assert EngineFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    assert (facts.builder, facts.builder_version.split(".")[0], facts.platform) == ("rtx", "1", "linux x86_64")
    assert (facts.profiles, facts.batch, facts.compute_capabilities) == (asked.profiles, None, ("8.6", "12.0"))
    assert (facts.level, facts.workspace_mb, facts.refittable) == (1, 4096, False)
    assert (facts.device, facts.inspection, facts.timing_cache_hit) == (None, None, None)
    assert (done.inspector_json, done.layer_ms) == (None, {})
    assert (facts.network.matmuls, facts.network.convolutions) == ({"FLOAT": 85}, {"FLOAT": 8})
    assert 0 < facts.build_seconds < 100
    assert shares == sorted(shares)
    assert len(shares) > 20
    assert shares[-1] == 1.0
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_a_dry_run_parses_and_checks_and_builds_nothing(exported: Callable[..., Path]) -> None:
    content = exported("--variant", "lite").read_bytes()
    done = build(content, BATCHES, precision="fp32", dry_run=True)
    assert done.plan is None
    assert done.facts.network.matmuls == {"FLOAT": 85}
    message = refusal(
        OptionError, content, asked=BuildRequest("rtx", (BATCHES,), compute_capabilities=("9.0",)), dry_run=True
    )
    assert message.startswith("--compute-capability 9.0 is none that TensorRT-RTX builds for")
    assert message.endswith("; expected 7.5, 8.0, 8.6, 8.9, 12.0, 12.1")


@pytest.mark.parametrize(
    ("precision", "keep", "matmuls"),
    [
        ("fp32", (), {"FLOAT": 2}),
        ("fp16", (), {"HALF": 2}),
        ("fp16", ("*.fc2",), {"HALF": 1, "FLOAT": 1}),
        ("int8", (), {"INT8": 2}),
        ("int8", ("*.fc2",), {"INT8": 1, "HALF": 1}),
    ],
)
def test_the_precision_of_the_file_is_that_of_the_network(
    precision: Any, keep: tuple[str, ...], matmuls: dict[str, int]
) -> None:
    done = build(small(precision, *keep), BATCHES, precision=precision, keep=keep)
    assert done.facts.network.matmuls == matmuls


def test_half_precision_products_of_any_graph_are_counted_as_such() -> None:
    done = build(as_onnx("g (float16[2,4] x) => (float16[2,2] y) { t = Transpose(x) y = MatMul(x, t) }"))
    assert (done.facts.network.matmuls, done.facts.batch) == ({"HALF": 1}, 2)


class Silent:
    """A child that must not be started."""

    def __iter__(self) -> Any:
        raise AssertionError("the child was started")


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHILD", Silent())


@pytest.mark.usefixtures("no_child")
def test_a_float32_product_in_an_fp16_file_is_refused_before_the_build() -> None:
    model = small("fp16", "*.fc2")
    assert refusal(AuditFailed, model, BATCHES, precision="fp16") == (
        f"a.onnx is an FP16 file with 1 of 2 products in another type: {FC2} in FLOAT; expected HALF, but for what "
        "--keep left out; type: sepvit-deploy lint a.onnx; then quantize or export again"
    )
    assert "2 of 2 products in another type" in refusal(AuditFailed, small(), BATCHES, precision="fp16")
    assert "without one matrix product or convolution in INT8" in refusal(
        AuditFailed, small("fp16"), BATCHES, precision="int8"
    )


@pytest.mark.usefixtures("no_child")
def test_a_file_that_no_builder_could_take_is_refused_before_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    no_onnx = "a.onnx is not an ONNX file, or is cut off; expected an ONNX file as export writes it"
    assert refusal(GraphError, b"not a graph", BATCHES) == no_onnx
    assert refusal(GraphError, b"", BATCHES) == no_onnx
    assert refusal(GraphError, small().SerializeToString()[:-9], BATCHES) == no_onnx
    other = as_onnx("g (float[B] x) => (float[B] y) { y = Neg(x) }")
    assert refusal(GraphError, other, BATCHES, precision="fp32") == (
        "the inputs of a.onnx are: x; expected one named images, as export gives it"
    )
    outside = small()
    outside.graph.initializer[2].data_location = onnx.TensorProto.EXTERNAL
    assert refusal(GraphError, outside, BATCHES) == (
        "a.onnx keeps the weights of w1 in another file; expected weights inside the file"
    )
    monkeypatch.setattr(engine, "MAX_BYTES", 10)
    assert refusal(GraphError, small(), BATCHES) == (
        "a.onnx is larger than 2 GiB; expected a single ONNX file below 2 GiB"
    )


@pytest.mark.usefixtures("no_child")
def test_profiles_must_fit_the_inputs() -> None:
    fixed = as_onnx("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }")
    free = as_onnx("g (float[B,3] x) => (float[B,3] y) { y = Neg(x) }")
    sizes = as_onnx("g (float[B,H] x) => (float[B,H] y) { y = Neg(x) }")
    scalar = as_onnx("g (float x) => (float y) { y = Neg(x) }")
    assert refusal(OptionError, fixed, BATCHES) == (
        "--profile 1,8,32 for a.onnx, whose input x is [2, 3]; expected no profile for a file of a fixed batch; "
        "leave --profile out, or export again without --batch"
    )
    assert refusal(OptionError, free) == (
        "no profile for a.onnx, whose input x takes any batch; expected the batches to be ready for; "
        "type: --profile 1,8,32"
    )
    assert refusal(GraphError, sizes, BATCHES) == (
        "the input x of a.onnx is [-1, -1]; expected no dynamic dimension (-1) but the batch, or height and width "
        "together; export again with one image size, or with --image-size dynamic"
    )
    assert "whose input x is []" in refusal(OptionError, scalar, BATCHES)


def test_what_the_parser_refuses_is_named() -> None:
    unknown = as_onnx('g (float[2] x) => (float[2] y) { ["here"] y = nowhere.Unheard(x) }')
    message = refusal(AuditFailed, unknown)
    assert message.startswith("TensorRT-RTX refuses a.onnx: Unheard here: ")
    assert "lugin not found" in message
    assert message.endswith("; type: sepvit-deploy lint a.onnx")
    zero = as_onnx("""g (float[2,4] x) => (float[2,4] y)
    <float s = {0.1}, int8 zero = {3}> { q = QuantizeLinear(x, s, zero) y = DequantizeLinear(q, s, zero) }""")
    onnx.checker.check_model(zero)
    message = refusal(AuditFailed, zero)
    assert AuditFailed.exit_code == 1
    assert message.startswith("TensorRT-RTX refuses a.onnx: QuantizeLinear ")
    assert "zero" in message


def test_what_the_builder_refuses_is_its_own_reason() -> None:
    message = refusal(BuildFailed, small(), asked=BuildRequest("rtx", (BATCHES,), refittable=True))
    assert message.startswith("TensorRT-RTX does not build a.onnx: ")
    assert "Error Code" in message


def fake_child(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


MESSAGE = "import json; print(json.dumps({}), flush=True); "
NETWORK = {"layers": 2, "matmuls": {"FLOAT": 2}, "convolutions": {}, "inputs": {}, "outputs": {}}
SAID = {"network": NETWORK, "products": [[FC1, "matrix product", "FLOAT"], [FC2, "matrix product", "FLOAT"]]}
READ = "import sys; sys.stdin.buffer.readline(); "


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "import os; os.kill(os.getpid(), 11)",
            "TensorRT-RTX crashed while it built a.onnx: SIGSEGV (Segmentation fault)",
        ),
        (
            READ + "import os; os.kill(os.getpid(), 9)",
            "TensorRT-RTX was killed (SIGKILL) while it built a.onnx, as the system does where memory runs out; "
            "free memory, or give fewer profiles and a smaller batch",
        ),
        (
            READ + "raise MemoryError('no more')",
            "TensorRT-RTX ended with status 1 while it built a.onnx: MemoryError: no more",
        ),
        ("raise SystemExit(7)", "TensorRT-RTX ended with status 7 while it built a.onnx: it said nothing"),
        (READ, "TensorRT-RTX ended without a result for a.onnx"),
        (
            READ + MESSAGE.format(SAID | {"kind": "network"}) + MESSAGE.format({"kind": "built", "bytes": 100}),
            "TensorRT-RTX ended without a result for a.onnx",
        ),
    ],
)
def test_a_child_that_ends_badly_is_one_line(script: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHILD", fake_child(script))
    model = small()
    model.doc_string = "." * 1_000_000  # more than a pipe takes
    assert refusal(BuildFailed, model, BATCHES) == message
    assert children() == []


def test_a_network_that_computes_in_another_type_is_refused_and_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    products = [[FC1, "matrix product", "HALF"], [FC2, "matrix product", "FLOAT"]]
    said = {"kind": "network", "network": NETWORK, "products": products}
    script = READ + MESSAGE.format(said) + "import time; time.sleep(60)"
    started = time.monotonic()
    monkeypatch.setattr(engine, "CHILD", fake_child(script))
    message = refusal(AuditFailed, small("fp16"), BATCHES, precision="fp16")
    assert f"from the file: {FC2} is HALF in the file and FLOAT in the network; expected 2 matrix" in message
    assert children() == []
    assert time.monotonic() < started + 30


def test_a_failure_of_the_caller_ends_the_child() -> None:
    def fail(share: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build(small(), BATCHES, progress=fail)
    assert children() == []


PARENT = """
import sys
from pathlib import Path
from sepvit_deploy.building import BuildRequest, Profile
from sepvit_deploy.engine import engine_from_onnx

content = Path(sys.argv[1]).read_bytes()
told = lambda share: print(share, flush=True)
engine_from_onnx(content, BuildRequest("rtx", (Profile(1, 8, 32),)), name="a.onnx", precision="fp32", progress=told)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_its_parent(number: signal.Signals, exported: Callable[..., Path], tmp_path: Path) -> None:
    path = exported("--variant", "lite")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        while float(parent.stdout.readline()) < 0.83:  # then comes the longest step, without a word
            pass
        (child,) = children(parent.pid)
        started = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)  # as the terminal does: to the child as well
        else:
            parent.send_signal(number)
        parent.wait(10)
        while not ended(child) and time.monotonic() < started + 10:
            time.sleep(0.01)
        assert time.monotonic() < started + 2
        said = parent.stderr.read()
    assert said.count("Traceback") == (number == signal.SIGINT)  # the parent's own
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    assert os.listdir(tmp_path) == []


DEVICE = Device(
    index=0,
    name="NVIDIA RTX A6000",
    compute_capability="8.6",
    multiprocessors=84,
    memory_bytes=48 << 30,
    memory_bus_bits=384,
    l2_cache_bytes=6 << 20,
    shared_memory_per_block_bytes=48 << 10,
    shared_memory_per_multiprocessor_bytes=100 << 10,
    texture_alignment_bytes=512,
    integrated=False,
    ecc=True,
    driver="13.0",
)
AS_TENSORRT = """
from sepvit_deploy import builders
builders._loaded = {"tensorrt": builders.load("rtx")}
"""
"""TensorRT-RTX stands in for TensorRT, whose names it has."""
RUN = "from sepvit_deploy import engine_worker; engine_worker.main()"
WITH_RUNNER = """
import sys, types
from sepvit_deploy.errors import MissingDependency, PlanError
class TensorRtRunner:
    def __init__(self, plan, *, name, builder, version_compatible):
        assert (plan[:4], name, builder) == (b"vtrt", "a.onnx", BUILDER)
        FAIL
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def inspected(self, images, repeats):
        assert (images.shape, images.dtype.name, repeats > 1) == ((8, 5, 6), "float32", True)
        return "{}", {"fc1": 0.5}
runner = types.ModuleType("runner")
runner.TensorRtRunner = TensorRtRunner
sys.modules["sepvit_deploy.runners.tensorrt"] = runner
"""


SETTINGS = """
import json
from polygraphy.backend import trt as loaders
from sepvit_deploy.errors import BuildFailed
trt = builders.load(BUILDER)
create, given = loaders.CreateConfig, {}
def recorded(**settings):
    given.update(settings)
    return create(**settings)
def report(network, config):
    made = config()
    raise BuildFailed(json.dumps({
        "TF32": made.get_flag(trt.BuilderFlag.TF32),
        "REFIT": made.get_flag(trt.BuilderFlag.REFIT),
        "VERSION_COMPATIBLE": made.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE),
        "verbosity": made.profiling_verbosity.name,
        "hardware": getattr(given.get("hardware_compatibility_level"), "name", None),  # RTX forgets it
        "level": made.builder_optimization_level,
        "workspace": made.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "profiles": made.num_optimization_profiles,
        "capabilities": [made.get_compute_capability(i).name for i in range(made.num_compute_capabilities)],
    }))
loaders.CreateConfig, loaders.EngineBytesFromNetwork = recorded, report
"""


def settings(monkeypatch: pytest.MonkeyPatch, asked: BuildRequest) -> dict[str, Any]:
    """What the builder's own configuration says of a request."""
    start = AS_TENSORRT if asked.builder == "tensorrt" else "from sepvit_deploy import builders; builders.load('rtx')"
    monkeypatch.setattr(engine, "CHILD", fake_child(start + SETTINGS.replace("BUILDER", repr(asked.builder)) + RUN))
    found: dict[str, Any] = json.loads(refusal(BuildFailed, small(), asked=asked))
    return found


def test_what_is_asked_for_is_what_the_builder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = settings(monkeypatch, request(BATCHES))
    assert (plain["TF32"], plain["verbosity"]) == (False, "DETAILED")  # float32 means float32
    assert (plain["REFIT"], plain["VERSION_COMPATIBLE"], plain["hardware"]) == (False, False, None)
    assert (plain["profiles"], plain["capabilities"]) == (1, [])
    found = settings(
        monkeypatch,
        BuildRequest(
            "tensorrt",
            (Profile(1, 1, 1), BATCHES),
            level=5,
            workspace_mb=64,
            version_compatible=True,
            hardware_compatible="same-cc",
            refittable=True,
        ),
    )
    assert found == {
        "TF32": False,
        "REFIT": True,
        "VERSION_COMPATIBLE": True,
        "verbosity": "DETAILED",
        "hardware": "SAME_COMPUTE_CAPABILITY",
        "level": 5,
        "workspace": 64 << 20,
        "profiles": 2,
        "capabilities": [],
    }
    asked = BuildRequest("rtx", (BATCHES,), compute_capabilities=("12.0", "7.5"))
    assert settings(monkeypatch, asked)["capabilities"] == ["SM120", "SM75"]


def inspected(monkeypatch: pytest.MonkeyPatch, asked: BuildRequest, device: Device, fail: str = "") -> Built:
    """A build on a machine with this GPU, as far as the parent sees, and a runner that is none."""
    runner = WITH_RUNNER.replace("BUILDER", repr(asked.builder)).replace("FAIL", fail)
    script = runner + (AS_TENSORRT if asked.builder == "tensorrt" else "") + RUN
    monkeypatch.setattr(engine, "CHILD", fake_child(script))
    monkeypatch.setattr(engine.gpu, "devices", lambda: (device,))
    return build(small("fp16"), asked=asked, precision="fp16")


def test_where_there_is_a_gpu_the_engine_is_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    done = inspected(monkeypatch, request(BATCHES), DEVICE)
    assert (done.inspector_json, done.layer_ms) == ("{}", {"fc1": 0.5})
    assert done.facts.device is None  # it is for a generation of GPUs
    asked = BuildRequest("tensorrt", (BATCHES,), hardware_compatible="ampere+", workspace_mb=64, level=2)
    done = inspected(monkeypatch, asked, DEVICE)
    assert (done.facts.builder, done.facts.device, done.facts.hardware_compatible) == ("tensorrt", DEVICE, "ampere+")
    assert done.inspector_json == "{}"


def test_an_engine_for_other_gpus_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = "raise AssertionError"
    assert inspected(monkeypatch, request(BATCHES), replace(DEVICE, compute_capability="9.0"), fail).plan
    asked = BuildRequest("rtx", (BATCHES,), compute_capabilities=("12.0",))
    assert inspected(monkeypatch, asked, DEVICE, fail).inspector_json is None


def test_an_engine_that_does_not_load_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildFailed) as caught:
        inspected(monkeypatch, request(BATCHES), DEVICE, "raise PlanError('the plan is damaged')")
    assert str(caught.value) == "the engine of a.onnx was built and does not load: the plan is damaged"


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed while it built a.onnx: SIGSEGV"),
        ("raise RuntimeError('of pybind11')", "RuntimeError: of pybind11"),
    ],
)
def test_an_inspection_that_crashes_does_not_cost_the_engine(
    fail: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = inspected(monkeypatch, request(BATCHES), DEVICE, fail)
    assert done.plan
    assert done.inspector_json is None
    assert done.uninspected.startswith("TensorRT-RTX ")
    assert words in done.uninspected


def test_a_package_that_the_inspection_lacks_does_not_cost_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = "raise MissingDependency('cuda is not installed', hint='type: pip install it')"
    done = inspected(monkeypatch, request(BATCHES), DEVICE, fail)
    assert done.plan
    assert done.inspector_json is None
    assert done.uninspected == "cuda is not installed; type: pip install it"


def test_a_timing_cache_is_written_and_a_foreign_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "CHILD", fake_child(AS_TENSORRT + RUN))
    path = tmp_path / "timing.cache"
    done = build(small(), asked=BuildRequest("tensorrt", (BATCHES,), timing_cache=path))
    assert path.stat().st_size > 0
    assert done.facts.timing_cache_hit is False
    path.write_bytes(b"of another version")
    message = refusal(InputError, small(), asked=BuildRequest("tensorrt", (BATCHES,), timing_cache=path))
    assert message.startswith(f"TensorRT refuses --timing-cache {path}; expected a timing cache of this TensorRT")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"of another version", [path.name])


def test_what_tensorrt_cannot_build_is_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHILD", fake_child(AS_TENSORRT + RUN))
    message = refusal(BuildFailed, small(), asked=BuildRequest("tensorrt", (BATCHES,), version_compatible=True))
    assert message.startswith("TensorRT does not build a.onnx: ")


def test_only_the_lack_of_wheels_is_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert skip_reason() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "linux x86_64" in str(skip_reason())
