"""What a command can be given to run: an ONNX file on any provider, a model in torch; no other instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from sepvit_deploy.errors import CheckpointError, GraphError, MissingDependency, OptionError
from sepvit_deploy.model.build import build_model
from sepvit_deploy.model.checkpoint import published_state_dict
from sepvit_deploy.pipeline import Running, open_model
from sepvit_deploy.runners import onnxruntime as ort_runner
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.cpu.commands import call, classifier, complaint


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_an_error(provider: str, tmp_path: Path) -> None:
    path = classifier(tmp_path / "foreign.onnx")
    for command in ("predict", "bench"):
        arguments = ["--engine", path] if command == "bench" else [path, "nothing.jpg"]
        words = ("the installed ONNX Runtime has no", "pip install 'sepvit-deploy[gpu]'")
        complaint(call(command, *arguments, "--provider", provider), *words)


def test_a_provider_that_leaves_nodes_to_the_cpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # ONNX Runtime's CPU package has one more provider, which takes no node of any graph.
    monkeypatch.setitem(ort_runner.PROVIDERS, "cuda", "AzureExecutionProvider")
    monkeypatch.setattr(ort_runner, "_settings", lambda provider, model: {})
    with pytest.raises(GraphError, match=r"AzureExecutionProvider does not take every node of foreign\.onnx"):
        OnnxRuntimeRunner(classifier(tmp_path / "foreign.onnx"), provider="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")  # ONNX Runtime's own word for it
def test_a_provider_that_does_not_load_is_not_the_graphs_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    # As where the package has the provider and the machine lacks its libraries: ONNX Runtime goes on without it.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*ort_runner.PROVIDERS.values()])
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    for provider, name in (("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")):
        with pytest.raises(
            MissingDependency, match=f"ONNX Runtime did not load its {name}; type: sepvit-deploy doctor"
        ):
            OnnxRuntimeRunner(classifier(tmp_path / "foreign.onnx"), provider=provider)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_a_model_in_torch_is_one_of_the_forms(exported: Callable[..., Path]) -> None:
    compared = call("check", "torch:lite", "--against", exported("--variant", "lite"), "--json")
    assert compared.code == 0, compared
    assert compared.document["passed"]
    names = [tensor["name"] for tensor in compared.document["tensors"]]
    assert names[-1] == "logits"
    assert "stage1.block0.dwa" in names


def test_a_model_in_torch_takes_a_checkpoint(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    model = build_model("lite", num_classes=7, seed=3)
    save_file({name: value.contiguous() for name, value in published_state_dict(model).items()}, weights)
    opened = open_model(f"torch:lite:{weights}")
    assert opened.precision == "fp32"
    assert not opened.untrained
    assert open_model("torch:lite").untrained
    with opened.running(Running(threads=1)) as runner:
        outputs = runner.run(np.zeros((2, 3, 224, 224), np.float32))
    assert outputs["logits"].shape == (2, 7)


def test_addresses_of_no_model_in_torch(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"lite, t, s"):
        open_model("torch:xl")
    with pytest.raises(CheckpointError, match=r"absent\.pth is no file; expected torch:VARIANT\[:WEIGHTS\]"):
        open_model(f"torch:lite:{tmp_path / 'absent.pth'}")


def test_a_model_in_torch_runs_on_devices_that_torch_has() -> None:
    opened = open_model("torch:lite")
    with (
        pytest.raises(OptionError, match=r"--provider tensorrt with torch:lite; expected cpu or cuda"),
        opened.running(Running(provider="tensorrt")),
    ):
        pass
    with (
        pytest.raises(MissingDependency, match=r"sees no CUDA device; take --provider cpu"),
        opened.running(Running(provider="cuda")),
    ):
        pass


def test_a_model_in_torch_needs_something_to_be_compared_with() -> None:
    complaint(call("check", "torch:lite"), "torch:lite has no reference of its own", "--against")
