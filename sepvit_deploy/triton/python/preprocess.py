"""Pictures to ``images``, inside Triton's Python backend; the folder of this file holds the package that it runs.

A request gives ``image`` or ``pixels``, and its own answer: what is no picture fails that request, and no other. For
masks, which are made behind the model, it gives the sizes of images and pictures, too.
B batch, H x W the model's input.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


class TritonPythonModel:
    """What Triton's Python backend asks for by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the numbers beside this file, and load what decodes pictures."""
        folder = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(folder))  # before any package of that name that is installed
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        for package, name in (("numpy", "numpy"), ("PIL", "pillow")):
            try:
                importlib.import_module(package)
            except ImportError as error:
                text = f"Triton's Python has no usable {package} ({error}); type: python3 -m pip install {name}"
                raise self._triton.TritonModelException(text) from error
        from sepvit_deploy.spec import Preprocessing

        settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        self._max_pixels = int(settings["max_pixels"])
        self._preprocessing = Preprocessing.from_dict(settings["preprocessing"])
        self._sizes = bool(settings.get("sizes"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request of a batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        from sepvit_deploy.errors import InputError

        triton = self._triton
        try:
            outputs = self._outputs(request)
            return triton.InferenceResponse([triton.Tensor(name, values) for name, values in outputs.items()])
        except InputError as error:
            problem = triton.TritonError(str(error), triton.TritonError.INVALID_ARG)
        except MemoryError:
            problem = triton.TritonError("out of memory", triton.TritonError.UNAVAILABLE)
        return triton.InferenceResponse(error=problem)

    def _outputs(self, request: Any) -> dict[str, NDArray[Any]]:
        """The pictures of a request, (B, 3, H, W), and where they are asked for the sizes, (B, 2) each."""
        import numpy as np

        from sepvit_deploy.errors import InputError
        from sepvit_deploy.images import decode_image, preprocess

        given = {name: self._triton.get_input_tensor_by_name(request, name) for name in ("image", "pixels")}
        present = {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}
        if len(present) != 1:
            raise InputError("both image and pixels" if present else "no input", expected="either image or pixels")
        ((kind, values),) = present.items()
        inputs: list[NDArray[np.float32]] = []
        sizes = []
        for number, value in enumerate(values, 1):
            name = f"picture {number} of {len(values)}"
            if kind == "image":
                picture = decode_image(value.item(), name=name, max_pixels=self._max_pixels)
            else:
                picture = self._from_pixels(value, name)
            inputs.append(preprocess(picture, self._preprocessing, name=name, max_pixels=self._max_pixels))
            sizes.append((picture.height, picture.width))
            if (size := inputs[-1].shape[1:]) != (first := inputs[0].shape[1:]):
                told = f"{name} becomes {size[0]}x{size[1]} pixels, and the first one {first[0]}x{first[1]}"
                raise InputError(told, expected="such pictures in requests of their own")
        outputs: dict[str, NDArray[Any]] = {"images": np.stack(inputs)}
        if self._sizes:
            outputs["input_size"] = np.array([image.shape[1:] for image in inputs], np.int64)
            outputs["picture_size"] = np.array(sizes, np.int64)
        return outputs

    def _from_pixels(self, pixels: NDArray[np.uint8], name: str) -> Image.Image:
        """A picture that is decoded already, (rows, columns, 3)."""
        from PIL import Image

        from sepvit_deploy.errors import ImageError

        rows, columns = pixels.shape[:2]
        if not 1 <= rows * columns <= self._max_pixels:
            most = f"1 to {self._max_pixels / 1e6:.10g} million pixels"
            raise ImageError(f"{name} has {rows}x{columns} pixels", expected=most)
        return Image.fromarray(pixels, "RGB")
