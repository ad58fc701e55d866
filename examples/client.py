"""Classify pictures on a server, by the Open Inference Protocol: `sepvit-deploy serve` and Triton alike.

    python examples/client.py [--url 127.0.0.1:8000] MODEL PICTURE...

MODEL is the model's name, as `serve --name` or `triton --name` gave it. Needs the extra `serving`, for tritonclient.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main() -> None:
    """Send the pictures as they are, in one batch; print the classes of each, best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8000")
    parser.add_argument("model")
    parser.add_argument("pictures", nargs="+", type=Path)
    options = parser.parse_args()
    try:
        encoded = np.array([[picture.read_bytes()] for picture in options.pictures], dtype=np.object_)
        image = triton.InferInput("image", list(encoded.shape), "BYTES")
        image.set_data_from_numpy(encoded)
        with triton.InferenceServerClient(options.url.removeprefix("http://").rstrip("/")) as client:
            answer = client.infer(f"{options.model}_classify", [image])
    except (OSError, InferenceServerException) as error:
        sys.exit(f"error: {error}")
    for picture, labels, scores in zip(
        options.pictures, answer.as_numpy("label"), answer.as_numpy("score"), strict=True
    ):
        ranked = ", ".join(f"{label.decode()} {score:.1%}" for label, score in zip(labels, scores, strict=True))
        print(f"{picture}: {ranked}")


if __name__ == "__main__":
    main()
