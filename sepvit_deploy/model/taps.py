"""Named intermediates: the same addresses in the reference, the rewritten model and the exported graph.

A tap is ``stage1.block0.dwa``: what it is called, which module's input or output it is, and how its numbers lie. Both
forms of the model name their modules alike, so one walk serves both; `Tap.as_map` brings every layout to one.

Layouts: ``tokens`` (B, H*W, C), ``nhwc``, ``nchw``, ``windows`` (B, K, N or N + 1, C) with a window token first,
``heads`` (B, h, K, N, d) in any rank, its first axis B and its last d or N*d.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sepvit_deploy.heads import FPN_CHANNELS, NECK_CHANNELS, POOL_SCALES, UPERNET_CHANNELS, Head
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import HEAD_WIDTH, BlockShape, Variant, block_shapes, map_sizes, variant_named

if TYPE_CHECKING:
    import numpy as np

Layout = Literal["tokens", "nhwc", "nchw", "windows", "heads"]


@dataclass(frozen=True)
class Tap:
    """One named intermediate.

    Attributes:
        name: its address, e.g. ``stage1.block0.dwa``.
        module: the module's path in the model.
        at: whether it is what the module takes or what it gives.
        height, width: of the map it lies on, padding to whole windows included where it is taken in windows.
        side: the window side, or 0 where it is not in windows.
        channels: C.
    """

    name: str
    module: str
    at: Literal["input", "output"]
    layout: Layout
    height: int
    width: int
    side: int
    channels: int

    def as_map(self, x: np.ndarray) -> np.ndarray:
        """Bring a value of this tap to (B, H, W, C)."""
        h, w, c, side = self.height, self.width, self.channels, self.side
        if self.layout == "nhwc":  # as it is: of a model for any size, the image decides height and width
            return x
        if self.layout == "tokens":
            return x.reshape(-1, h, w, c)
        if self.layout == "nchw":
            return x.transpose(0, 2, 3, 1)
        rows, columns = h // side, w // side
        if self.layout == "windows":
            x = x[:, :, -side * side :].reshape(-1, rows, columns, side, side, c)
            return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, h, w, c)
        x = x.reshape(-1, c // HEAD_WIDTH, rows, columns, side, side, HEAD_WIDTH)
        return x.transpose(0, 2, 4, 3, 5, 1, 6).reshape(-1, h, w, c)


def taps(spec: ModelSpec, *, deployed: bool) -> Iterator[Tap]:
    """Walk the taps of a model, in the order of computation.

    Args:
        deployed: of the rewritten model and its graphs, rather than of the reference.
    """
    variant = variant_named(spec.variant)
    blocks = list(block_shapes(variant, spec.task, spec.size))
    # A graph for any size keeps its maps channels last, as the reference does; what lies in windows it cannot undo.
    flat: Layout = "tokens" if deployed and not spec.any_size else "nhwc"
    first = "backbone." if spec.task == "segment" else ""
    for i, (height, width) in enumerate(map_sizes(spec.size)):
        channels = variant.channels[i]
        plain = (height, width, 0, channels)
        yield Tap(f"stage{i}.embed", f"{first}stages.{i}.embed", "output", flat, *plain)
        for block in (shape for shape in blocks if shape.stage == i):
            module = f"{first}stages.{i}.blocks.{block.block}"
            if not spec.any_size:
                yield from _windowed(block, module, (height, width), deployed=deployed)
            yield Tap(f"{block.name}.attention", f"{module}.norm2", "input", flat, *plain)
            yield Tap(f"{block.name}.mlp", module, "output", flat, *plain)
            if block.block == 0:
                layout: Layout = "nchw" if deployed and not spec.any_size else "nhwc"
                yield Tap(f"stage{i}.peg", f"{first}stages.{i}.peg", "output", layout, *plain)
    if spec.head is not None:
        yield from _of_head(spec.head, variant, map_sizes(spec.size))


def _windowed(block: BlockShape, module: str, size: tuple[int, int], *, deployed: bool) -> Iterator[Tap]:
    """What a block computes in windows."""
    height, width = (-(-length // block.side) * block.side for length in size)
    place = (height, width, block.side, block.channels)
    layout: Layout = "windows"
    if deployed:
        layout = "heads" if block.windows else "tokens"
    yield Tap(f"{block.name}.dwa", f"{module}.attention.dwa", "output", layout, *place)
    if block.windows:
        yield Tap(f"{block.name}.pwa", f"{module}.attention.pwa", "output", layout, *place)


def _of_head(head: Head, variant: Variant, maps: list[tuple[int, int]]) -> Iterator[Tap]:
    """What neck and decode head give on the way."""

    def tap(module: str, size: tuple[int, int], channels: int) -> Tap:
        return Tap(module, module, "output", "nchw", *size, 0, channels)

    if head == "fpn":
        for k, size in enumerate(maps):
            yield tap(f"neck.outputs.{k}", size, NECK_CHANNELS)
        for k in range(len(maps)):
            yield tap(f"decode_head.branches.{k}", maps[0], FPN_CHANNELS)
        return
    for k, scale in enumerate(POOL_SCALES):
        yield tap(f"decode_head.pooling.convs.{k}", (scale, scale), UPERNET_CHANNELS)
    yield tap("decode_head.bottleneck", maps[-1], UPERNET_CHANNELS)
    for kind in ("laterals", "outputs"):
        for k, size in enumerate(maps[:-1]):
            yield tap(f"decode_head.{kind}.{k}", size, UPERNET_CHANNELS)
    yield tap("decode_head.fusion", maps[0], UPERNET_CHANNELS)
