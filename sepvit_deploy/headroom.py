"""How much of FP16's range a float32 graph needs, measured on real images: what overflows, what becomes subnormal.

Every tensor that the images reach is reduced to four numbers an image by nodes added to the graph, so that one pass
over the images is enough and no tensor leaves ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy import graph as graphs
from sepvit_deploy.errors import GraphError, HeadroomFailed, ImageError
from sepvit_deploy.half import LARGEST, MOVES, SMALLEST_NORMAL
from sepvit_deploy.placement import require_flat
from sepvit_deploy.runners.batches import InBatches
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from sepvit_deploy.runners.base import Array

AT_ONCE = 2
"""Images that the graph runs on: ONNX Runtime keeps most tensors until the end, 230 MB an image of SepViT-T."""
_STATISTICS = ("largest", "beyond", "nonzero", "normal")


@dataclass(frozen=True)
class TensorHeadroom:
    """What one tensor needs of FP16's range.

    Attributes:
        tensor: its name; node: which makes it, the tensor's own name for an input.
        largest: |x|; inf where a value is not finite.
        beyond: values beyond FP16's range, those included that are not finite.
        subnormal: share of the values other than 0 that FP16 holds with less than its full precision, or as 0.
        image: where the largest |x| is.
    """

    tensor: str
    node: str
    largest: float
    beyond: int
    subnormal: float
    image: str

    @property
    def share(self) -> float:
        """Of FP16's largest number, that |x| reaches."""
        return self.largest / LARGEST


@dataclass(frozen=True)
class Headroom:
    """Every tensor, those that need most of the range first."""

    tensors: tuple[TensorHeadroom, ...]
    images: int

    def require_finite(self, name: str) -> None:
        """Make the report a gate.

        Args:
            name: of the file, for the error.

        Raises:
            HeadroomFailed: a tensor leaves FP16's range; the worst is named with its image.
        """
        over = [tensor for tensor in self.tensors if tensor.beyond]
        if over:
            worst = over[0]
            more = f", and {len(over) - 1} more tensors do" if len(over) > 1 else ""
            raise HeadroomFailed(
                f"{worst.tensor} of {name} reaches {worst.largest:.4g} on {worst.image}{more}",
                expected=f"at most {LARGEST:g}, FP16's largest",
                hint=f"keep {worst.node} and what reads it in FP32 with --keep",
            )


def headroom(
    model: onnx.ModelProto, batches: Iterable[tuple[Sequence[str], Array]], *, threads: int | None = None
) -> Headroom:
    """Measure a float32 graph.

    Args:
        batches: names of the images, and the images (B, 3, H, W).
        threads: of an operator; None for ONNX Runtime's choice.

    Raises:
        GraphError: not one flat graph with one image input, or a tensor without the images along its first axis.
        ImageError: there is no image.
    """
    require_flat(model)
    nodes = dict(_reached(model))
    runner = InBatches(OnnxRuntimeRunner(_measuring(model, list(nodes)), name="the graph", threads=threads))
    seen = {tensor: _Seen() for tensor in nodes}
    count = 0
    for batch_names, batch in batches:
        count += len(batch)
        for start in range(0, len(batch), AT_ONCE):
            names = batch_names[start : start + AT_ONCE]
            statistics = runner.run(batch[start : start + AT_ONCE])
            for i, tensor in enumerate(nodes):
                seen[tensor].add(tensor, names, *(statistics[f"{i}/{name}"] for name in _STATISTICS))
    if not count:
        raise ImageError("a measurement of no images", expected="at least one")
    found = (part.result(tensor, nodes[tensor]) for tensor, part in seen.items())
    return Headroom(tuple(sorted(found, key=lambda tensor: (-tensor.beyond, -tensor.largest))), count)


