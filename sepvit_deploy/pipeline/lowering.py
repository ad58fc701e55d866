"""FP32 ONNX -> scale table -> FP16 or INT8 ONNX, each proven before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sepvit_deploy import artifact, parity
from sepvit_deploy.artifact import Parent, Passport
from sepvit_deploy.audit import audit
from sepvit_deploy.calibrate import calibrate as scales_from_images
from sepvit_deploy.errors import GraphError, ImageError, OptionError, PassportError
from sepvit_deploy.headroom import Headroom, headroom
from sepvit_deploy.image_sets import ImageSet, decoded, image_set
from sepvit_deploy.likeness import OF_PRECISION
from sepvit_deploy.lint import LintReport, lint
from sepvit_deploy.parity import Parity
from sepvit_deploy.pipeline.checking import RANDOM, onnx_runner, parity_facts, random_images
from sepvit_deploy.pipeline.opened import Opened, OpenedOnnx, Progress, Report, Warn, open_onnx
from sepvit_deploy.precision import Target, fp16_from_fp32, int8_from_fp32
from sepvit_deploy.scales import ScaleTable, read_scales, write_scales
from sepvit_deploy.smooth import channel_maxima
from sepvit_deploy.smooth import smooth as smooth_graph
from sepvit_deploy.spec import Preprocessing

if TYPE_CHECKING:
    import onnx

    from sepvit_deploy.runners.base import Array

HEADROOM_IMAGES = 64
"""Head-room is a matter of the largest values: it needs fewer images than ranges do."""
IMAGES_AT_ONCE = 4


@dataclass(frozen=True)
class Lowered:
    """What quantize made and proved.

    Attributes:
        parity: against the FP32 file, on random images.
        headroom: of FP16, where images were given and a part of the graph is FP16.
        quantized: layers in INT8; kept: layers that could be and are not; pairs: Q/DQ pairs of activations.
    """

    path: Path
    passport: Passport
    lint: LintReport
    parity: Parity
    headroom: Headroom | None
    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    pairs: int


def calibrate(
    path: Path,
    source: Path,
    output: Path,
    *,
    method: str = "percentile",
    percentile: float = 99.99,
    samples: int | None = None,
    batch: int = 8,
    attention: bool = False,
    threads: int | None = None,
    max_unreadable: int = 10,
    progress: Progress = lambda share: None,
    warn: Warn = lambda text: None,
) -> ScaleTable:
    """Write the scale table of an FP32 file, from images in a folder or a manifest.

    Raises:
        InputError: the file, the images or the output are unusable.
    """
    file = open_onnx(path)
    _, _, preprocessing = file.require_passport()
    file.require_fp32()
    artifact.require_writable(output)
    images = image_set(source, samples=samples, warn=warn)
    table = scales_from_images(
        file.graph,
        images,
        preprocessing,
        graph_sha256=file.sha256,
        method=method,
        percentile=percentile,
        batch=batch,
        attention=attention,
        threads=threads,
        max_unreadable=max_unreadable,
        progress=progress,
        warn=warn,
    )
    write_scales(output, table)
    return table


def smooth(
    path: Path,
    source: Path,
    output: Path,
    *,
    alpha: float = 0.5,
    samples: int | None = None,
    warn: Warn = lambda text: None,
    report: Report = lambda step: None,
) -> Passport:
    """Write an FP32 file that computes the same with milder activations at norm2 -> fc1 (SmoothQuant).

    Raises:
        InputError: the file, the images or the output are unusable.
        ParityFailed: the smoothed file computes something else.
    """
    file = open_onnx(path)
    passport, spec, preprocessing = file.require_passport()
    file.require_fp32()
    artifact.require_writable(output)
    images = image_set(source, samples=samples, warn=warn)
    report("measuring channels")
    maxima = channel_maxima(file.graph, (batch for _, batch in image_batches(images, preprocessing, warn=warn)))
    graph = smooth_graph(file.graph, maxima, alpha=alpha)
    report("comparing with the file")
    compared = _against_source(file, graph, output.name, "fp32")
    compared.require_passed()
    facts = passport.facts | {
        "smooth": {"alpha": alpha, "images": {"name": images.name, "sha256": images.sha256}},
        "audit": asdict(audit(graph, size=spec.size)),
        "parity": parity_facts(compared),
    }
    return artifact.write_with_passport(
        output,
        graph.SerializeToString(),
        Passport(stage="smooth", parents=_parents(file), model=spec.to_dict(), facts=facts),
    )


def quantize(
    path: Path,
    output: Path,
    *,
    precision: Literal["fp16", "int8"],
    scales: Path | None = None,
    keep: Sequence[str] = (),
    target: Target = "tensorrt",
    rest: Literal["fp16", "fp32"] | None = None,
    attention: bool = False,
    images: Path | None = None,
    samples: int | None = None,
    report: Report = lambda step: None,
    warn: Warn = lambda text: None,
) -> Lowered:
    """Write a file of a lower precision from an FP32 file.

    Args:
        output: replaced only when everything succeeded.
        scales: the scale table, for ``int8``.
        keep: patterns of layers that stay at the rest's precision.
        target: ``tensorrt``, or ``cpu`` for ONNX Runtime.
        rest: of an INT8 file; None for FP16 with TensorRT, FP32 on a CPU.
        attention: INT8 also inside the attention within windows.
        images: a folder or manifest, to prove FP16's head-room on; with a scale table, its own images.
        samples: of the images, for ``fp16``; a scale table has its own number.

    Raises:
        InputError: the file, the table, the images or an option is unusable, or does not fit the others.
        HeadroomFailed: a tensor leaves FP16's range on the images.
        AuditFailed: TensorRT would refuse the result; ParityFailed: it computes something else. Nothing is written.
    """
    if (precision == "int8") != (scales is not None):
        raise OptionError(
            f"--precision {precision} {'with' if scales else 'without'} --scales",
            expected="a scale table for int8, and for int8 alone",
            hint=None if scales else f"type: sepvit-deploy calibrate {path} --images DIR",
        )
    if precision == "fp16" and (target == "cpu" or attention or rest):
        raise OptionError("--precision fp16 with options of int8", expected="--keep, --images and --samples alone")
    if samples is not None and (images is None or scales is not None):
        raise OptionError("--samples without --images, or with --scales", expected="the images of fp16's head-room")
    artifact.require_writable(output)
    file = open_onnx(path)
    passport, spec, preprocessing = file.require_passport()
    file.require_fp32()
    table = table_for(file, scales, preprocessing) if scales else None
    measured = None
    if images is not None:
        chosen = image_set(images, samples=samples) if table is None else _images_of(table, images, scales)
        if precision == "fp16" or (target == "tensorrt" and rest != "fp32"):
            report("measuring head-room")
            some = image_set(images, samples=min(HEADROOM_IMAGES, len(chosen.files)))
            measured = headroom(file.graph, image_batches(some, preprocessing, warn=warn))
            measured.require_finite(path.name)
    facts: dict[str, Any] = {"precision": precision, "keep": list(keep)}
    quantized: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    pairs = 0
    parents = _parents(file)
    report(f"writing {precision} into the graph")
    if table is None or scales is None:
        made = fp16_from_fp32(file.graph, keep=keep)
        graph = made.model
        facts["fp16"] = {"casts": made.casts, "subnormal_constants": made.subnormal, "zeroed_constants": made.zeroed}
    else:
        done = int8_from_fp32(
            file.graph, table, graph_sha256=file.sha256, target=target, rest=rest, keep=keep, attention=attention
        )
        graph, pairs = done.model, done.pairs
        quantized, kept = tuple(site.name for site in done.sites), tuple(site.name for site in done.kept)
        parents += (Parent("scales", scales.name, sha256=artifact.sha256(scales)),)
        facts |= {"target": target, "rest": done.rest, "attention": attention, "pairs": pairs}
        facts["calibration"] = {"method": table.method, **table.settings, "images": asdict(table.images)}
    report("looking for what TensorRT refuses")
    linted = lint(graph)
    if target == "tensorrt":
        linted.require_passed(output.name)
    report("comparing with the FP32 file")
    compared = _against_source(file, graph, output.name, precision)
    compared.require_passed()
    facts = passport.facts | facts | {"products": linted.products, "audit": asdict(audit(graph, size=spec.size))}
    facts["parity"] = parity_facts(compared)
    if measured is not None:
        facts["headroom"] = asdict(measured.tensors[0]) | {"images": measured.images}
    lowered = Passport(stage="quantize", parents=parents, model=spec.to_dict(), facts=facts)
    lowered = artifact.write_with_passport(output, graph.SerializeToString(), lowered)
    return Lowered(output, lowered, linted, compared, measured, quantized, kept, pairs)


def image_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    at_once: int = IMAGES_AT_ONCE,
    warn: Warn = lambda text: None,
) -> Iterator[tuple[list[str], Array]]:
    """Names and inputs (B, 3, H, W) of an image set, a few at a time: neighbours of one height and width.

    Raises:
        ImageError: too many unreadable images, or none that is readable.
    """
    import numpy as np

    names: list[str] = []
    pixels: list[Array] = []
    index = -1
    for index, one in decoded(images, preprocessing, skipped=lambda path, reason: warn(f"passed over: {reason}")):
        if pixels and (len(pixels) == at_once or one.shape != pixels[0].shape):
            yield names, np.stack(pixels)
            names, pixels = [], []
        names.append(str(images.files[index]))
        pixels.append(one)
    if pixels:
        yield names, np.stack(pixels)
    if index < 0:
        raise ImageError(f"{images.name} has no readable picture", expected="one or more")


def _images_of(table: ScaleTable, source: Path, scales: Path | None) -> ImageSet:
    """The images of a scale table; PassportError where they changed since, or are others."""
    try:
        images = image_set(source, samples=table.images.samples + table.images.skipped)
    except ImageError as error:
        hint = error.hint if "--samples" not in (error.hint or "") else None  # the table has the number
        raise ImageError(error.found, expected=f"the images that {scales} was calibrated on", hint=hint) from error
    if images.sha256 != table.images.sha256:
        raise PassportError(
            f"{images.name} is not what {scales} was calibrated on (SHA-256 {images.sha256[:12]}...)",
            expected=f"{table.images.samples} images of {table.images.name} ({table.images.sha256[:12]}...)",
            hint="calibrate again, or give the images of then",
        )
    return images


def table_for(file: Opened, scales: Path, preprocessing: Preprocessing) -> ScaleTable:
    """A scale table for a file, as far as its preprocessing goes.

    Raises:
        InputError: it is no scale table, or PassportError: of another preprocessing.
    """
    table = read_scales(scales)
    if table.preprocessing != preprocessing.to_dict():
        differing = [key for key, value in preprocessing.to_dict().items() if table.preprocessing.get(key) != value]
        raise PassportError(
            f"{scales} was calibrated with another preprocessing ({', '.join(differing) or 'other keys'})",
            expected=f"that of {file.path.name}",
            hint="calibrate this file",
        )
    return table


def _parents(file: Opened) -> tuple[Parent, ...]:
    """The file itself, and the weights behind it."""
    weights = file.passport.weights if file.passport else None
    return (Parent("onnx", file.path.name, sha256=file.sha256), *((weights,) if weights else ()))


def _against_source(file: OpenedOnnx, graph: onnx.ModelProto, name: str, precision: str) -> Parity:
    """A new graph against the file that it was made from: random images, inner tensors included."""
    if file.spec is None:
        raise GraphError(f"{file.path} has no passport")
    reference, candidate = onnx_runner(file.graph, file.spec, file.path.name), onnx_runner(graph, file.spec, name)
    batches = random_images(file.spec, candidate.input_shape[0])
    return parity.compare(
        reference, candidate, batches, source=RANDOM, outputs=file.spec.output_names, tolerance=OF_PRECISION[precision]
    )
