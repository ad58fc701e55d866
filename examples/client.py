"""Classify or segment pictures on a server, by the Open Inference Protocol: `sepvit-deploy serve` and Triton alike.

    python examples/client.py [--url 127.0.0.1:8000] MODEL PICTURE...
    python examples/client.py [--url 127.0.0.1:8000] --segment MODEL PICTURE...

MODEL is the model's name, as `serve --name` or `triton --name` gave it. With --segment, the mask of each picture is
written here as PICTURE.mask.png, whose values are class numbers. Needs the extra `serving`, for tritonclient.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main() -> None:
    """Send the pictures as they are; print the classes of each, best first, or write its mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8000")
    parser.add_argument("--segment", action="store_true", help="masks, of a segmentation model")
    parser.add_argument("model")
    parser.add_argument("pictures", nargs="+", type=Path)
    options = parser.parse_args()
    try:
        with triton.InferenceServerClient(options.url.removeprefix("http://").rstrip("/")) as client:
            (segment if options.segment else classify)(client, options.model, options.pictures)
    except (OSError, InferenceServerException) as error:
        sys.exit(f"error: {error}")


def classify(client: Any, model: str, pictures: list[Path]) -> None:
    """All pictures in one batch."""
    answer = ask(client, f"{model}_classify", pictures)
    for picture, labels, scores in zip(pictures, answer.as_numpy("label"), answer.as_numpy("score"), strict=True):
        ranked = ", ".join(f"{label.decode()} {score:.1%}" for label, score in zip(labels, scores, strict=True))
        print(f"{picture}: {ranked}")


def segment(client: Any, model: str, pictures: list[Path]) -> None:
    """One picture in a request, for a model of any size takes only pictures of one shape together."""
    masks: dict[Path, Path] = {}
    for picture in pictures:
        mask = Path(f"{picture.stem}.mask.png")
        if other := masks.get(mask):
            sys.exit(f"error: {other} and {picture} would both be written to {mask}; rename one of them")
        masks[mask] = picture
    for mask, picture in masks.items():
        mask.write_bytes(ask(client, f"{model}_segment", [picture]).as_numpy("mask")[0, 0])
        print(f"{picture}: {mask}")


def ask(client: Any, model: str, pictures: list[Path]) -> Any:
    """Send encoded pictures, (B, 1)."""
    encoded = np.array([[picture.read_bytes()] for picture in pictures], dtype=np.object_)
    image = triton.InferInput("image", list(encoded.shape), "BYTES")
    image.set_data_from_numpy(encoded)
    return client.infer(model, [image])


if __name__ == "__main__":
    main()
