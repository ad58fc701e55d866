"""Images to a scale table: run the graph, watch the tensors that may become INT8, choose where to clip each.

One pass over the images. Memory holds one batch of the tensors in work and one being counted, whatever the number of
images: the counting runs beside the next batch.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.artifact import tool_versions
from sepvit_deploy.errors import GraphError, ImageError, OptionError
from sepvit_deploy.image_sets import decoded
from sepvit_deploy.placement import observed
from sepvit_deploy.ranges import BINS, LEAST_PERCENTILE, Histogram, Method, method_named, settings, threshold
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.scales import LEAST_THRESHOLD, ImagesUsed, ScaleTable, TensorRange, weights_digest

if TYPE_CHECKING:
    import onnx

    from sepvit_deploy.image_sets import ImageSet
    from sepvit_deploy.runners.base import Array
    from sepvit_deploy.spec import Preprocessing


def calibrate(
    model: onnx.ModelProto,
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    graph_sha256: str,
    method: str = "percentile",
    percentile: float = 99.99,
    batch: int = 8,
    attention: bool = False,
    everything: bool = False,
    threads: int | None = None,
    max_unreadable: int = 10,
    progress: Callable[[float], None] = lambda share: None,
    warn: Callable[[str], None] = lambda text: None,
) -> ScaleTable:
    """Measure the ranges of a float32 graph's tensors on images. Equal arguments give an equal table.

    Args:
        graph_sha256: of the ONNX file that ``model`` was read from.
        method: ``percentile``, ``entropy``, ``mse`` or ``minmax``; ``percentile`` is in per cent of |x|.
        batch: images at a time, fewer where neighbours differ in size; a graph of a fixed batch uses its own.
        attention, everything: see `placement.observed`.
        threads: of an operator; None for ONNX Runtime's choice.
        max_unreadable: images to pass over; one more ends the calibration.
        progress: called with the share done, 0 to 1.

    Raises:
        OptionError: a method, percentile, batch or number of threads that is none.
        ImageError: too many unreadable images, none left, or images that are all the same.
        GraphError: no float32 graph of SepViT, or a tensor that is not finite, or never anything but zero.
    """
    _require_options(percentile, batch, threads)
    chosen = method_named(method)
    names = observed(model, attention=attention, everything=everything)
    runner = OnnxRuntimeRunner(_watched(model, names), name="the graph", threads=threads)
    batch = runner.input_shape[0] or batch
    skipped: list[Path] = []

    def skip(path: Path, reason: str) -> None:
        skipped.append(path)
        warn(f"passed over: {reason}")

    watch = _Watch(names, images, bins=0 if chosen == "minmax" else BINS)
    stream = decoded(images, preprocessing, max_unreadable=max_unreadable, skipped=skip)
    with ThreadPoolExecutor(max_workers=1) as pool:
        counting: Future[None] | None = None
        for indices, inputs in _batches(stream, batch):
            tensors = _run(runner, inputs)
            if counting:
                counting.result()
            counting = pool.submit(watch.add, indices, inputs, tensors)
            del tensors  # the counting thread lets go of each array once it is counted
            progress((indices[-1] + 1) / len(images.files))
        if counting:
            counting.result()
    used = len(images.files) - len(skipped)
    watch.require_varied(used)
    return ScaleTable(
        graph_sha256=graph_sha256,
        weights_sha256=weights_digest(model),
        images=ImagesUsed(images.name, images.sha256, used, len(skipped)),
        preprocessing=preprocessing.to_dict(),
        method=chosen,
        settings=settings(chosen, percentile),
        batch=batch,
        tools=tool_versions() | {"pillow": importlib.metadata.version("pillow")},
        tensors={name: _range(name, seen, chosen, percentile) for name, seen in watch.histograms.items()},
    )


class _Watch:
    """What was seen of each tensor, and whether the images can tell anything."""

    def __init__(self, names: Sequence[str], images: ImageSet, *, bins: int) -> None:
        self.histograms = {name: Histogram(bins) for name in names}
        self._images = images
        self._first: Array | None = None
        self._differ = self._structured = False

    def add(self, indices: Sequence[int], inputs: Array, tensors: dict[str, Array]) -> None:
        """One batch: positions of its images, inputs (B, 3, H, W), and tensors, which are taken out of the dictionary.

        A tensor that is not there is the input.
        """
        if self._first is None:
            self._first = inputs[0].copy()
        same_size = inputs.shape[1:] == self._first.shape
        self._differ = self._differ or not same_size or bool((inputs != self._first).any())
        self._structured = self._structured or bool((inputs != inputs[:, :, :1, :1]).any())
        for name, histogram in self.histograms.items():
            values = tensors.pop(name, inputs)
            try:
                histogram.add(values)
            except ValueError as error:
                raise self._not_finite(name, values, indices) from error

    def _not_finite(self, name: str, values: Array, indices: Sequence[int]) -> GraphError:
        import numpy as np

        finite = np.isfinite(values).reshape(len(indices), -1).all(axis=1)
        path = self._images.files[indices[int(np.argmin(finite))]]
        return GraphError(
            f"{name} has numbers that are not finite on {path}",
            expected="finite activations",
            hint="check the weights, or leave this image out",
        )

    def require_varied(self, count: int) -> None:
        """Refuse images from which no range can be learnt.

        Raises:
            ImageError: there is none, all are the same, or each is of a single colour.
        """
        name = self._images.name
        if not count:
            raise ImageError(f"no image of {name} can be read", expected="real images, as the model will see")
        if count > 1 and not self._differ:
            found = f"all {count} images of {name} are the same once they are resized and cropped"
            raise ImageError(found, expected="different images, as the model will see")
        if not self._structured:
            raise ImageError(f"every image of {name} is of a single colour", expected="real images")


def _require_options(percentile: float, batch: int, threads: int | None) -> None:
    for option, value in (("--batch", batch), ("--threads", threads)):
        if value is not None and value < 1:
            raise OptionError(f"{option} {value}", expected="1 or more")
    if not LEAST_PERCENTILE <= percentile <= 100:
        raise OptionError(f"--percentile {percentile:g}", expected=f"{LEAST_PERCENTILE:g} to 100, such as 99.99")


def _watched(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy whose outputs are the tensors ``names``, but its inputs."""
    from onnx import ModelProto, ValueInfoProto

    watched = ModelProto()
    watched.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    if inner := [name for name in names if name not in inputs]:
        del watched.graph.output[:]
        watched.graph.output.extend(ValueInfoProto(name=name) for name in inner)
    return watched


