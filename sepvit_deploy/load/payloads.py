"""What is sent: requests whose bodies are made once, of random images or of pictures.

B images of a request, H x W the input's height and width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy.load.server import HEADER_LENGTH, Target
from sepvit_deploy.optional import require

if TYPE_CHECKING:
    import numpy as np

INPUTS = 16
"""Different requests that take turns; enough that a server which mixes answers up is noticed."""
MOST_BYTES = 1 << 28
"""Of all bodies together: large batches have fewer different requests, but two at the least."""


@dataclass(frozen=True)
class Payload:
    """A request, ready to be sent as often as one likes."""

    body: bytes
    headers: dict[str, str]

    def stream(self) -> io.BytesIO:
        """The body as a file: of bytes, the client would warn where they are many. They are shared, not copied."""
        return io.BytesIO(self.body)


def random_payloads(target: Target, size: tuple[int, int], batch: int, timeout_us: int | None) -> list[Payload]:
    """Requests of ``batch`` random images each, the same at every run.

    Each image is noise around a colour of its own, so that a network tells them apart.

    Args:
        size: height and width of the images, where the model takes any.
    """
    import numpy as np

    assert target.size is not None
    height, width = size if -1 in target.size else target.size
    count = min(INPUTS, max(2, MOST_BYTES // (batch * 3 * height * width * 4)))
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        colours = rng.normal(0, 1, (batch, 3, 1, 1))
        noise = rng.normal(0, 0.5, (batch, 3, height, width))
        found.append(_payload(target.input, "FP32", (colours + noise).astype(np.float32), timeout_us))
    return found


def picture_payloads(target: Target, files: Sequence[Path], batch: int, timeout_us: int | None) -> list[Payload]:
    """Requests of ``batch`` encoded pictures each, which take turns over ``files``.

    Raises:
        ImageError: a file cannot be read as a picture.
    """
    import numpy as np

    from sepvit_deploy.images import load_image

    count = min(INPUTS, len(files)) if batch == 1 else min(INPUTS, max(2, len(files) // batch))
    found = []
    for k in range(count):
        chosen = [files[(k * batch + i) % len(files)] for i in range(batch)]
        for file in chosen:
            load_image(file)  # a server would refuse it, and we would blame the server
        contents = np.array([[file.read_bytes()] for file in chosen], dtype=np.object_)  # (B, 1)
        found.append(_payload(target.input, "BYTES", contents, timeout_us))
    return found


def _payload(name: str, datatype: str, values: np.ndarray[Any, Any], timeout_us: int | None) -> Payload:
    client = require("tritonclient.http", extra="serving")
    tensor = client.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    body, length = client.InferenceServerClient.generate_request_body([tensor], timeout=timeout_us)
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length), "Content-Length": str(len(body))}
    return Payload(bytes(body), headers)
