"""`build` and `doctor PLAN` from the command line: real plans by TensorRT-RTX, and all that goes wrong with them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sepvit_deploy import builders, gpu, limit
from sepvit_deploy import engine as engine_module
from sepvit_deploy.artifact import passport_path
from sepvit_deploy.engine import Built
from sepvit_deploy.latency import read_results
from sepvit_deploy.pipeline import Running, building, timing
from sepvit_deploy.pipeline.models import OpenedPlan
from sepvit_deploy.runners.tensorrt import TensorRtRunner
from tests.cpu.commands import PROGRAM, Done, call, certified, changed, classifier, complaint, environment, left_over
from tests.cpu.rtx import SKIP, built
from tests.cpu.serving import small_model
from tests.cpu.test_engine import AS_TENSORRT, RUN, fake_child
from tests.unit import fake_tensorrt
from tests.unit.fake_cuda import FakeCuda

RTX = ("--builder", "rtx")


@pytest.fixture(scope="module")
def files(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an FP32 file, its FP16 twin, and a plan of that."""
    folder = tmp_path_factory.mktemp("plans")
    source = exported("--variant", "lite")
    shutil.copy(source, folder / "lite.onnx")
    certified(source, folder / "lite.onnx")
    steps = [
        ("quantize", folder / "lite.onnx", "--precision", "fp16", "--output", folder / "lite_fp16.onnx"),
        ("build", folder / "lite_fp16.onnx", *RTX, "--output", folder / "fp16.plan", "--profile", "1,4,8"),
    ]
    for step in steps:
        done = call(*step)
        assert done.code == 0, done
    return folder


@pytest.fixture
def copy(files: Path, tmp_path: Path) -> Path:
    """The same folder, to be spoilt."""
    return Path(shutil.copytree(files, tmp_path / "copy"))


def test_a_plan_knows_what_it_was_made_from(files: Path) -> None:
    passport = json.loads((files / "fp16.plan.json").read_text(encoding="utf-8"))
    assert passport["stage"] == "build"
    assert [parent["role"] for parent in passport["parents"]] == ["onnx", "onnx", "weights"]
    assert passport["parents"][0]["name"] == "lite_fp16.onnx"
    assert passport["parents"][-1]["seed"] == 0
    engine = passport["facts"]["engine"]
    assert engine["builder"] == "rtx"
    assert engine["network"]["matmuls"] == {"HALF": 85}
    assert engine["profiles"] == [{"minimum": 1, "optimum": 4, "maximum": 8}]
    assert passport["bytes"] == (files / "fp16.plan").stat().st_size
    assert str(files) not in json.dumps(passport)


def test_the_doctor_says_why_a_plan_does_not_load_here(files: Path) -> None:
    done = call("doctor", files / "fp16.plan")
    assert done.code == 1, done
    for words in ("FP16, TensorRT-RTX 1.7", "tuned for 4", "random weights (seed 0)", "no NVIDIA GPU is seen here"):
        assert words in done.out
    document = call("doctor", files / "fp16.plan", "--json").document
    assert document["loads"] is False
    assert document["obstacles"][0]["found"] == "no NVIDIA GPU is seen here"


def test_the_doctor_exits_0_where_the_plan_loads(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: (DEVICE,))
    done = call("doctor", files / "fp16.plan")
    assert done.code == 0, done
    assert "it will load here" in done.out


@pytest.mark.parametrize("command", ["check", "predict", "evaluate", "bench"])
def test_a_plan_is_not_run_without_a_gpu(command: str, files: Path) -> None:
    plan = files / "fp16.plan"
    more = {
        "check": (plan, "--against", files / "lite.onnx"),
        "predict": (plan, "any.jpg"),
        "evaluate": (plan, "--images", files, "--labels", files / "lite.onnx.json"),
        "bench": ("--engine", plan),
    }
    complaint(call(command, *more[command]), "fp16.plan: no NVIDIA GPU is seen here", "sepvit-deploy doctor")