def _batches(stream: Iterator[tuple[int, Array]], size: int) -> Iterator[tuple[list[int], Array]]:
    """Positions and inputs (B, 3, H, W) of neighbours of one height and width, ``size`` of them at most."""
    import numpy as np

    for _, alike in groupby(stream, key=lambda one: one[1].shape):
        while chunk := list(islice(alike, size)):
            yield [index for index, _ in chunk], np.stack([values for _, values in chunk])


def _run(runner: OnnxRuntimeRunner, inputs: Array) -> dict[str, Array]:
    """Tensors of a batch; a graph of a larger batch gets the last image again, and the rows of that are dropped."""
    import numpy as np

    batch, own = runner.input_shape[0] or len(inputs), len(inputs)
    tensors = runner.run(np.pad(inputs, ((0, batch - own), (0, 0), (0, 0), (0, 0)), mode="edge"))
    for name, values in tensors.items():
        if values.dtype != np.float32:
            found = f"{name} is {values.dtype}"
            raise GraphError(found, expected="float32 tensors", hint="calibrate the FP32 file")
        if not values.ndim or len(values) % batch or not values.size:
            found = f"{name} has shape {values.shape} for {batch} images"
            raise GraphError(found, expected="images along the first axis")
        tensors[name] = values[: len(values) // batch * own]
    return tensors


def _range(name: str, seen: Histogram, method: Method, percentile: float) -> TensorRange:
    clip = threshold(seen, method, percentile) if seen.largest else 0.0
    if clip < LEAST_THRESHOLD:
        raise GraphError(
            f"{name} is {'0 everywhere' if not seen.largest else f'at most {seen.largest:g}'}, on every image",
            expected="values to measure a range on",
            hint="check the weights and the preprocessing",
        )
    return TensorRange(seen.minimum, seen.maximum, clip)
