"""The benchmark against other models: what it refuses to time, how turns are taken, and its table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sepvit_deploy.errors import CheckFailed, DeviceError, GraphError, ParityFailed
from tests.repo.layers import ROOT


@pytest.fixture(scope="module")
def peers() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import peers as module

        yield module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


class Fake:
    """Logits that never change."""

    name = "fake"
    input_shape = (None, 3, 224, 224)

    def __init__(self, log: list[str], name: str, logits: np.ndarray | None = None) -> None:
        self.log, self.name, self.logits = log, name, logits

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.log.append(self.name)
        return {"logits": self.logits if self.logits is not None else images}


def test_a_peer_of_other_sizes_is_refused(peers: Any) -> None:
    peer = peers.Peer("Swin-T", 28.3, 4.5, torch.nn.Identity)
    peers.require_as_published(peer, 28_288_354, 4_490_566_656)
    with pytest.raises(CheckFailed, match=r"Swin-T has 28\.45 M parameters; expected 28\.3, as it is published"):
        peers.require_as_published(peer, 28_450_000, 4_490_566_656)
    with pytest.raises(CheckFailed, match=r"Swin-T has 4\.35 G MACs; expected 4\.5"):
        peers.require_as_published(peer, 28_288_354, 4_350_425_088)


@pytest.mark.parametrize("fault", [0.01, float("nan")])
def test_a_wrong_graph_is_not_timed(peers: Any, fault: float) -> None:
    logits = np.ones((2, 1000), np.float32)
    entry = peers.Entry("Swin-T", peers.FP32, 1, 1, Path("x.onnx"), logits)
    peers.require_agreement(entry, Fake([], "right", logits + 1e-5))
    wrong = logits.copy()
    wrong[1, 7] += fault
    with pytest.raises(ParityFailed, match=r"Swin-T, FP32 is .* away from torch"):
        peers.require_agreement(entry, Fake([], "wrong", wrong))


def test_all_take_turns(peers: Any) -> None:
    log: list[str] = []
    found = peers.timed({name: Fake(log, name) for name in "abc"}, 2, 6)
    assert [(point.engine, len(point.samples_ms)) for point in found] == [(name, 12) for name in "abc"]


def test_a_model_that_fails_ends_the_benchmark(peers: Any) -> None:
    class Broken(Fake):
        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            raise GraphError("broken")

    with pytest.raises(DeviceError, match="b: broken"):
        peers.timed({"a": Fake([], "a"), "b": Broken([], "b")}, 2, 6)


def document(peers: Any) -> dict[str, Any]:
    def point(entry: str, *rounds: float) -> dict[str, Any]:
        where = {"runtime": "ONNX Runtime, CPU, 1 thread", "batch": 8}
        samples = [ms for ms in rounds for _ in range(2)]
        return {"entry": entry, **where, "samples_ms": samples, "stretches": [2] * len(rounds), "settled": True}

    def row(model: str, form: str) -> dict[str, Any]:
        sizes = {"parameters": 31_200_000, "macs": 4_510_000_000, "megabytes": 125.0}
        return {"key": f"{model}, {form}", "model": model, "form": form, **sizes}

    rows = [row("SepViT-T", peers.REWRITTEN), row("SepViT-T", peers.FP16), row("Swin-T", peers.FP32)]
    points = [point(peers.REFERENCE, 800, 816, 1600), point("Swin-T, FP32", 1200, 1224, 2400)]
    return {
        "command": "python benchmarks/peers.py",
        "conditions": {"device": "A CPU", "cores": 2, "versions": {"onnxruntime": "1.0", "transformers": "5.0"}},
        "options": {"rounds": 3, "batches": [8], "threads": [1]},
        "tiers": {"tiny": {"rows": rows, "points": points, "failed": {"Twins-SVT-S": "timm does not load"}}},
    }


def test_the_table_compares_within_a_round(peers: Any) -> None:
    lines = peers.markdown(document(peers)).splitlines()
    assert lines[0].startswith("A CPU, 2 cores; onnxruntime 1.0, transformers 5.0, timm absent. Made by ")
    figures = "31.2 | 4.51 | 125.0"
    assert f"| tiny | SepViT-T | rewritten | {figures} | 102 | 1 |" in lines
    assert f"| tiny | SepViT-T | FP16 | {figures} | for a GPU |  |" in lines
    assert f"| tiny | Swin-T | FP32 | {figures} | 153 | 1.50 (1.50 to 1.50) |" in lines
    assert "- Twins-SVT-S: timm does not load" in lines


def test_swin_is_what_its_paper_says(peers: Any) -> None:
    pytest.importorskip("transformers", reason="the peers are those of transformers, which is not installed")
    model = peers.as_exported(peers.random_model(peers.SWIN_T))
    parameters, macs = sum(parameter.numel() for parameter in model.parameters()), peers.counted_macs(model)
    assert (parameters, macs) == (28_288_354, 4_490_566_656)
    peers.require_as_published(peers.SWIN_T, parameters, macs)
    logits = peers.logits_of(model)
    assert logits.shape == (2, 1000) and np.abs(logits).max() > 0.1
