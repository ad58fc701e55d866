"""Segmentation files without a network: each pixel gets the class whose colour is nearest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from sepvit_deploy.artifact import Parent, Passport, write_with_passport
from sepvit_deploy.spec import ModelSpec

COLOURS = ((230, 30, 30), (30, 200, 60), (40, 60, 220), (240, 220, 40), (20, 20, 20))
"""Of the five classes."""
NAMES = ["brick", "grass", "water", "sand", "coal"]


def segmenter(
    path: Path,
    *,
    size: tuple[int, int] = (64, 64),
    output: str = "logits",
    any_size: bool = False,
    batch: int | None = None,
    bias: Sequence[float] = (0,),
    colours: Sequence[tuple[int, int, int]] = COLOURS,
    seed: int | None = None,
    **facts: Any,
) -> Path:
    """Write a file that tells five colours apart; ``bias`` makes it err, ``seed`` says random weights."""
    spec = ModelSpec("lite", "segment", size, len(colours), head="fpn", output=output, any_size=any_size)
    mean, std = np.array(spec.preprocessing.mean), np.array(spec.preprocessing.std)
    centres = (np.array(colours) / 255 - mean) / std
    offsets = -(centres**2).sum(axis=1) + np.array(bias)
    weights = [
        numpy_helper.from_array((2 * centres).astype(np.float32).reshape(len(colours), 3, 1, 1), "weight"),
        numpy_helper.from_array(offsets.astype(np.float32), "offset"),
    ]
    height, width = ("height", "width") if any_size else size
    if output == "logits":
        nodes = [
            helper.make_node("AveragePool", ["images"], ["small"], kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1),
            helper.make_node("Conv", ["small", "weight", "offset"], ["logits"]),
        ]
        shape: list[Any] = ["h", "w"] if any_size else [-(-size[0] // 4), -(-size[1] // 4)]
        given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch or "batch", len(colours), *shape])
    else:
        nodes = [
            helper.make_node("Conv", ["images", "weight", "offset"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
            helper.make_node("Cast", ["best"], ["mask"], to=TensorProto.UINT8),
        ]
        given = helper.make_tensor_value_info("mask", TensorProto.UINT8, [batch or "batch", height, width])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch or "batch", 3, height, width])
    graph = helper.make_graph(nodes, "segmenter", [images], [given], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    parent = Parent("weights", "random", seed=seed) if seed is not None else Parent("weights", "w.pth", sha256="0" * 64)
    passport = Passport("export", (parent,), spec.to_dict(), {"precision": "fp32", **facts})
    write_with_passport(path, model.SerializeToString(), passport)
    return path


def scene(seed: int, size: tuple[int, int] = (48, 80)) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) of coloured boxes, and the class of each pixel (H, W)."""
    rng = np.random.default_rng(seed)
    labels = np.full(size, rng.integers(5), np.uint8)
    for _ in range(4):
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        labels[top : top + size[0] // 2, left : left + size[1] // 2] = rng.integers(5)
    return np.array(COLOURS, np.uint8)[labels], labels


def ade20k(root: Path, count: int, *, split: str = "validation", shift: int = 1, border: int = 2) -> Path:
    """Pictures and masks in ADE20K's layout: 0 for no class on a border, and classes counted from 1."""
    for number in range(count):
        pixels, labels = scene(number, (48 + number, 80))
        labels = labels + np.uint8(shift)
        labels[:border] = 0 if shift else 255
        for folder, values, suffix in (("images", pixels, "jpg"), ("annotations", labels, "png")):
            path = root / folder / split / f"ADE_val_{number:08}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path, **({"quality": 95} if suffix == "jpg" else {}))
    return root


def passport_of(path: Path) -> dict[str, Any]:
    """The passport's JSON."""
    document = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document
