"""Stands in for Triton's TensorRT backend on a CPU: it runs the ONNX file that lies beside the plan.

So a repository's config is loaded as production loads it, all but the plan itself.
"""

import importlib.util
from pathlib import Path

import triton_python_backend_utils as triton

_SOURCE = Path(__file__).resolve().parents[1] / "onnxruntime" / "model.py"
_SPEC = importlib.util.spec_from_file_location("standin_onnxruntime", _SOURCE)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)


class TritonPythonModel(_MODULE.TritonPythonModel):
    def initialize(self, args):
        plan = Path(args["model_repository"], args["model_version"], "model.plan")
        if plan.read_bytes()[:4] != b"ftrt":
            raise triton.TritonModelException(f"{plan} is no plan")
        super().initialize(args)
