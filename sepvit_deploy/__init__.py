"""SepViT from weights to a checked ONNX file, and on to the GPU.

    from pathlib import Path
    from sepvit_deploy import audit, check, export, load_graph

    exported = export("t", Path("sepvit_t.onnx"))       # random weights unless weights=Path(...)
    assert check(exported.path).passed                    # against the model as the paper writes it
    print(audit(load_graph(exported.path)).operators)

Importing this package loads none of torch, onnx, onnxruntime, numpy: each function loads what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sepvit_deploy.artifact import Passport, read_passport
from sepvit_deploy.audit import Audit, audit
from sepvit_deploy.bench import Point, bench
from sepvit_deploy.doctor import Diagnosis, diagnose
from sepvit_deploy.errors import (
    AuditFailed,
    CheckFailed,
    CheckpointError,
    GraphError,
    ImageError,
    InputError,
    MissingDependency,
    OptionError,
    OutputError,
    ParityFailed,
    PassportError,
    SepvitError,
)
from sepvit_deploy.export import onnx_from_torch
from sepvit_deploy.graph import load_graph
from sepvit_deploy.images import load_batch, load_image, preprocess
from sepvit_deploy.parity import Parity, Tolerance, compare
from sepvit_deploy.pipeline import Exported, check, export
from sepvit_deploy.predict import Prediction, predict
from sepvit_deploy.simplify import simplify
from sepvit_deploy.spec import ModelSpec, Preprocessing
from sepvit_deploy.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from sepvit_deploy.model.checkpoint import load_checkpoint
    from sepvit_deploy.model.rewrite import rewrite
    from sepvit_deploy.model.sepvit import build_model
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
    from sepvit_deploy.runners.torch import TorchRunner

_HEAVY = {
    "build_model": "sepvit_deploy.model.sepvit",
    "load_checkpoint": "sepvit_deploy.model.checkpoint",
    "rewrite": "sepvit_deploy.model.rewrite",
    "OnnxRuntimeRunner": "sepvit_deploy.runners.onnxruntime",
    "TorchRunner": "sepvit_deploy.runners.torch",
}
"""Names whose modules import torch or ONNX Runtime, loaded when first asked for."""

__all__ = [
    "VARIANTS",
    "Audit",
    "AuditFailed",
    "CheckFailed",
    "CheckpointError",
    "Diagnosis",
    "Exported",
    "GraphError",
    "ImageError",
    "InputError",
    "MissingDependency",
    "ModelSpec",
    "OnnxRuntimeRunner",
    "OptionError",
    "OutputError",
    "Parity",
    "ParityFailed",
    "Passport",
    "PassportError",
    "Point",
    "Prediction",
    "Preprocessing",
    "SepvitError",
    "Tolerance",
    "TorchRunner",
    "Variant",
    "audit",
    "bench",
    "build_model",
    "check",
    "compare",
    "diagnose",
    "export",
    "load_batch",
    "load_checkpoint",
    "load_graph",
    "load_image",
    "onnx_from_torch",
    "predict",
    "preprocess",
    "read_passport",
    "rewrite",
    "simplify",
]


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sepvit_deploy.optional import require

    if not name.startswith("Onnx"):
        require("torch", extra="torch")
    return getattr(require(_HEAVY[name], extra="torch"), name)