def test_a_dry_run_writes_nothing(files: Path, tmp_path: Path) -> None:
    done = call("build", files / "lite_fp16.onnx", "--dry-run", "--output", tmp_path / "x.plan", "--json")
    assert done.code == 0, done
    assert done.document["written"] is False
    assert done.document["engine"]["network"]["matmuls"] == {"HALF": 85}
    assert left_over(tmp_path) == []


def test_a_plan_cut_in_half_or_of_another_name(copy: Path) -> None:
    plan = copy / "fp16.plan"
    plan.write_bytes(plan.read_bytes()[: plan.stat().st_size // 2])
    for command in (("doctor", plan), ("predict", plan, "any.jpg"), ("check", plan)):
        complaint(call(*command), "fp16.plan.json is the passport of another fp16.plan", "build it again")
    shutil.copy(copy / "lite.onnx", plan)
    complaint(call("doctor", plan), "the passport of another fp16.plan")


def test_a_passport_edited_by_hand(copy: Path) -> None:
    location = copy / "fp16.plan.json"
    location.write_text(location.read_text(encoding="utf-8").replace('"1.7.1.116"', '"1.8.0.1"'), encoding="utf-8")
    complaint(call("doctor", copy / "fp16.plan"), "was edited after the build: its seal is broken; build it again")
    location.unlink()
    complaint(call("predict", copy / "fp16.plan", "x.jpg"), "has no passport", "a plan is code", "--trust")
    complaint(call("predict", copy / "fp16.plan", "x.jpg", "--trust"), "no NVIDIA GPU is seen here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--profile", "8,1,4"), ("--profile '8,1,4'", "MIN <= OPT <= MAX")),
        (("--profile", "0"), ("--profile '0", "1 <= MIN")),
        (("--profile", "1,2"), ("--profile '1,2'",)),
        (("--profile", "1", "--profile", "1"), ("--profile 1,1,1 is given twice",)),
        (("--level", "9"), ("--level 9", "0 to 5")),
        (("--workspace-mb", "0"), ("--workspace-mb 0",)),
        ((*RTX, "--compute-capability", "9.0"), ("--compute-capability 9.0", "8.6")),
        ((*RTX, "--compute-capability", "ampere"), ("--compute-capability 'ampere'", "8.6")),
        ((*RTX, "--timing-cache", "x"), ("--timing-cache with TensorRT-RTX",)),
        ((*RTX, "--version-compatible"), ("--version-compatible with TensorRT-RTX",)),
        ((*RTX, "--hardware-compatible", "ampere+"), ("--hardware-compatible with TensorRT-RTX",)),
        (
            ("--builder", "tensorrt"),
            ("and no NVIDIA GPU is seen here", "--builder rtx"),
        ),
        (("--require", "int8"), ("--require int8 of", "which is fp32")),
        (("--require", "fp16", "FP16"), ("--require fp16 without a GPU", "only there its layers are seen")),
        (("--require", "fp16", "FP16", "--dry-run"), ("--require fp16 with --dry-run",)),
        (("--output", "absent/x.plan"), ("the folder absent does not exist",)),
        (("--output", "."), ("the output is '.'; expected a file to write",)),
        (("--output", ""), ("the output is '.'",)),
        (("--output", "x.onnx"), ("--output x.onnx; expected a name that ends in .plan or .engine",)),
        (("--output", "-"), ("--output -; expected a name that ends in .plan",)),
        (("--inspector", "told.json"), ("--inspector without a GPU",)),
        (("--inspector", "lite.plan.json"), ("lite.plan.json would overwrite",)),
    ],
)
def test_a_mistake_in_the_use_of_build(options: tuple[str, ...], words: tuple[str, ...], files: Path) -> None:
    source = files / ("lite_fp16.onnx" if "FP16" in options else "lite.onnx")
    given = [option for option in options if option != "FP16"]
    complaint(call("build", source, *(() if "--builder" in options else RTX), *given), *words)


