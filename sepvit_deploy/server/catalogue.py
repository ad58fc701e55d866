"""What is offered, in the words of the protocol: metadata, configuration, the index. Pure.

A classifier is offered twice: as it is, and as its classify model, from encoded pictures to classes; a segmentation
model likewise, as its segment model, from encoded pictures to masks. K = 5 classes, or as many as there are.
"""

from __future__ import annotations

from typing import Any

from sepvit_deploy.classes import TOP
from sepvit_deploy.contract import CLASS, IMAGE, LABEL, MASK, SCORE, classify_name, segment_name
from sepvit_deploy.server.lane import Lane
from sepvit_deploy.server.protocol import Signature
from sepvit_deploy.server.values import Tensor

EXTENSIONS = ("model_configuration", "binary_tensor_data", "statistics", "parameters")
_TYPES = {"FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "UINT8": "TYPE_UINT8", "BYTES": "TYPE_STRING"}
_CLASSES = ((CLASS, "INT64"), (LABEL, "BYTES"), (SCORE, "FP32"))


def signatures(name: str, lane: Lane) -> dict[str, Signature]:
    """The models that a lane offers, by name."""
    spec = lane.model.spec
    outputs = tuple(Tensor(output, lane.types[output], (None, *shape)) for output, shape in lane.outputs.items())
    images = Tensor(spec.input_name, "FP32", (None, 3, *spec.size))
    if spec.any_size:
        images = Tensor(spec.input_name, "FP32", (None, 3, None, None), within=spec.size)
    found = {name: Signature(name, images, outputs, lane.max_batch)}
    if spec.task == "classify":
        top = min(TOP, spec.num_classes)
        given = tuple(Tensor(output, kind, (None, top)) for output, kind in _CLASSES)
        other = classify_name(name)
        found[other] = Signature(other, Tensor(IMAGE, "BYTES", (None, 1)), given, lane.max_batch)
    elif spec.task == "segment":
        other = segment_name(name)
        masks = Tensor(MASK, "BYTES", (None, 1), encoded=True)
        found[other] = Signature(other, Tensor(IMAGE, "BYTES", (None, 1)), (masks,), lane.max_batch)
    return found


def metadata(signature: Signature, lane: Lane) -> dict[str, Any]:
    """Of one model; ``parameters`` says which file serves."""
    return {
        "name": signature.model,
        "versions": [str(lane.version)],
        "platform": lane.model.platform if signature.input.datatype == "FP32" else "ensemble",
        "inputs": [_declared(signature.input)],
        "outputs": [_declared(output) for output in signature.outputs],
        "parameters": {"sha256": lane.model.sha256, "max_batch_size": signature.max_batch},
    }


def configuration(signature: Signature, lane: Lane, delay_us: int) -> dict[str, Any]:
    """As Triton describes a model of the same tensors and the same batching."""
    return {
        "name": signature.model,
        "platform": metadata(signature, lane)["platform"],
        "backend": "",
        "max_batch_size": signature.max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [_configured(signature.input)],
        "output": [_configured(output) for output in signature.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": delay_us},
        "parameters": {"sha256": {"string_value": lane.model.sha256}},
    }


def index(names: list[str], lane: Lane, state: str) -> list[dict[str, str]]:
    """The repository's index: every model is of one file."""
    return [{"name": name, "version": str(lane.version), "state": state, "reason": ""} for name in names]


def _declared(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": _dims(tensor)}


def _configured(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": _TYPES[tensor.datatype], "dims": _dims(tensor)[1:]}


def _dims(tensor: Tensor) -> list[int]:
    return [-1 if dim is None else dim for dim in tensor.shape]
