"""`bench` and `compare` as a user calls them: real engines on a CPU, and everything that can go wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from sepvit_deploy.errors import DeviceError
from sepvit_deploy.latency import read_results
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.runners.torch import TorchRunner
from tests.cpu.commands import CLASSIFIER, PHOTO, PROGRAM, call, classifier, complaint, environment

QUICK = ("--seconds", "0", "--samples", "6", "--threads", "1")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("engines")
    return classifier(folder / "a.onnx"), classifier(folder / "b.onnx")


@pytest.fixture(scope="module")
def measured(engines: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("measured") / "r.json"
    a, b = engines
    more = ("--output", output, *QUICK, "--samples", "12")
    done = call("bench", "--engine", a, "--engine", b, "--batch", "2,1", *more)
    assert done.code == 0, done.err
    return output


def test_results_keep_every_sample_with_its_conditions(measured: Path) -> None:
    found = read_results(measured)
    schema = json.loads((Path(__file__).parents[2] / "sepvit_deploy" / "results.schema.json").read_text("utf-8"))
    jsonschema.validate(json.loads(measured.read_text(encoding="utf-8")), schema)
    assert [(p.engine, p.batch) for p in found.points] == [(n, b) for n in ("a.onnx", "b.onnx") for b in (1, 2)]
    for point in found.points:
        assert len(point.samples_ms) == 12
        assert len(point.pace_ms) == len(point.stretches) == 12
        assert point.conditions.looks >= 1
        assert point.conditions.load is not None
    assert found.command.startswith("sepvit-deploy")
    assert found.boundary == "compute"
    assert found.machine.versions.keys() >= {"python", "onnxruntime", "numpy"}
    rates = {found.runtime: found for found in found.rates}
    assert rates.keys() == {"ONNX Runtime, CPU", "CPU"}
    assert 1e9 < rates["ONNX Runtime, CPU"].operations_per_s["FP32"] < 1e13
    copies = rates["CPU"].bytes_per_s
    assert copies is not None
    assert 1e8 < copies < 1e12
    assert found.pace == "ONNX Runtime, CPU|FP32"
    engine = found.engine("a.onnx")
    assert engine.work is not None
    assert engine.work.macs == {"FP32": 3 * 5}
    assert engine.threads == 1


def test_figures_are_printed_and_are_those_of_json(engines: tuple[Path, Path], measured: Path) -> None:
    done = call("bench", "--engine", engines[0], "--engine", engines[1], "--batch", "1, 2", *QUICK)
    assert done.code == 0, done.err
    for text in ("latency per batch", "a.onnx", "p95 ms", "limit", "times as long as a.onnx", "boundary: compute"):
        assert text in done.out
    document = call("bench", "--engine", engines[0], "--batch", "1,2", *QUICK, "--json").document
    for point in document["points"]:
        assert point["min_ms"] <= point["p50_ms"] <= point["p90_ms"] <= point["p95_ms"] <= point["p99_ms"]
        assert point["images_per_s"] == pytest.approx(1000 * point["batch"] / point["p50_ms"])
        assert point["samples"] == 6
        assert isinstance(point["settled"], bool)
        assert point["limit_ms"] > 0
    assert document["scaling"][0]["engine"] == "a.onnx"


def test_torch_eager_beside_onnx(engines: tuple[Path, Path]) -> None:
    done = call("bench", "--engine", "torch:lite", "--engine", engines[0], "--batch", "1", *QUICK, "--json")
    assert done.code == 0, done.err
    assert {point["engine"] for point in done.document["points"]} == {"torch:lite", "a.onnx"}
    assert {rates["runtime"] for rates in done.document["rates"]} == {"torch, CPU", "ONNX Runtime, CPU", "CPU"}


class Linear(torch.nn.Module):
    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.linear, self.breaks = torch.nn.Linear(12, 3), breaks

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.breaks:
            torch._dynamo.graph_break()
        return self.linear(images.flatten(1))


def test_a_compiled_model_computes_the_same_and_never_runs_eagerly_instead() -> None:
    model = Linear(breaks=False).eval()
    eager, compiled = (TorchRunner(model, ("logits",), (2, 2), compiled=flag) for flag in (False, True))
    batches = [np.random.default_rng(k).standard_normal((2, 3, 2, 2), dtype=np.float32) for k in range(2)]
    np.testing.assert_allclose(
        compiled.run(batches[0])["logits"], eager.run(batches[0])["logits"], rtol=1e-5, atol=1e-6
    )
    assert compiled.resident(batches)(1)[0] > 0
    broken = TorchRunner(Linear(breaks=True), ("logits",), (2, 2), name="broken", compiled=True)
    with pytest.raises(DeviceError, match=r"broken fails on 2 x 3 x 2 x 2 \(Unsupported"):
        broken.run(batches[0])


def test_real_pictures_and_their_decoding(exported_lite: Path, tmp_path: Path) -> None:
    shutil.copy(PHOTO, tmp_path)
    medians = {}
    for boundary in ("copies", "end-to-end"):
        output = tmp_path / f"{boundary}.json"
        done = call(
            "bench", "--engine", exported_lite, "--batch", "1", "--boundary", boundary, "--images", tmp_path,
            "--output", output, *QUICK,
        )  # fmt: skip
        assert done.code == 0, done.err
        medians[boundary] = read_results(output).points[0].p50_ms
        assert f"boundary: {boundary}" in done.out
    complaint(call("bench", "--engine", exported_lite, "--boundary", "end-to-end"), "--images DIR")
    complaint(call("compare", tmp_path / "copies.json", tmp_path / "end-to-end.json"), "different boundaries")


@pytest.fixture
def exported_lite(exported: Callable[..., Path]) -> Path:
    return exported("--variant", "lite")


def test_the_limit_of_a_real_model_is_a_share(exported_lite: Path) -> None:
    (point,) = call("bench", "--engine", exported_lite, "--batch", "1", *QUICK, "--json").document["points"]
    assert 0.05 < point["limit_ms"] / point["p50_ms"] < 1.5


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "0"], ["--batch 0", "from 1 to"]),
        (["--batch", "1,,2"], ["--batch 1,,2"]),
        (["--batch", "99999"], ["--batch 99999"]),
        (["--samples", "0"], ["--samples 0", "1 to 1000000"]),
        (["--seconds", "-1"], ["--seconds -1", "0 to 3600"]),
        (["--cuda-graph", "both"], ["--cuda-graph both without a plan", "FILE.plan"]),
        (["--boundary", "network"], ["--boundary"]),
        (["--images", "nowhere"], ["nowhere"]),
        (["--accuracy", "nowhere.json"], ["--accuracy nowhere.json"]),
        (["--output", "nowhere/r.json"], ["mkdir -p nowhere"]),
        (["--html", "nowhere/r.html"], ["mkdir -p nowhere"]),
    ],
)
def test_a_bad_option_is_one_line(engines: tuple[Path, Path], arguments: list[str], words: list[str]) -> None:
    complaint(call("bench", "--engine", engines[0], *arguments), *words)


def test_results_never_take_the_place_of_an_engine(engines: tuple[Path, Path]) -> None:
    before = engines[0].read_bytes()
    complaint(call("bench", "--engine", engines[0], "--output", engines[0]), "would overwrite")
    assert engines[0].read_bytes() == before


def test_a_batch_that_an_engine_does_not_take(tmp_path: Path) -> None:
    fixed = classifier(tmp_path / "fixed.onnx", CLASSIFIER.replace("batch", "2"))
    assert call("bench", "--engine", fixed, "--batch", "2", *QUICK).code == 0
    complaint(call("bench", "--engine", fixed, "--batch", "1,2"), "--batch 1", "2, which fixed.onnx takes")
    document = call("bench", "--engine", fixed, *QUICK, "--json").document
    assert [point["batch"] for point in document["points"]] == [2], "without --batch, what it takes"


def test_one_engine_twice(engines: tuple[Path, Path]) -> None:
    complaint(call("bench", "--engine", engines[0], "--engine", engines[0]), "is given twice")


def test_an_engine_that_fails_in_the_middle_costs_its_own_points(
    engines: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = OnnxRuntimeRunner.resident

    def failing(runner: OnnxRuntimeRunner, inputs: Any) -> Any:
        once, runs = resident(runner, inputs), iter(range(1000))

        def fragile(k: int) -> Any:
            if runner.name == "b.onnx" and len(inputs[0]) == 2 and next(runs) > 20:
                raise DeviceError("b.onnx fails on purpose")
            return once(k)

        return fragile

    monkeypatch.setattr(OnnxRuntimeRunner, "resident", failing)
    output = tmp_path / "r.json"
    a, b = engines
    done = call("bench", "--engine", a, "--engine", b, "--batch", "1,2", "--output", output, *QUICK, "--samples", "30")
    assert done.code == 2
    assert "error: 1 of 4 points failed, b.onnx at batch 2 first: b.onnx fails on purpose" in done.err
    assert "the others were measured, and are kept" in done.err
    found = read_results(output)
    assert [(f.engine, f.batch) for f in found.failures] == [("b.onnx", 2)]
    assert {(p.engine, p.batch) for p in found.points if p.complete} == {("a.onnx", 1), ("a.onnx", 2), ("b.onnx", 1)}
    assert "a.onnx" in done.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_until_ctrl_c_is_written(
    engines: tuple[Path, Path], tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "r.json"
    command = [*PROGRAM, "bench", "--engine", str(engines[0]), "--batch", "1", "--seconds", "600", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--output", str(output)], env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("warming up"):
            break
    time.sleep(3.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == f"error: interrupted; what was measured until then is in {output}"
    assert err.count("error:") == 1
    assert "latency per batch" in out
    found = read_results(output)
    assert found.interrupted
    assert not found.points[0].complete
    assert len(found.points[0].samples_ms) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_compare_two_runs(measured: Path, tmp_path: Path) -> None:
    done = call("compare", measured, measured)
    assert done.code == 0, done.err
    assert "nothing is worse than before" in done.out
    document = json.loads(measured.read_text(encoding="utf-8"))
    for point in document["points"]:
        if point["engine"] == "b.onnx":
            point["samples_ms"] = [3 * ms for ms in point["samples_ms"]]
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps(document), encoding="utf-8")
    done = call("compare", measured, slower)
    assert done.code == 1
    assert "error: b.onnx at batch 1 is 200.0% slower" in done.err
    assert call("compare", measured, slower, "--json").document["passed"] is False
    assert call("compare", slower, measured).code == 0, "faster is no regression"
    complaint(call("compare", measured, slower, "--fail-if-slower", "fast"), "--fail-if-slower 'fast'", "3%")
    half = tmp_path / "half.json"
    half.write_text(slower.read_text(encoding="utf-8")[:500], encoding="utf-8")
    complaint(call("compare", measured, half), "half.json is no JSON, or is cut off")
    complaint(call("compare", measured, tmp_path / "none.json"), "none.json is no file")


def test_accuracy_is_kept_with_the_file_that_it_is_of(exported_lite: Path, tmp_path: Path) -> None:
    import hashlib

    evaluated = {
        "model_sha256": hashlib.sha256(exported_lite.read_bytes()).hexdigest(),
        "image_set": "digits",
        "image_set_sha256": "0" * 64,
        "images": 200,
        "top1": {"count": 180, "images": 200, "share": 0.9, "meaningful": True},
    }
    path, output = tmp_path / "evaluated.json", tmp_path / "r.json"
    path.write_text(json.dumps(evaluated), encoding="utf-8")
    arguments = ("bench", "--engine", exported_lite, "--batch", "1", "--accuracy", path, "--output", output)
    assert call(*arguments, *QUICK).code == 0
    accuracy = read_results(output).engines[0].accuracy
    assert accuracy is not None
    assert (accuracy.image_set, accuracy.images, accuracy.top1) == ("digits", 200, 180)
    for broken in ({}, {**evaluated, "top1": None}, {**evaluated, "images": 3}, {**evaluated, "images": 0}, []):
        path.write_text(json.dumps(broken), encoding="utf-8")
        complaint(call(*arguments), "holds no accuracy", "evaluate --json")
    path.write_text(json.dumps({**evaluated, "model_sha256": "1" * 64, "file": "other.onnx"}), encoding="utf-8")
    complaint(call(*arguments), "is of other.onnx, which is none of the engines")
    evaluated["top1"] = {"count": 180, "meaningful": False}
    path.write_text(json.dumps(evaluated), encoding="utf-8")
    complaint(call(*arguments), "is of random weights")
