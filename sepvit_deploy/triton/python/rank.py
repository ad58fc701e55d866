"""``logits`` to classes, labels and scores, inside Triton's Python backend; beside this file lies what it runs.

B batch, C classes, K classes that are given.
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
        """Read the labels beside this file."""
        folder = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(folder))  # before any package of that name that is installed
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        try:
            import numpy as np
        except ImportError as error:
            text = f"Triton's Python has no usable numpy ({error}); type: python3 -m pip install numpy"
            raise self._triton.TritonModelException(text) from error
        settings = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
        self._top = int(settings["top"])
        self._labels = np.array([label.encode() for label in settings["labels"]], dtype=np.object_)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request of a batch: logits that are not finite fail their own request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        import numpy as np

        from sepvit_deploy.classes import ranked
        from sepvit_deploy.errors import InputError

        triton = self._triton
        logits = triton.get_input_tensor_by_name(request, "logits").as_numpy()  # (B, C)
        try:
            best, scores = ranked(logits, self._top)  # (B, K)
        except InputError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error), triton.TritonError.INVALID_ARG))
        outputs = {"class": best.astype(np.int64), "label": self._labels[best], "score": scores.astype(np.float32)}
        return triton.InferenceResponse([triton.Tensor(name, value) for name, value in outputs.items()])