class _Seen:
    """What was seen of one tensor so far."""

    def __init__(self) -> None:
        self._largest = -1.0
        self._image = ""
        self._beyond = self._nonzero = self._normal = 0

    def add(self, tensor: str, names: Sequence[str], *statistics: NDArray[np.float32]) -> None:
        """Statistics of a batch, (rows, 1) each: the rows of an image follow each other."""
        import numpy as np

        if any(len(rows) % len(names) for rows in statistics):
            found = f"{tensor} has {len(statistics[0])} rows for {len(names)} images"
            raise GraphError(found, expected="images along the first axis")
        largest, beyond, nonzero, normal = (rows.reshape(len(names), -1) for rows in statistics)
        by_image = np.where(beyond.any(axis=1) & ~(largest.max(axis=1) > LARGEST), np.inf, largest.max(axis=1))
        worst = int(np.argmax(by_image))
        if by_image[worst] > self._largest:
            self._largest, self._image = float(by_image[worst]), names[worst]
        self._beyond += int(beyond.sum(dtype=np.float64))
        self._nonzero += int(nonzero.sum(dtype=np.float64))
        self._normal += int(normal.sum(dtype=np.float64))

    def result(self, tensor: str, node: str) -> TensorHeadroom:
        """All of it."""
        subnormal = (self._nonzero - self._normal) / self._nonzero if self._nonzero else 0.0
        return TensorHeadroom(tensor, node, self._largest, self._beyond, subnormal, self._image)


def _reached(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Float32 tensors that depend on the input, and the node that makes each; the input first.

    What only moves data makes no new numbers, and is left out.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    constants = {tensor.name for tensor in model.graph.initializer}
    reached = {value.name for value in model.graph.input if value.name not in constants}
    yield from ((name, name) for name in reached & floats)
    for node in model.graph.node:
        if not reached.isdisjoint(node.input):
            reached.update(node.output)
            made = () if node.op_type in MOVES else node.output
            yield from ((output, node.name or output) for output in made if output in floats)


def _measuring(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy that gives the statistics of each tensor, (rows, 1) each, instead of its outputs."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "/axis"))
    for name, limit in (("/0", 0.0), ("/normal", SMALLEST_NORMAL), ("/largest", LARGEST)):
        graph.initializer.append(numpy_helper.from_array(np.array(limit, np.float32), name))
    axes_are_input = graphs.opset(model) >= 18

    def maximum(source: str, target: str) -> onnx.NodeProto:
        if axes_are_input:
            return helper.make_node("ReduceMax", [source, "/axis"], [target])
        return helper.make_node("ReduceMax", [source], [target], axes=[1])

    of: dict[str, list[onnx.NodeProto]] = {}
    for i, tensor in enumerate(tensors):
        own = [
            helper.make_node("Flatten", [tensor], [f"{i}/flat"], axis=1),
            helper.make_node("Abs", [f"{i}/flat"], [f"{i}/abs"]),
            maximum(f"{i}/abs", f"{i}/largest"),
            helper.make_node("LessOrEqual", [f"{i}/abs", "/largest"], [f"{i}/within"]),
            helper.make_node("Not", [f"{i}/within"], [f"{i}/is_beyond"]),
            helper.make_node("Greater", [f"{i}/abs", "/0"], [f"{i}/is_nonzero"]),
            helper.make_node("GreaterOrEqual", [f"{i}/abs", "/normal"], [f"{i}/is_normal"]),
        ]
        for name in _STATISTICS[1:]:
            own.append(helper.make_node("Cast", [f"{i}/is_{name}"], [f"{i}/as_{name}"], to=onnx.TensorProto.FLOAT))
            own.append(helper.make_node("ReduceSum", [f"{i}/as_{name}", "/axis"], [f"{i}/{name}"]))
        of[tensor] = own
    nodes = [made for value in graph.input for made in of.get(value.name, ())]
    for node in graph.node:
        nodes += (node, *(made for output in node.output for made in of.get(output, ())))
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    names = (f"{i}/{name}" for i in range(len(tensors)) for name in _STATISTICS)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return changed
