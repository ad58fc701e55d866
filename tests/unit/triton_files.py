"""Models for Triton's repositories that need no torch: a classifier of a few numbers, and plans that say so."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from sepvit_deploy import artifact, plans
from sepvit_deploy.artifact import Parent, Passport
from sepvit_deploy.building import EngineFacts, NetworkFacts, Profile
from sepvit_deploy.gpu import Device

H200 = Device(0, "NVIDIA H200", "9.0", 132, 150_000_000_000, 6144, 62914560, 49152, 233472, 512, False, True, "13.0")
SIDE = 224


def model_spec(classes: int = 5) -> dict[str, Any]:
    return {"variant": "lite", "task": "classify", "size": [SIDE, SIDE], "num_classes": classes}


def onnx_file(
    path: Path, *, classes: int = 5, seed: int = 0, batch: int | str = "batch", signed_int8: bool = False, **facts: Any
) -> Path:
    """A classifier over the mean colour of a picture, with a passport; ``seed`` makes others of the same form."""
    rng = np.random.default_rng(seed)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weight"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["logits"]),
    ]
    weights: dict[str, Any] = {
        "axes": np.array([2, 3], np.int64),
        "weight": rng.normal(size=(3, classes)).astype(np.float32),
        "bias": rng.normal(size=classes).astype(np.float32),
    }
    if signed_int8:
        weights |= {"scale": np.float32(0.05), "zero": np.int8(0)}
        nodes[1].input[0] = "whole"
        nodes[1:1] = [
            helper.make_node("QuantizeLinear", ["colour", "scale", "zero"], ["quantized"]),
            helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["whole"]),
        ]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "colour", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    passport = Passport("export", (Parent("weights", "w.pth", sha256="ab" * 32),), model_spec(classes), facts)
    artifact.write_with_passport(path, model.SerializeToString(), passport)
    return path


def plan_file(path: Path, parent: Path, *profiles: Profile, classes: int = 5, **more: Any) -> Path:
    """A plan that no TensorRT made, with the passport that it would have; built from ``parent`` says its passport."""
    batch, spec = more.pop("batch", None), more.pop("model", model_spec(classes))
    lead = -1 if batch is None else batch
    network = NetworkFacts(3, {"FLOAT": 1}, {}, {"images": [lead, 3, SIDE, SIDE]}, {"logits": [lead, classes]})
    known: dict[str, Any] = {
        **{"builder": "tensorrt", "builder_version": "10.13.3.9", "platform": "linux x86_64", "device": H200},
        **{"compute_capabilities": (), "profiles": profiles or (() if batch else (Profile(1, 8, 32),))},
        **{"batch": batch, "workspace_mb": None, "level": None, "version_compatible": False},
        **{"hardware_compatible": None, "refittable": False, "network": network, "build_seconds": 1.0},
        **{"timing_cache_hit": None, "inspection": None},
    }
    facts = EngineFacts(**known | more)
    digest = artifact.sha256(parent)
    passport = Passport(
        stage="build",
        parents=(Parent("onnx", parent.name, sha256=digest), Parent("weights", "w.pth", sha256="ab" * 32)),
        model=spec,
        facts={"precision": "fp32", "engine": facts.to_dict()},
    )
    magic = b"ftrt" if facts.builder == "tensorrt" else b"vtrt"
    plans.write_plan(path, magic + digest.encode() + repr(asdict(facts)).encode(), passport)
    return path
