"""Which release of Triton Inference Server carries which TensorRT: a small dated table, and "unknown" beyond it.

As of 2026-11-24. Source: triton-inference-server/server, docs/introduction/compatibility.md, which tells the TensorRT
of NVIDIA's framework containers of a month. That the image ``YY.MM-py3`` of the same month carries the same TensorRT is
NVIDIA's rule for the containers of a month; no image was pulled to see it.
"""

from __future__ import annotations

AS_OF = "2026-11-24"
IMAGES = {"10.13.3": "25.10-py3", "10.14.1": "25.12-py3"}
"""Release of TensorRT (major, minor, patch) to tag of the image."""
ALLOW_VERSION_COMPATIBLE = "--backend-config=tensorrt,version-compatible=true"
"""What tritonserver needs to be told before its TensorRT backend loads version-compatible plans: they bring code, which
it then runs. Source: triton-inference-server/tensorrt_backend, README.md."""


def image_for(version: str) -> str | None:
    """Tag of the image that carries a TensorRT, ``10.13.3.9``; None where this table does not know."""
    return IMAGES.get(".".join(version.split(".")[:3]))
