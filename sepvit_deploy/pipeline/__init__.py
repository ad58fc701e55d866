"""The order of the stages, nothing else: one module for each job that a command does."""

from sepvit_deploy.pipeline.building import Engine, build
from sepvit_deploy.pipeline.checking import check, parity_facts, reference_model
from sepvit_deploy.pipeline.climbing import Climbed, climb, has_ladder
from sepvit_deploy.pipeline.deploying import Deployed, Step, deploy, export_lowered
from sepvit_deploy.pipeline.exporting import Exported, export
from sepvit_deploy.pipeline.lowering import Lowered, calibrate, quantize, smooth
from sepvit_deploy.pipeline.measuring import evaluate, sensitivity
from sepvit_deploy.pipeline.models import PLANS, TORCH, TORCH_COMPILE, open_model, open_plan
from sepvit_deploy.pipeline.opened import Opened, Running, open_onnx
from sepvit_deploy.pipeline.reporting import report, report_of
from sepvit_deploy.pipeline.timing import bench

__all__ = [
    "PLANS",
    "TORCH",
    "TORCH_COMPILE",
    "Climbed",
    "Deployed",
    "Engine",
    "Exported",
    "Lowered",
    "Opened",
    "Running",
    "Step",
    "bench",
    "build",
    "calibrate",
    "check",
    "climb",
    "deploy",
    "evaluate",
    "export",
    "export_lowered",
    "has_ladder",
    "open_model",
    "open_onnx",
    "open_plan",
    "parity_facts",
    "quantize",
    "reference_model",
    "report",
    "report_of",
    "sensitivity",
    "smooth",
]
