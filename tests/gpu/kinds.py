"""The kinds of engine that this machine has, and what the others lack."""

from __future__ import annotations

import importlib.util
from functools import cache

from sepvit_deploy import builders, gpu, plans
from sepvit_deploy.building import Builder
from sepvit_deploy.errors import SepvitError
from sepvit_deploy.runners.cuda import open_cuda

BUILDERS: tuple[Builder, ...] = ("tensorrt", "rtx")
PROVIDERS = ("cuda", "tensorrt")


def absent(kind: str) -> str | None:
    """Why a kind of engine cannot be tried here; None where it can: a builder, ``ort-cuda``, ``torch``, ..."""
    if kind in BUILDERS and (other := [name for name in builders.loaded() if name != kind]):
        return f"this process works with {other[0]}; in another: pytest tests/gpu --require-gpu -k {kind}"
    return _absent(kind)


@cache
def _absent(kind: str) -> str | None:
    if kind in BUILDERS:
        return _builder(kind)  # type: ignore[arg-type]
    if kind == "torch":
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        import torch

        return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"
    if kind == "pycuda":
        return None if importlib.util.find_spec("pycuda") else "pycuda is not installed"
    provider = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}[kind]
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime-gpu is not installed"
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():  # whether it loads, the runner says
        return f"the installed onnxruntime has no {provider}"
    return None


def _builder(kind: Builder) -> str | None:
    try:
        builders.choose(kind, gpu=True)
        open_cuda().close()
    except SepvitError as error:
        return str(error)
    capability = gpu.devices()[0].compute_capability
    if kind == "rtx" and capability not in plans.RTX_CAPABILITIES:
        return f"TensorRT-RTX does not run on compute capability {capability}"
    return None
