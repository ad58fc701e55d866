"""The model, read from a published checkpoint, computes what the published code computes; so does its rewrite."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sepvit_deploy.model.build import build_model
from sepvit_deploy.model.checkpoint import load_checkpoint, our_name, published_name
from sepvit_deploy.model.rewrite import rewrite
from sepvit_deploy.model.sepvit import SepViT, SepViTBackbone
from tests.cpu.golden import FORMS, Golden

TOLERANCE = 1e-4
FAULT = 1e-3
"""A planted fault must move some output by more than this."""

INPUTS = [("classify_lite", 0), ("classify_tiny", 0), ("dense_tiny", 0), ("dense_tiny", 1)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Golden, SepViT | SepViTBackbone]]:
    cases: dict[str, tuple[Golden, SepViT | SepViTBackbone]] = {}

    def load(name: str) -> tuple[Golden, SepViT | SepViTBackbone]:
        if name not in cases:
            golden = Golden.read(name)
            file = tmp_path_factory.mktemp(name) / "weights.pth"
            torch.save({"model": golden.weights()}, file)
            cases[name] = golden, load_checkpoint(file, *FORMS[name])
            file.unlink()
        return cases[name]

    return load


@pytest.mark.parametrize(("name", "i"), INPUTS)
def test_the_reference_model_matches_the_golden_outputs(loaded, name, i):
    golden, model = loaded(name)
    assert golden.difference(model, i) <= TOLERANCE


@pytest.mark.parametrize(("name", "i"), INPUTS)
def test_the_rewritten_model_matches_the_golden_outputs(loaded, name, i):
    golden, model = loaded(name)
    _, _, height, width = golden.input_shapes[i]
    assert golden.difference(rewrite(model, (height, width)), i) <= TOLERANCE


def test_every_golden_output_is_compared():
    assert {(name, i) for name in FORMS for i in range(len(Golden.read(name).input_shapes))} == set(INPUTS)
    for name in FORMS:
        golden = Golden.read(name)
        stages = [f"{i}_{stage}" for i in range(len(golden.input_shapes)) for stage in range(4)]
        expected = {f"{kind}_{s}" for kind in ("feat", "shape") for s in stages} if "dense" in name else {"logits_0"}
        assert set(golden.outputs) == expected


def roll_query_bias(model: nn.Module) -> None:
    bias = model.stages[2].blocks[1].attention.dwa.qkv.bias
    bias.copy_(bias.roll(bias.numel() // 3))


def zero_peg(model: nn.Module) -> None:
    model.stages[2].peg.conv.weight.zero_()


def flip_windows(model: nn.Module) -> None:
    tokens = model.stages[1].blocks[0].window_tokens
    tokens.copy_(tokens.flip(1))


def swap_norms(model: nn.Module) -> None:
    first, second = model.stages[3].blocks[0].norm1.bias, model.stages[3].blocks[0].norm2.bias
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def swap_pwa_queries_and_keys(model: nn.Module) -> None:
    weight = model.stages[0].blocks[0].attention.pwa.qk.weight
    weight.copy_(weight.roll(weight.shape[0] // 2, dims=0))


FAULTS = [roll_query_bias, zero_peg, flip_windows, swap_norms, swap_pwa_queries_and_keys]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_classifier_shows(loaded, fault):
    golden, model = loaded("classify_lite")
    model = copy.deepcopy(model)
    with torch.no_grad():
        fault(model)
    assert golden.difference(model, 0) > FAULT
    assert golden.difference(rewrite(model), 0) > FAULT


@contextmanager
def zeroed(parameter: nn.Parameter) -> Iterator[None]:
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.zero_()
        yield
        parameter.copy_(kept)


def test_a_fault_in_the_dense_backbone_shows_in_the_reference_and_in_the_rewrite(loaded):
    golden, model = loaded("dense_tiny")
    with zeroed(model.norms[3].bias):
        assert golden.difference(model, 1) > FAULT
    with zeroed(model.stages[1].peg.conv.weight):
        assert golden.difference(rewrite(model, (200, 264)), 1) > FAULT
    assert golden.difference(model, 1) <= TOLERANCE


def test_an_output_that_is_not_a_number_does_not_pass(loaded):
    golden, model = loaded("classify_lite")
    assert not golden.difference(lambda x: model(x) * float("nan"), 0) <= TOLERANCE


@pytest.mark.parametrize("name", FORMS)
def test_published_keys_and_our_names_are_one_to_one(name):
    published = Golden.read(name).shapes
    with torch.device("meta"):
        ours = build_model(*FORMS[name]).state_dict()
    assert {our_name(key): tuple(shape) for key, shape in published.items()} == {
        key: tuple(value.shape) for key, value in ours.items()
    }
    assert [published_name(our_name(key)) for key in published] == list(published)
    assert [our_name(published_name(key)) for key in ours] == list(ours)
