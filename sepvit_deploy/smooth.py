"""SmoothQuant at norm2 -> fc1: what is hard to quantise moves from the activations into the weights, exactly.

Each channel j of norm2's output is divided by s_j = max|x_j| ** alpha / max|w_j| ** (1 - alpha), and row j of fc1's
weight multiplied by it. The division goes into norm2's weight and bias, so the graph stays float32, keeps its nodes and
computes the same; it is calibrated and quantised like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy.errors import GraphError, ImageError, OptionError
from sepvit_deploy.placement import Site, sites
from sepvit_deploy.runners.batches import InBatches
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from sepvit_deploy.runners.base import Array


@dataclass(frozen=True)
class Pair:
    """A LayerNorm that only one linear layer reads.

    Attributes:
        gain, shift: the LayerNorm's weight and bias, (C,); site: the linear layer, weight (C, out).
    """

    gain: str
    shift: str
    site: Site


def pairs(model: onnx.ModelProto) -> list[Pair]:
    """Every norm2 -> fc1 of a graph, in graph order.

    Raises:
        GraphError: there is none, or one whose LayerNorm or constants something else reads.
    """
    producer = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    found = []
    for site in sites(model):
        norm = producer.get(site.activation)
        if not site.group.endswith(".fc1") or norm is None or norm.op_type != "LayerNormalization":
            continue
        if len(norm.input) != 3 or not constants.issuperset(norm.input[1:]):
            raise GraphError(f"{norm.name} has no constant weight and bias", expected="a LayerNorm as export writes it")
        pair = Pair(norm.input[1], norm.input[2], site)
        for name in (pair.gain, pair.shift, site.activation, site.weight):
            readers = [node.name for node in model.graph.node for read in node.input if read == name]
            if len(readers) != 1 or name in outputs:
                raise GraphError(
                    f"{name} is read by {', '.join(readers)}" + (" and is an output" if name in outputs else ""),
                    expected=f"one reader, for {site.name} to be smoothed",
                )
        found.append(pair)
    if not found:
        raise GraphError("the graph has no LayerNorm in front of an mlp.fc1", expected="a graph as export writes it")
    return found


def channel_maxima(
    model: onnx.ModelProto, batches: Iterable[Array], *, threads: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """Largest |x| of each channel of what `pairs` norm, (C,), by the tensor's name.

    Args:
        batches: images (B, 3, H, W).
        threads: of an operator; None for ONNX Runtime's choice.

    Raises:
        GraphError: as `pairs`, or a value is not finite.
        ImageError: there is no image.
    """
    import numpy as np
    import onnx

    names = [pair.site.activation for pair in pairs(model)]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    runner = InBatches(OnnxRuntimeRunner(watched, name="the graph", threads=threads))
    maxima: dict[str, NDArray[np.float32]] = {}
    for images in batches:
        for name, values in runner.run(images).items():
            largest = np.abs(values).max(axis=tuple(range(values.ndim - 1)))
            maxima[name] = np.maximum(maxima.get(name, largest), largest)
    if not maxima:
        raise ImageError("a measurement of no images", expected="at least one")
    for name, largest in maxima.items():
        if not np.isfinite(largest).all():
            raise GraphError(f"{name} has numbers that are not finite", expected="finite activations")
    return maxima


def smooth(model: onnx.ModelProto, maxima: Mapping[str, NDArray[np.float32]], *, alpha: float = 0.5) -> onnx.ModelProto:
    """Smooth a copy of a float32 graph; a channel that is 0 throughout, in x or in w, stays as it is.

    Args:
        maxima: of every tensor that `channel_maxima` names.
        alpha: 0 leaves the difficulty with the activations, 1 moves all of it to the weights.

    Raises:
        OptionError: alpha is not within 0 and 1.
        GraphError: as `pairs`, or the maxima are not of this graph.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    if not 0 <= alpha <= 1:
        raise OptionError(f"--smooth {alpha:g}", expected="0 to 1, such as 0.5")
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in smoothed.graph.initializer}
    found = pairs(model)
    if unknown := maxima.keys() ^ {pair.site.activation for pair in found}:
        raise GraphError(f"the channel maxima do not fit the graph at {min(unknown)}", expected="those of this graph")
    for pair in found:
        names = (pair.gain, pair.shift, pair.site.weight)
        gain, shift, weight = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in names)
        x, w = maxima[pair.site.activation].astype(np.float64), np.abs(weight).max(axis=1)
        if x.shape != w.shape:
            raise GraphError(f"{pair.site.activation} has maxima of {x.shape}", expected=f"{w.shape}")
        used = (x > 0) & (w > 0)
        s = np.where(used, np.where(used, x, 1) ** alpha / np.where(used, w, 1) ** (1 - alpha), 1)
        for name, values in zip(names, (gain / s, shift / s, weight * s[:, None]), strict=True):
            constants[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    return smoothed
