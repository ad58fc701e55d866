"""SepViT from weights to a checked ONNX file, and on to the GPU.

    from pathlib import Path
    from sepvit_deploy import EngineSpec, Running, audit, build, calibrate, check, export, load_graph, open_model
    from sepvit_deploy import quantize

    exported = export("t", Path("sepvit_t.onnx"))       # random weights unless weights=Path(...)
    assert check(exported.path).passed                    # against the model as the paper writes it
    print(audit(load_graph(exported.path)).operators)
    calibrate(exported.path, Path("photographs"), Path("t.scales.json"))
    quantize(exported.path, Path("t_int8.onnx"), precision="int8", scales=Path("t.scales.json"))
    build(Path("t_int8.onnx"), Path("t_int8.plan"), engine=EngineSpec(profiles=("1", "4,8,32")))
    with open_model("t_int8.plan").running(Running()) as runner:  # on the GPU that it is for, or PlanError
        logits = runner.run(images)["logits"]              # images: (B, 3, 224, 224) float32, see load_batch

Importing this package loads nothing: each name is loaded when it is first asked for, and each function what it needs.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepvit_deploy.artifact import Passport, read_passport
    from sepvit_deploy.audit import Audit, audit
    from sepvit_deploy.building import Profile
    from sepvit_deploy.comparison import Crossover, Ratio, crossovers, ratios
    from sepvit_deploy.deployment import DeploymentSpec, EngineSpec, default_spec
    from sepvit_deploy.doctor import Diagnosis, PlanDiagnosis, diagnose, diagnose_plan
    from sepvit_deploy.errors import (
        AcceptanceFailed,
        AuditFailed,
        BuildFailed,
        CheckFailed,
        CheckpointError,
        DeviceError,
        GraphError,
        HeadroomFailed,
        ImageError,
        InputError,
        MissingDependency,
        OptionError,
        OutputError,
        ParityFailed,
        PassportError,
        PlanError,
        SepvitError,
    )
    from sepvit_deploy.evaluate import Evaluation
    from sepvit_deploy.export import onnx_from_torch
    from sepvit_deploy.graph import load_graph
    from sepvit_deploy.images import load_batch, load_image, preprocess
    from sepvit_deploy.latency import Point, Results, read_results, write_results
    from sepvit_deploy.lint import LintReport, lint
    from sepvit_deploy.model.build import build_model
    from sepvit_deploy.model.checkpoint import load_checkpoint
    from sepvit_deploy.model.rewrite import rewrite
    from sepvit_deploy.parity import Parity, Tolerance, compare
    from sepvit_deploy.pipeline import (
        Climbed,
        Deployed,
        Engine,
        Exported,
        Lowered,
        Running,
        bench,
        build,
        calibrate,
        check,
        climb,
        deploy,
        evaluate,
        export,
        open_model,
        quantize,
        sensitivity,
        smooth,
    )
    from sepvit_deploy.predict import Prediction, predict
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
    from sepvit_deploy.runners.tensorrt import TensorRtRunner
    from sepvit_deploy.runners.torch import TorchRunner
    from sepvit_deploy.scales import ScaleTable, read_scales
    from sepvit_deploy.sensitivity import Sensitivity
    from sepvit_deploy.simplify import simplify
    from sepvit_deploy.spec import ModelSpec, Preprocessing
    from sepvit_deploy.spec_file import read_spec
    from sepvit_deploy.variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "AcceptanceFailed",
    "Audit",
    "AuditFailed",
    "BuildFailed",
    "CheckFailed",
    "CheckpointError",
    "Climbed",
    "Crossover",
    "Deployed",
    "DeploymentSpec",
    "DeviceError",
    "Diagnosis",
    "Engine",
    "EngineSpec",
    "Evaluation",
    "Exported",
    "GraphError",
    "HeadroomFailed",
    "ImageError",
    "InputError",
    "LintReport",
    "Lowered",
    "MissingDependency",
    "ModelSpec",
    "OnnxRuntimeRunner",
    "OptionError",
    "OutputError",
    "Parity",
    "ParityFailed",
    "Passport",
    "PassportError",
    "PlanDiagnosis",
    "PlanError",
    "Point",
    "Prediction",
    "Preprocessing",
    "Profile",
    "Ratio",
    "Results",
    "Running",
    "ScaleTable",
    "Sensitivity",
    "SepvitError",
    "TensorRtRunner",
    "Tolerance",
    "TorchRunner",
    "Variant",
    "audit",
    "bench",
    "build",
    "build_model",
    "calibrate",
    "check",
    "climb",
    "compare",
    "crossovers",
    "default_spec",
    "deploy",
    "diagnose",
    "diagnose_plan",
    "evaluate",
    "export",
    "lint",
    "load_batch",
    "load_checkpoint",
    "load_graph",
    "load_image",
    "onnx_from_torch",
    "open_model",
    "predict",
    "preprocess",
    "quantize",
    "ratios",
    "read_passport",
    "read_results",
    "read_scales",
    "read_spec",
    "rewrite",
    "sensitivity",
    "simplify",
    "smooth",
    "write_results",
]

_PUBLIC = {
    "artifact": "Passport read_passport",
    "audit": "Audit audit",
    "comparison": "Crossover Ratio crossovers ratios",
    "latency": "Point Results read_results write_results",
    "building": "Profile",
    "deployment": "DeploymentSpec EngineSpec default_spec",
    "doctor": "Diagnosis PlanDiagnosis diagnose diagnose_plan",
    "errors": "AcceptanceFailed AuditFailed BuildFailed CheckFailed CheckpointError DeviceError GraphError "
    "HeadroomFailed ImageError InputError MissingDependency OptionError OutputError ParityFailed PassportError "
    "PlanError SepvitError",
    "evaluate": "Evaluation",
    "export": "onnx_from_torch",
    "graph": "load_graph",
    "images": "load_batch load_image preprocess",
    "lint": "LintReport lint",
    "model.checkpoint": "load_checkpoint",
    "model.rewrite": "rewrite",
    "model.build": "build_model",
    "parity": "Parity Tolerance compare",
    "pipeline": "Climbed Deployed Engine Exported Lowered Running bench build calibrate check climb deploy evaluate "
    "export open_model quantize sensitivity smooth",
    "predict": "Prediction predict",
    "runners.onnxruntime": "OnnxRuntimeRunner",
    "runners.tensorrt": "TensorRtRunner",
    "runners.torch": "TorchRunner",
    "scales": "ScaleTable read_scales",
    "sensitivity": "Sensitivity",
    "simplify": "simplify",
    "spec": "ModelSpec Preprocessing",
    "spec_file": "read_spec",
    "variants": "VARIANTS Variant",
}
"""Public names by the module that they come from."""
_SOURCE = {name: module for module, names in _PUBLIC.items() for name in names.split()}
_TORCH = frozenset({"model.checkpoint", "model.rewrite", "model.sepvit", "runners.torch"})


def __getattr__(name: str) -> Any:
    if name not in _SOURCE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"{__name__}.{_SOURCE[name]}"
    if _SOURCE[name] in _TORCH or _SOURCE[name] == "runners.onnxruntime":
        from sepvit_deploy.optional import require

        if _SOURCE[name] in _TORCH:
            require("torch", extra="torch")
        value = getattr(require(module, extra="torch"), name)
    else:
        value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """The package, where `sepvit_deploy.lint` is the function, whether or not its module was imported before."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _SOURCE):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
