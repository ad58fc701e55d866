"""The order of the stages, nothing else: one module for each job that a command does."""

from sepvit_deploy.pipeline.checking import check, parity_facts, reference_model
from sepvit_deploy.pipeline.deploying import Deployed, Step, deploy, export_lowered
from sepvit_deploy.pipeline.exporting import Exported, export
from sepvit_deploy.pipeline.lowering import Lowered, calibrate, quantize, smooth
from sepvit_deploy.pipeline.measuring import evaluate, sensitivity
from sepvit_deploy.pipeline.opened import Opened, open_onnx

__all__ = [
    "Deployed",
    "Exported",
    "Lowered",
    "Opened",
    "Step",
    "calibrate",
    "check",
    "deploy",
    "evaluate",
    "export",
    "export_lowered",
    "open_onnx",
    "parity_facts",
    "quantize",
    "reference_model",
    "sensitivity",
    "smooth",
]