def test_files_that_no_engine_is_built_from(files: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "x.plan")
    complaint(call("build", classifier(tmp_path / "foreign.onnx"), *RTX, *output), "foreign.onnx has no passport")
    (tmp_path / "text.onnx").write_text("no graph")
    complaint(call("build", tmp_path / "text.onnx", *RTX, *output), "text.onnx is not an ONNX file")
    complaint(call("build", tmp_path / "none.onnx", *RTX, *output), "none.onnx does not exist")
    complaint(call("build", files / "fp16.plan", *RTX, *output), "fp16.plan is a plan; expected an ONNX file")
    complaint(call("build", "my.toml", *RTX, *output), "my.toml is a spec", "type: sepvit-deploy deploy my.toml")
    complaint(call("build", files / "lite.onnx", *RTX, "--output", files / "lite.onnx"), "would overwrite")
    for_cpu = certified(files / "lite.onnx", Path(shutil.copy(files / "lite.onnx", tmp_path / "cpu.onnx")))
    passport = json.loads(passport_path(for_cpu).read_text(encoding="utf-8"))
    certified(for_cpu, for_cpu, facts=passport["facts"] | {"target": "cpu"})
    complaint(call("build", for_cpu, *RTX, *output), "cpu.onnx was quantised for a CPU", "sepvit-deploy quantize")
    assert not (tmp_path / "x.plan").exists()


def test_a_file_that_is_not_what_its_passport_says(files: Path, tmp_path: Path) -> None:
    path = certified(files / "lite_fp16.onnx", Path(shutil.copy(files / "lite.onnx", tmp_path / "claims_fp16.onnx")))
    done = call("build", path, *RTX, "--output", tmp_path / "x.plan")
    complaint(done, "claims_fp16.onnx is an FP16 file with 93 of 93 products in another type", code=1)


