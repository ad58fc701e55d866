"""Engines on a GPU: built, audited, run, compared, evaluated; whichever of the runtimes are installed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from sepvit_deploy import gpu
from sepvit_deploy.building import BuildRequest, Profile
from sepvit_deploy.engine import engine_from_onnx
from sepvit_deploy.errors import MissingDependency
from sepvit_deploy.graph import load_graph
from sepvit_deploy.inspection import Inspection
from sepvit_deploy.latency import read_results
from sepvit_deploy.network import products_of_graph
from sepvit_deploy.plans import read_plan
from sepvit_deploy.runners.cuda import open_cuda
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.runners.tensorrt import TensorRtRunner
from tests.cpu.commands import call
from tests.gpu.conftest import PICTURES, PRECISIONS
from tests.gpu.kinds import BUILDERS, PROVIDERS, absent

EXAMPLES = Path(__file__).parents[2] / "examples"
EVERY = [(kind, precision) for kind in BUILDERS for precision in PRECISIONS]
FP16 = [(kind, "fp16") for kind in BUILDERS]
LEAST_DB = {"fp32": 60.0, "fp16": 35.0, "int8": 10.0}
AGREEMENT = {"fp32": 1.0, "fp16": 0.96, "int8": 0.9}
GROWTH_BYTES = 64 << 20
"""What a driver may keep for itself after the first engine."""

every = pytest.mark.parametrize("plan", EVERY, indirect=True, ids=lambda one: "-".join(one))
fp16 = pytest.mark.parametrize("plan", FP16, indirect=True, ids=lambda one: "-".join(one))


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 224, 224), dtype=np.float32)


def opened(path: Path, **more: object) -> TensorRtRunner:
    plan = read_plan(path)
    return TensorRtRunner(plan.content, name=path.name, builder=plan.builder, **more)  # type: ignore[arg-type]


def sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    noise = ((expected - found).astype(np.float64) ** 2).sum()
    return float(10 * np.log10((expected.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def test_one_runtime_at_least_is_here() -> None:
    kinds = (*BUILDERS, *(f"ort-{provider}" for provider in PROVIDERS), "torch")
    reasons = {kind: absent(kind) for kind in kinds}
    assert None in reasons.values(), f"nothing here uses the GPU, so nothing was tested: {reasons}"


@every
def test_an_engine_is_inspected(plan: Path) -> None:
    engine = read_plan(plan).facts
    assert engine is not None
    assert engine.inspection is not None, "what the engine's layers are is not known; see what its build printed"
    if engine.builder == "tensorrt":
        assert engine.device == gpu.devices()[0]


@every
def test_an_engine_has_its_precision(plan: Path) -> None:
    facts = read_plan(plan).facts
    assert facts is not None
    if facts.inspection is None:
        pytest.skip("the engine was not inspected, which another test says")
    precision = plan.stem.rpartition("_")[2]
    graph = load_graph(plan.parent / f"digits_{precision}.onnx")
    quantized = [product.name for product in products_of_graph(graph) if product.type == "INT8"]
    found = Inspection.from_dict(facts.inspection)
    print({name: total.layers for name, total in found.precisions.items()}, found.attention)
    found.require(precision, quantized=quantized, name=plan.name)  # type: ignore[arg-type]


@every
def test_the_doctor_says_that_a_plan_loads_where_it_was_built(plan: Path) -> None:
    done = call("doctor", plan)
    assert done.code == 0, done


@every
def test_an_engine_computes_what_its_file_does(plan: Path) -> None:
    passport = json.loads(Path(f"{plan}.json").read_text(encoding="utf-8"))
    precision = passport["facts"]["precision"]
    reference = OnnxRuntimeRunner(plan.parent / f"digits_{precision}.onnx")
    with opened(plan) as runner:
        batch = images(8)
        found = sqnr_db(reference.run(batch)["logits"], runner.run(batch)["logits"])
    print(f"{plan.name}: SQNR against ONNX Runtime on the CPU {found:.1f} dB")
    assert found > LEAST_DB[precision]


@every
def test_the_ladder_is_climbed_to_the_engine(plan: Path, pictures: Path) -> None:
    weights = Path(__file__).parents[2] / "models" / "sepvit_lite_digits.safetensors"
    done = call("check", plan, "--weights", weights, "--images", pictures, "--samples", str(PICTURES))
    print(done.out)
    assert done.code == 0, done


@every
def test_an_engine_decides_as_the_fp32_file(plan: Path, pictures: Path) -> None:
    fp32 = plan.parent / "digits_fp32.onnx"
    done = call("evaluate", plan, "--images", pictures, "--against", fp32, "--json")
    assert done.code == 0, done
    precision = json.loads(Path(f"{plan}.json").read_text(encoding="utf-8"))["facts"]["precision"]
    assert done.document["against"]["agreement"]["share"] >= AGREEMENT[precision]


@every
def test_batches_may_change_at_any_time(plan: Path) -> None:
    alone = {}
    for batch in (1, 3, 8, 32):
        with opened(plan) as runner:
            alone[batch] = runner.run(images(batch, batch))["logits"]
    with opened(plan) as runner:
        for batch in (8, 1, 32, 3, 8, 32, 1):
            np.testing.assert_allclose(runner.run(images(batch, batch))["logits"], alone[batch], rtol=1e-3, atol=1e-3)


@fp16
def test_a_cuda_graph_computes_the_same(plan: Path) -> None:
    with opened(plan) as plain, opened(plan, cuda_graph=True) as graph:
        for seed in range(3):
            for batch in (1, 8):
                expected = plain.run(images(batch, seed))["logits"]
                np.testing.assert_allclose(graph.run(images(batch, seed))["logits"], expected, rtol=1e-3, atol=1e-3)


@fp16
def test_two_runners_at_once(plan: Path) -> None:
    with opened(plan) as one, opened(plan) as other:
        expected = {seed: one.run(images(4, seed))["logits"] for seed in range(4)}
        failures: list[str] = []

        def work(runner: TensorRtRunner) -> None:
            for k in range(50):
                found = runner.run(images(4, k % 4))["logits"]
                if not np.allclose(found, expected[k % 4], rtol=1e-3, atol=1e-3):
                    failures.append(f"run {k}")

        threads = [threading.Thread(target=work, args=(runner,)) for runner in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


@fp16
def test_a_thousand_runs_and_reloads_give_the_memory_back(plan: Path) -> None:
    with opened(plan) as runner:  # what the driver loads once
        runner.run(images(8))
    before = open_cuda().memory_free_bytes()
    for _ in range(10):
        with opened(plan, cuda_graph=True) as runner:
            for k in range(100):
                runner.run(images(1 + k % 8))
    after = open_cuda().memory_free_bytes()
    assert before - after < GROWTH_BYTES


@fp16
def test_a_batch_above_the_profile_is_one_line(plan: Path) -> None:
    done = call("bench", "--engine", plan, "--batch", "33")
    assert done.code == 2
    assert "--batch 33; expected 1 to 32, which digits_fp16" in done.err


@fp16
def test_bench_times_a_plan_with_and_without_a_graph_beside_the_limit(plan: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    arguments = ("--engine", plan, "--batch", "1,8,32", "--seconds", "0.3", "--cuda-graph", "both")
    done = call("bench", *arguments, "--output", output)
    assert done.code == 0, done
    found = read_results(output)
    assert {(p.engine, p.batch) for p in found.points} == {
        (name, batch) for name in (plan.name, f"{plan.name}, CUDA graph") for batch in (1, 8, 32)
    }
    for point in found.points:
        assert len(point.enqueue_ms) == len(point.samples_ms) >= 100
        limit = found.limit_ms(point)
        assert limit is not None
        assert 0 < limit < 1.2 * point.p50_ms
        graph = found.engine(point.engine).cuda_graph
        assert graph == point.engine.endswith("CUDA graph")
    rates = {rates.runtime: rates for rates in found.rates}
    assert rates[found.engines[0].runtime].operations_per_s["FP16"] > 1e12
    copies = rates["GPU"].bytes_per_s
    assert copies is not None
    assert copies > 5e10
    assert found.machine.gpu is not None
    assert found.machine.device == found.machine.gpu.name
    if found.machine.driver is not None:  # nvidia-ml-py is there
        assert all(p.conditions.gpu_sm_mhz is not None for p in found.points)
    assert call("compare", output, output).code == 0
    for boundary in ("copies", "end-to-end"):
        arguments = ("--engine", plan, "--batch", "8", "--seconds", "0.3", "--boundary", boundary)
        assert call("bench", *arguments, "--images", EXAMPLES).code == 0


@fp16
def test_pycuda_runs_the_same_engine(plan: Path) -> None:
    if reason := absent("pycuda"):
        pytest.skip(reason)
    with opened(plan) as bindings, opened(plan, cuda=open_cuda("pycuda")) as pycuda:
        expected = bindings.run(images(8))["logits"]
        np.testing.assert_allclose(pycuda.run(images(8))["logits"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_onnx_runtime_runs_on_the_gpu_or_says_why_not(provider: str, precision: str, files: Path) -> None:
    if reason := absent(f"ort-{provider}"):
        pytest.skip(reason)
    path = files / f"digits_{precision}.onnx"
    reference = OnnxRuntimeRunner(path).run(images(4))["logits"]
    try:
        runner = OnnxRuntimeRunner(path, provider=provider)  # type: ignore[arg-type]
    except MissingDependency as error:
        pytest.skip(str(error))
    # TensorRT inside ONNX Runtime has no option against TF32, only a variable that must be set before CUDA is used.
    least = min(45.0, LEAST_DB[precision]) if provider == "tensorrt" else LEAST_DB[precision]
    assert sqnr_db(reference, runner.run(images(4))["logits"]) > least
    once = runner.resident([images(4), images(4)])
    assert min(once(k)[0] for k in range(10)) > 0


def test_torch_runs_on_the_gpu(files: Path) -> None:
    if reason := absent("torch"):
        pytest.skip(reason)
    done = call("bench", "--engine", "torch:lite", "--provider", "cuda", "--seconds", "0.1", "--batch", "1,8", "--json")
    assert done.code == 0, done


@pytest.mark.parametrize("kind", BUILDERS)
def test_ten_builds_give_the_memory_back(kind: str, files: Path) -> None:
    if reason := absent(kind):
        pytest.skip(reason)
    content = (files / "digits_fp16.onnx").read_bytes()
    request = BuildRequest(kind, (Profile(1, 1, 1),), level=0)  # type: ignore[arg-type]

    def build() -> None:
        engine_from_onnx(content, request, name="digits", precision="fp16", inspect=False)

    build()
    before = open_cuda().memory_free_bytes()
    for _ in range(10):
        build()
    assert before - open_cuda().memory_free_bytes() < GROWTH_BYTES
