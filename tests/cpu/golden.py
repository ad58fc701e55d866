"""Golden outputs of the published SepViT code, and the weights and inputs that they were computed from.

`tests/golden/NAME.json` lists a checkpoint's keys and shapes, a seed and the shapes of the inputs; `NAME.npz` has what
the published code returns for them in float32: ``logits_i`` whole, or of each feature map ``shape_i_stage`` and the
samples ``feat_i_stage``; of segmentation samples of the logits, of FPN's neck and of the classes of pixels. Weights
and inputs are not stored: each is drawn from a generator seeded with its own name.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
FORMS = {"classify_lite": ("lite", "classify"), "classify_tiny": ("t", "classify"), "dense_tiny": ("t", "dense")}
"""Golden cases: variant and task of each."""
HEADS = {f"{head}_tiny{odd}": head for head in ("fpn", "upernet") for odd in ("", "_odd")}
"""Golden cases of segmentation: variant t, and the head of each; the sizes of the odd ones are no powers of two."""

SAMPLES = (slice(None), slice(None, None, 8), slice(None, None, 5), slice(None, None, 5))


@dataclass(frozen=True)
class Golden:
    """One case: published keys with their shapes, the inputs' shapes, and the expected outputs."""

    name: str
    seed: int
    shapes: dict[str, list[int]]
    input_shapes: list[list[int]]
    outputs: dict[str, np.ndarray]

    @classmethod
    def read(cls, name: str) -> Golden:
        case = json.loads((FOLDER / f"{name}.json").read_text())
        with np.load(FOLDER / f"{name}.npz") as file:
            outputs = {key: file[key] for key in file.files}
        return cls(name, case["seed"], case["shapes"], case["input_shapes"], outputs)

    def _normal(self, name: str, shape: Sequence[int]) -> np.ndarray:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())]).standard_normal(shape)

    def _weight(self, key: str, shape: Sequence[int]) -> Tensor:
        if key.endswith("num_batches_tracked"):
            return torch.zeros(shape, dtype=torch.int64)
        drawn = self._normal(key, shape)
        if key.endswith("running_mean"):
            drawn = 0.1 * drawn
        elif key.endswith("running_var"):
            drawn = 1.0 + 0.2 * np.abs(drawn)
        elif key.endswith("win_tokens"):
            drawn = 0.5 * drawn
        elif key.endswith(".bias"):
            drawn = 0.05 * drawn
        elif len(shape) == 1:  # the gain of a LayerNorm
            drawn = 1.0 + 0.1 * drawn
        else:  # a linear layer or a convolution keeps the variance of its input
            drawn = drawn / math.sqrt(math.prod(shape[1:]))
        return torch.from_numpy(drawn.astype(np.float32))

    def weights(self) -> dict[str, Tensor]:
        """The published state dict."""
        return {key: self._weight(key, shape) for key, shape in self.shapes.items()}

    def inputs(self) -> list[Tensor]:
        """Batches (B, 3, H, W) of normalised pixels."""
        return [
            torch.from_numpy(self._normal(f"input{i}", shape).astype(np.float32))
            for i, shape in enumerate(self.input_shapes)
        ]

    def difference(self, model: Callable[[Tensor], Tensor | tuple[Tensor, ...]], i: int) -> float:
        """Largest absolute difference between the model's outputs and the golden ones on input ``i``; NaN if any is."""
        with torch.no_grad():
            got = model(self.inputs()[i])
        if isinstance(got, Tensor):
            pairs = [(got.numpy(), self.outputs[f"logits_{i}"])]
        else:
            assert len(got) == 4
            for stage, feature in enumerate(got):
                assert list(feature.shape) == list(self.outputs[f"shape_{i}_{stage}"])
            pairs = [(f.numpy()[SAMPLES], self.outputs[f"feat_{i}_{stage}"]) for stage, f in enumerate(got)]
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
        return float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs]))
