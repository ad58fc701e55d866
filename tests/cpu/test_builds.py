"""Every variant, task and precision is built by TensorRT-RTX: one and several profiles, two compute capabilities.

Of the smallest variant each precision of each task is built; the larger ones are the same modules more often and wider:
each of their tasks and each of their precisions is built, and the rest parsed and checked. Of segmentation, whose heads
are the same behind every variant, what has the most operators is parsed and checked: a mask of any size by UperNet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from sepvit_deploy.building import BuildRequest, Profile
from sepvit_deploy.engine import engine_from_onnx
from sepvit_deploy.export import onnx_from_torch
from sepvit_deploy.graph import load_graph
from sepvit_deploy.model.build import build_model
from sepvit_deploy.model.deploy import deployed
from sepvit_deploy.model.rewrite import rewrite
from sepvit_deploy.network import Precision
from sepvit_deploy.placement import observed, sites
from sepvit_deploy.precision import fp16_from_fp32, int8_from_fp32
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import STRIDES, VARIANTS, Task, map_sizes
from tests.cpu.commands import LARGER, published
from tests.cpu.rtx import SKIP
from tests.cpu.test_precision import images
from tests.unit.graphs import DIGEST, table

pytestmark = SKIP

SIZE, ODD = (224, 224), (200, 264)
ONE = BuildRequest("rtx", (Profile(1, 8, 32),), compute_capabilities=("8.6",))
SEVERAL = BuildRequest("rtx", (Profile(1, 1, 1), Profile(2, 8, 8)), compute_capabilities=("12.0",))
BOTH = BuildRequest("rtx", (Profile(1, 1, 1), Profile(8, 8, 8)), compute_capabilities=("8.6", "12.0"))
REQUESTS: dict[tuple[Task, Precision], BuildRequest] = {
    ("classify", "fp32"): ONE,
    ("classify", "fp16"): SEVERAL,
    ("classify", "int8"): ONE,
    ("dense", "fp32"): ONE,
    ("dense", "fp16"): ONE,
    ("dense", "int8"): SEVERAL,
}
"""Each precision with one and with several profiles, for one compute capability and for the other."""
LARGE = {"t": ONE, "b": replace(ONE, compute_capabilities=("12.0",))}
"""The larger variants are built with one profile: several take their time again for each, and show nothing more. S has
T's channels and B's blocks; `benchmarks/build.py` builds it. Their backbones, and the classifiers of `LARGER`, are of
one batch, which are exported in half the time: the others, of the same modules, take any."""
LARGE_BUILT: frozenset[tuple[str, Task, Precision]] = frozenset(
    {
        ("t", "classify", "fp32"),
        ("t", "classify", "int8"),
        ("t", "dense", "fp16"),
        ("b", "classify", "fp16"),
        ("b", "dense", "fp32"),
        ("b", "dense", "int8"),
    }
)


def fp32_graph(name: str, task: Task, exported: Callable[..., Path]) -> onnx.ModelProto:
    if task == "classify":
        return load_graph(exported(*published(name)))
    if name == "lite":
        return load_graph(exported("--variant", name, "--task", task, "--image-size", "x".join(map(str, ODD))))
    spec = ModelSpec(name, task, SIZE, 1000)
    model = rewrite(build_model(name, task), SIZE)
    return onnx_from_torch(model, spec, batch=1)


def request_for(name: str, task: Task, precision: Precision) -> BuildRequest:
    request = LARGE.get(name, REQUESTS[task, precision])
    return replace(request, profiles=()) if of_one_batch(name, task) else request


def of_one_batch(name: str, task: Task) -> bool:
    return name in (LARGE if task == "dense" else LARGER)


@pytest.mark.parametrize("task", ["classify", "dense"])
@pytest.mark.parametrize("name", ["lite", *LARGE])
def test_every_precision_builds_with_the_products_asked_for(
    name: str, task: Task, exported: Callable[..., Path]
) -> None:
    fp32 = fp32_graph(name, task, exported)
    inputs = images(fp32, 1)
    int8 = int8_from_fp32(fp32, table(fp32, inputs, observed(fp32)), graph_sha256=DIGEST).model
    graphs: dict[Precision, onnx.ModelProto] = {"fp32": fp32, "fp16": fp16_from_fp32(fp32).model, "int8": int8}
    batch = 1 if of_one_batch(name, task) else -1
    size = ODD if name == "lite" and task == "dense" else SIZE
    shapes = {"logits": [batch, 1000]}
    if task == "dense":
        maps = zip(STRIDES, VARIANTS[name].channels, map_sizes(size), strict=True)
        shapes = {f"stride{stride}": [batch, channels, *hw] for stride, channels, hw in maps}
    quantized = [site for site in sites(fp32) if site.default]
    sizes: dict[str, int] = {}
    for precision, graph in graphs.items():
        request = request_for(name, task, precision)
        parsed = name in LARGE and (name, task, precision) not in LARGE_BUILT
        built = engine_from_onnx(
            graph.SerializeToString(), request, name=f"{name}.onnx", precision=precision, dry_run=parsed
        )
        if not parsed:
            assert built.plan is not None
            sizes[precision] = len(built.plan)
        facts = built.facts
        assert facts.profiles == request.profiles
        assert facts.compute_capabilities == request.compute_capabilities
        assert facts.network.inputs == {"images": [batch, 3, *size]}
        assert facts.network.outputs == shapes
        matmuls, convolutions = facts.network.matmuls, facts.network.convolutions
        if precision == "int8":
            assert matmuls["INT8"] == sum(site.op == "MatMul" for site in quantized)
            assert convolutions == {"INT8": 4, "HALF": 4}
            assert matmuls.keys() == {"INT8", "HALF"}
        else:
            kind = {"fp32": "FLOAT", "fp16": "HALF"}[precision]
            assert matmuls.keys() == convolutions.keys() == {kind}
    assert sizes
    if "fp32" in sizes:
        assert max(sizes.values()) < 1.5 * sizes["fp32"]


def test_a_larger_variant_is_built_in_each_task_and_each_precision() -> None:
    for name in LARGE:
        built = [(task, precision) for variant, task, precision in LARGE_BUILT if variant == name]
        assert {task for task, _ in built} == {task for task, _ in REQUESTS}
        assert {precision for _, precision in built} == {precision for _, precision in REQUESTS}


def test_a_mask_of_any_size_is_parsed_with_the_convolutions_of_its_head_in_int8() -> None:
    spec = ModelSpec("lite", "segment", (64, 96), 7, head="upernet", output="mask", any_size=True)
    model = build_model(spec.variant, spec.task, num_classes=spec.num_classes, head=spec.head, output=spec.output)
    fp32 = onnx_from_torch(deployed(model, spec), spec)
    inputs = np.random.default_rng(0).standard_normal((1, 3, *spec.size), dtype=np.float32)
    int8 = int8_from_fp32(fp32, table(fp32, inputs, observed(fp32)), graph_sha256=DIGEST).model
    request = replace(ONE, profiles=(Profile.parse("1,1,2@32x32,64x96,96x128"),))
    parsed = engine_from_onnx(int8.SerializeToString(), request, name="lite.onnx", precision="int8", dry_run=True)
    facts = parsed.facts
    quantized = [site for site in sites(fp32) if site.default]
    assert facts.network.outputs == {"mask": [-1, -1, -1]}
    assert facts.network.matmuls["INT8"] == sum(site.op == "MatMul" for site in quantized)
    assert sum(site.group.startswith("decode_head.") for site in quantized) == 12
    assert facts.network.convolutions == {"INT8": 4 + 12, "HALF": 4 + 1}  # PEG and the classifier


def test_one_engine_takes_several_profiles_and_generations(exported: Callable[..., Path]) -> None:
    content = exported("--variant", "lite").read_bytes()
    built = engine_from_onnx(content, BOTH, name="lite.onnx", precision="fp32")
    assert built.facts.profiles == BOTH.profiles
    assert built.facts.compute_capabilities == ("8.6", "12.0")
    assert built.plan is not None
    assert len(built.plan) > 1e7