LONG = "x" * 300


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("build", ".", *RTX), ". is a folder"),
        (("build", "", *RTX), ". is a folder"),
        (("predict", f"torch:lite:{LONG}", "x.jpg"), "is no file; expected torch:VARIANT[:WEIGHTS]"),
        (("predict", "torch:lite:", "x.jpg"), "torch:lite: names no file; expected torch:VARIANT[:WEIGHTS]"),
        (("check", "torch:lite:x.toml", "--against", "x.onnx"), "x.toml is no file; expected torch:VARIANT"),
        (("check", "models/sepvit_t_fp16.toml", "--out", LONG), "is not there; type: sepvit-deploy deploy"),
        (("deploy", "models/sepvit_t_fp16.toml", "--weights", LONG), "is no file; expected a checkpoint"),
        (("doctor", "x" * 250 + ".plan"), "does not exist"),
    ],
)
def test_names_of_nothing(command: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    complaint(call(*command), words)


def test_a_name_moves_no_cursor(files: Path, tmp_path: Path) -> None:
    source = tmp_path / "\x1b[31mred.onnx"
    shutil.copy(files / "lite.onnx", source)
    certified(files / "lite.onnx", source)
    done = call("build", source, *RTX, "--dry-run", "--output", tmp_path / "\x1b[31mred.plan")
    assert done.code == 0, done
    assert "\x1b" not in done.out + done.err
    assert "\\x1b[31mred.plan would be built" in done.out


def test_passports_of_files_that_say_nonsense(files: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(files / "lite_fp16.onnx", tmp_path / "x.onnx"))
    facts = json.loads(passport_path(files / "lite_fp16.onnx").read_text(encoding="utf-8"))["facts"]
    for keep in (5, None, [5]):
        certified(files / "lite_fp16.onnx", path, facts=facts | {"keep": keep})
        complaint(call("build", path, *RTX), "x.onnx.json has keep")
    certified(files / "lite_fp16.onnx", path, facts=facts | {"opset": float("nan")})
    complaint(call("build", path, *RTX), "x.onnx.json is no passport (it holds NaN, which is no number)")
    for rest in (5, "bf16", ["fp16"]):
        certified(files / "lite_fp16.onnx", path, facts=facts | {"rest": rest})
        complaint(call("build", path, *RTX), "x.onnx.json has rest", "expected fp16 or fp32")
    for stage in (7, None, [1]):
        certified(files / "lite_fp16.onnx", path, stage=stage)
        complaint(call("build", path, *RTX), "x.onnx.json is no passport (stage is ")
    for parent in ({"role": "onnx", "name": 5}, {"role": "onnx", "name": "a", "sha256": 7}, 5):
        certified(files / "lite_fp16.onnx", path, parents=[parent])
        complaint(call("build", path, *RTX), "x.onnx.json is no passport")
    inputs = changed(files / "lite_fp16.onnx", tmp_path / "y.onnx", lambda model: model.graph.ClearField("input"))
    complaint(call("build", inputs, *RTX), "y.onnx")
    assert left_over(tmp_path) == ["x.onnx", "x.onnx.json", "y.onnx", "y.onnx.json"]


def test_a_build_goes_on_where_nobody_listens(tmp_path: Path) -> None:
    source = small_model(tmp_path / "x.onnx")
    command = [*PROGRAM, "build", str(source), *RTX, "--level", "0", "--output", "x.plan"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=tmp_path, stderr=full, stdout=subprocess.DEVNULL, env=environment(), check=False
        )
    assert done.returncode == 0
    assert left_over(tmp_path) == ["x.onnx", "x.onnx.json", "x.plan", "x.plan.json"]


def test_one_product_in_fp32_is_found_by_name(files: Path, tmp_path: Path) -> None:
    def plant(model: object) -> None:
        from onnx import helper

        graph = model.graph  # type: ignore[attr-defined]
        index, node = next((i, n) for i, n in enumerate(graph.node) if n.name == "stage2.block0.mlp.fc1/MatMul")
        graph.node.remove(node)
        for at, name in enumerate(node.input):
            graph.node.insert(index + at, helper.make_node("Cast", [name], [f"{name}.wide"], to=1))
        graph.node.insert(
            index + 2, helper.make_node("MatMul", [f"{n}.wide" for n in node.input], ["wide"], name=node.name)
        )
        graph.node.insert(index + 3, helper.make_node("Cast", ["wide"], [node.output[0]], to=10))

    path = changed(files / "lite_fp16.onnx", tmp_path / "planted.onnx", plant)
    done = call("build", path, *RTX, "--output", tmp_path / "x.plan")
    complaint(done, "1 of 93 products in another type: stage2.block0.mlp.fc1/MatMul in FLOAT", code=1)
    assert left_over(tmp_path) == ["planted.onnx", "planted.onnx.json"]


def test_a_full_disk_leaves_the_old_plan(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (copy / "fp16.plan").read_bytes(), (copy / "fp16.plan.json").read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    names = left_over(copy)
    monkeypatch.setattr(Path, "write_bytes", full)
    done = call("build", copy / "lite_fp16.onnx", *RTX, "--output", copy / "fp16.plan")
    complaint(done, "no space left to write", "fp16.plan")
    assert ((copy / "fp16.plan").read_bytes(), (copy / "fp16.plan.json").read_bytes()) == before
    assert left_over(copy) == names


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_ended_can_be_typed_again(number: signal.Signals, copy: Path) -> None:
    command = [*PROGRAM, "build", str(copy / "lite_fp16.onnx"), *RTX, "--output", str(copy / "new.plan")]
    before = left_over(copy)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(TMPDIR=str(copy.parent))
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "building, " in line:
                break
        workers = _workers(child.pid)
        assert workers, "the build runs in a process of its own"
        child.send_signal(number)
        said = child.stderr.read()
        assert child.wait(30) == (-9 if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "error: interrupted; nothing was left half-written"
    deadline = time.monotonic() + 15
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")], "the builder outlived its command"
    kept = [name for name in left_over(copy) if not (number == signal.SIGKILL and name.endswith(".tmp"))]
    assert kept == before
    done = call("build", copy / "lite_fp16.onnx", *RTX, "--output", copy / "new.plan")
    assert done.code == 0, done
    assert call("doctor", copy / "new.plan").code == 1


def test_a_terminal_shows_a_bar(files: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*PROGRAM, "build", str(files / "lite_fp16.onnx"), *RTX, "--level", "0", "--output", "x.plan"]
    said = b""
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=theirs, stdout=subprocess.DEVNULL, env=environment(TERM="xterm")
    ) as child:
        os.close(theirs)
        with contextlib.suppress(OSError):  # EIO: the child ended
            while part := os.read(ours, 1 << 16):
                said += part
    os.close(ours)
    assert child.returncode == 0
    shown = said.decode(errors="replace")
    assert "building" in shown
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in shown
    assert re.search(r"[1-9][0-9]%", shown)


def _workers(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


DEVICE = gpu.Device(0, "RTX 4090", "8.9", 128, 1, 1, 1, 1, 1, 1, False, False, "13.0")
LAYER = {
    "Name": "__myl_Fc_1", "LayerType": "gemm", "Metadata": "[ONNX Layer: stage0.block0.mlp.fc1/MatMul]",
    "Inputs": [{"Name": "x", "Datatype": "Half"}], "Outputs": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def engines() -> dict[bytes, Built]:
    """Engines by the content of their file, for builds that differ in nothing else."""
    return {}


@pytest.mark.parametrize(
    ("layers", "require", "code", "words"),
    [
        ([LAYER], "fp16", 0, "passport: "),
        ([LAYER | {"Inputs": [{"Name": "x", "Datatype": "Float"}]}], "fp16", 1, "computes no product in FP16"),
        ([LAYER | {"Inputs": [{"Name": "x", "Datatype": "Float"}]}], None, 0, "FP32"),
        (None, "fp16", 1, "is not seen to compute in FP16, for it was not inspected: planted"),
        (None, None, 1, "x.plan was not inspected: planted"),  # --inspector has nothing to write
        ("another form", "fp16", 1, "is not seen to compute in FP16: the engine inspector gives"),
        ("another form", None, 0, "not inspected: the engine inspector gives"),
    ],
)
def test_the_gate_over_what_the_engine_computes(
    layers: object, require: str | None, code: int, words: str, files: Path, engines: dict[bytes, Built],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The build is real, and the same for each; what the GPU would say of it is planted."""
    real = building.engine_from_onnx

    def on_a_gpu(content: bytes, *given: object, **more: object) -> Built:
        monkeypatch.setattr(gpu, "devices", lambda: ())  # the build itself needs none, and here is none
        if content not in engines:
            engines[content] = real(content, *given, **more)  # type: ignore[arg-type]
        built = engines[content]
        document = None if layers is None else json.dumps({"I/O Tensors": [], "Layers": layers})
        return replace(built, inspector_json=document, layer_ms={}, uninspected="planted")

    monkeypatch.setattr(building, "engine_from_onnx", on_a_gpu)
    monkeypatch.setattr(gpu, "devices", lambda: (DEVICE,))
    plan = tmp_path / "x.plan"
    more = ("--require", require) if require else ()
    told = tmp_path / "told.json"
    options = ("--profile", "1", "--level", "0", "--output", plan, "--inspector", told, *more)
    done = call("build", files / "lite_fp16.onnx", *RTX, *options)
    assert done.code == code, done
    assert words in done.out + done.err
    if layers is not None:  # what was told is kept, whatever becomes of the engine
        assert json.loads(json.loads(told.read_text(encoding="utf-8"))["layers"])["Layers"] == layers
        told.unlink()
    assert left_over(tmp_path) == ([] if code else ["x.plan", "x.plan.json"])


def test_builds_by_tensorrt_share_a_timing_cache_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX stands in for TensorRT, and a GPU is seen that is none."""
    from sepvit_deploy import builders

    monkeypatch.setattr(engine_module, "CHILD", fake_child(AS_TENSORRT + RUN))
    monkeypatch.setattr(builders, "choose", lambda name, gpu: ("tensorrt", "10.13.3.9"))
    monkeypatch.setattr(gpu, "devices", lambda: (DEVICE,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = small_model(tmp_path / "x.onnx")
    command = ("build", source, "--level", "0", "--profile", "1", "--output", tmp_path / "x.plan")
    done = call(*command, "--json")
    assert done.code == 0, done
    assert done.document["engine"]["device"]["name"] == DEVICE.name
    assert done.document["engine"]["timing_cache_hit"] is False
    assert done.err.splitlines()[-1] == "writing ..."
    (cache,) = (tmp_path / "cache" / "sepvit-deploy").iterdir()
    assert cache.name == "tensorrt-10.13.3.9-RTX-4090-8.9.timing"
    cache.write_bytes(b"of another version")
    assert call(*command).code == 0  # nobody named that file: it is begun afresh
    assert cache.read_bytes() != b"of another version"
    cache.write_bytes(b"of another version")
    complaint(call(*command, "--timing-cache", cache), "TensorRT refuses --timing-cache", "this one is left as it is")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x.plan"))
    done = call(*command)
    assert done.code == 0, done
    assert "warning: no timing cache, for " in done.err


def test_a_builder_that_crashes_is_one_line(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(engine_module, "CHILD", crash)
    done: Done = call("build", files / "lite.onnx", *RTX, "--output", tmp_path / "x.plan")
    complaint(done, "TensorRT-RTX", "SIGSEGV", code=1)
    assert left_over(tmp_path) == []


def test_a_missing_builder_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sepvit_deploy import builders

    monkeypatch.setattr(builders, "_installed", lambda names: None)
    complaint(call("build", files / "lite.onnx"), "no builder of engines is installed", "sepvit-deploy[rtx]")
    complaint(call("build", files / "lite.onnx", *RTX), "TensorRT-RTX is not installed", "sepvit-deploy[rtx]")


# bench of plans, over a device that is not there


@pytest.fixture
def on_fake_gpu(monkeypatch: pytest.MonkeyPatch) -> list[FakeCuda]:
    """Plans run in a fake TensorRT on fake devices, which are listed; what measures a type is a fake engine, too."""
    devices: list[FakeCuda] = []

    @contextlib.contextmanager
    def running(opened: OpenedPlan, how: Running, *, name: str | None = None, taps: bool = False) -> Iterator[object]:
        profiles = [[1, 4, 8]]
        with fake_runner(fake_tensorrt.plan(profiles), name=name or "plan", cuda_graph=how.cuda_graph) as runner:
            yield runner

    def fake_runner(content: bytes, *, name: str, **more: object) -> TensorRtRunner:
        cuda = more.get("cuda") or fake_cuda()
        assert isinstance(cuda, FakeCuda)
        monkeypatch.setattr(builders, "load", lambda builder: fake_tensorrt.module(cuda))
        graph = bool(more.get("cuda_graph"))
        return TensorRtRunner(content, name=name, builder="rtx", cuda=cuda, cuda_graph=graph)

    def product(content: bytes, request: object, *, name: str, **more: object) -> Built:
        assert "product" in name
        facts = SimpleNamespace(network=None)
        return Built(fake_tensorrt.plan([[1, 1, 1]]), facts, ())  # type: ignore[arg-type]

    def fake_cuda(package: str = "bindings") -> FakeCuda:
        devices.append(FakeCuda())
        return devices[-1]

    monkeypatch.setattr(OpenedPlan, "running", running)
    monkeypatch.setattr(timing, "engine_from_onnx", product)
    monkeypatch.setattr("sepvit_deploy.runners.tensorrt.TensorRtRunner", fake_runner)
    monkeypatch.setattr("sepvit_deploy.runners.cuda.open_cuda", fake_cuda)
    monkeypatch.setattr(timing.limit, "COPIED_ON_GPU", 1 << 12)
    monkeypatch.setattr(gpu, "devices", lambda: (DEVICE,))
    return devices


def test_a_plan_is_timed_with_and_without_a_cuda_graph(copy: Path, tmp_path: Path, on_fake_gpu: list[FakeCuda]) -> None:
    output = tmp_path / "r.json"
    quick = ("--seconds", "0", "--samples", "6", "--output", output)
    done = call("bench", "--engine", copy / "fp16.plan", "--cuda-graph", "both", *quick)
    assert done.code == 0, done
    found = read_results(output)
    names = ["fp16.plan", "fp16.plan, CUDA graph"]
    assert [(p.engine, p.batch) for p in found.points] == [(name, b) for name in names for b in (1, 2, 4, 8)]
    assert all(set(p.samples_ms) == {1.25} and len(p.enqueue_ms) == 6 for p in found.points)
    assert found.machine.device == DEVICE.name
    assert [engine.cuda_graph for engine in found.engines] == [False, True]
    engine = found.engines[0]
    assert (engine.runtime, engine.precision, engine.products["FP16"]) == ("TensorRT-RTX", "fp16", 93)
    assert engine.work is not None
    assert engine.work.macs.keys() == {"FP16"}
    rates = {found.runtime: found for found in found.rates}
    product = limit.operations(limit.ON_GPU, limit.CHAIN_ON_GPU) / 1.25e-3
    assert rates["TensorRT-RTX"].operations_per_s == {"FP16": product}
    assert rates["GPU"].bytes_per_s == 2 * (1 << 12) / 1.25e-3
    moved = engine.work.weight_bytes + engine.work.image_bytes
    assert found.limit_ms(found.points[0]) == pytest.approx(1000 * moved / (2 * (1 << 12) / 1.25e-3))
    assert found.pace is None, "a GPU has none"
    assert all(p.pace_ms == () for p in found.points)
    assert any("NVML" in note or "nvidia" in note.lower() or "pynvml" in note for note in found.notes)
    assert all(not cuda.live and cuda.closed for cuda in on_fake_gpu), "everything is given back"


def test_a_batch_above_the_profile(copy: Path, on_fake_gpu: list[FakeCuda]) -> None:
    plan = copy / "fp16.plan"
    line = complaint(call("bench", "--engine", plan, "--batch", "1,16"), "--batch 16", "1 to 8, which fp16.plan takes")
    assert "build it with --profile 1,16,16" in line


def test_the_work_of_a_plan_without_its_onnx_file_is_not_known(copy: Path, on_fake_gpu: list[FakeCuda]) -> None:
    (copy / "lite_fp16.onnx").unlink()
    done = call("bench", "--engine", copy / "fp16.plan", "--batch", "1", "--seconds", "0", "--samples", "3", "--json")
    assert done.code == 0, done
    assert done.document["points"][0]["limit_ms"] is None
    assert any("the work of fp16.plan is not known" in note for note in done.document["notes"])


@SKIP
@pytest.mark.parametrize("kind", ["FP32", "FP16", "INT8"])
def test_what_measures_a_type_is_built_in_that_type(kind: limit.ProductType) -> None:
    network, _ = built(limit.product_graph(kind, size=64, chain=limit.CHAIN_ON_GPU))
    expected = {"FP32": "FLOAT", "FP16": "HALF", "INT8": "INT8"}[kind]
    assert network.matmuls == {expected: limit.CHAIN_ON_GPU}
