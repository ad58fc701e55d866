"""ONNX -> a smaller ONNX that computes the same, proven on fresh random images.

onnx-simplifier does the work, without the passes that turn a linear layer's MatMul and Add into Gemm: Q/DQ fuses around
the former only, and each Gemm on tokens costs two Reshapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sepvit_deploy import graph as graphs
from sepvit_deploy.errors import GraphError, ParityFailed
from sepvit_deploy.optional import require

if TYPE_CHECKING:
    import onnx

SKIPPED_PASSES = ("fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched")
MAX_DIFFERENCE = 1e-4
"""Largest |difference| relative to the largest |output|: float32 rounding reaches about 1e-6 in SepViT-B."""

OPEN_SIZES = ((70, 93), (32, 224))
"""Heights and widths to compare at where the graph leaves them open."""


def simplify(model: onnx.ModelProto, *, batches: tuple[int, ...] = (1, 3)) -> onnx.ModelProto:
    """Simplify a graph with one image input and prove that its outputs stayed.

    Args:
        model: left as it is.
        batches: sizes of the random batches to compare on, where the batch is dynamic.

    Raises:
        GraphError: onnx-simplifier does not take the graph.
        ParityFailed: an output moved, or is not finite.
    """
    onnxsim = require("onnxsim", extra="torch")
    try:
        smaller, _ = onnxsim.simplify(model, skipped_optimizers=list(SKIPPED_PASSES), certify=False)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GraphError(f"onnx-simplifier does not take the graph ({reason})", hint="try --no-simplify") from error
    smaller.ir_version = model.ir_version
    del smaller.metadata_props[:]
    del smaller.graph.value_info[:]
    if graphs.opset(smaller) != graphs.opset(model):
        raise GraphError(
            f"onnx-simplifier wrote opset {graphs.opset(smaller)}", expected=f"opset {graphs.opset(model)}"
        )
    prove_same(model, smaller, batches)
    simplified: onnx.ModelProto = smaller
    return simplified


def prove_same(before: onnx.ModelProto, after: onnx.ModelProto, batches: tuple[int, ...]) -> None:
    """Compare two graphs on random images.

    Raises:
        ParityFailed: an output differs, or is not finite, in either.
    """
    import numpy as np

    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

    first = OnnxRuntimeRunner(before, name="before simplifying")
    second = OnnxRuntimeRunner(after, name="after simplifying")
    rng = np.random.default_rng()
    fixed, channels, height, width = first.input_shape
    if channels is None:
        raise GraphError("the graph leaves the channels open", expected="a fixed channel count")
    sizes = [(height, width)] * len(batches) if height and width else OPEN_SIZES
    for batch, (rows, columns) in zip(batches if fixed is None else [fixed] * len(sizes), sizes, strict=False):
        images = rng.standard_normal((batch, channels, rows, columns), dtype=np.float32)
        expected, found = first.run(images), second.run(images)
        if expected.keys() != found.keys():
            raise ParityFailed(f"simplifying left the outputs {list(found)}", expected=str(list(expected)))
        for name, want in expected.items():
            have = found[name]
            if not (np.isfinite(want).all() and np.isfinite(have).all()):
                raise ParityFailed(f"{name} is not finite on random images of batch {batch}")
            if have.shape != want.shape:
                raise ParityFailed(f"simplifying made {name} {have.shape}", expected=f"{want.shape}")
            difference = float(np.abs(have - want).max() / max(1.0, float(np.abs(want).max())))
            if difference > MAX_DIFFERENCE:
                raise ParityFailed(
                    f"simplifying moved {name} by {difference:.1e} at batch {batch}",
                    expected=f"{MAX_DIFFERENCE:.0e} at most",
                )
