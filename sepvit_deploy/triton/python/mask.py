"""What a segmentation model gives to ``mask``, a PNG for each picture, inside Triton's Python backend.

Beside this file lies what it runs. B batch, C classes, h x w logits.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


class TritonPythonModel:
    """What Triton's Python backend asks for by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the colours beside this file, and load what writes pictures."""
        folder = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(folder))  # before any package of that name that is installed
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        for package, name in (("numpy", "numpy"), ("PIL", "pillow")):
            try:
                importlib.import_module(package)
            except ImportError as error:
                text = f"Triton's Python has no usable {package} ({error}); type: python3 -m pip install {name}"
                raise self._triton.TritonModelException(text) from error
        settings = json.loads((folder / "masking.json").read_text(encoding="utf-8"))
        self._colours = [tuple(colour) for colour in settings["palette"]]
        self._given = json.loads(args["model_config"])["input"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request of a batch: logits that are not finite fail their own request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        import numpy as np

        from sepvit_deploy.errors import InputError

        triton = self._triton
        try:
            masks = np.array([[png] for png in self._masks(request)], dtype=np.object_)  # (B, 1)
            return triton.InferenceResponse([triton.Tensor("mask", masks)])
        except InputError as error:
            problem = triton.TritonError(str(error), triton.TritonError.INVALID_ARG)
        except MemoryError:
            problem = triton.TritonError("out of memory", triton.TritonError.UNAVAILABLE)
        return triton.InferenceResponse(error=problem)

    def _masks(self, request: Any) -> list[bytes]:
        from sepvit_deploy.masks import class_mask, mask_png

        names = (self._given, "input_size", "picture_size")
        given, inputs, pictures = (self._triton.get_input_tensor_by_name(request, name).as_numpy() for name in names)
        found = []
        for index, (size, picture) in enumerate(zip(inputs.tolist(), pictures.tolist(), strict=True)):
            input_size, picture_size = ((height, width) for height, width in (size, picture))
            mask = class_mask({self._given: given}, index, input_size=input_size, picture_size=picture_size)
            found.append(mask_png(mask, self._colours))
        return found
