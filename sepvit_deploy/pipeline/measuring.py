"""What a file is worth on images: accuracy, agreement with another file, and which layers cost the most in INT8."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.calibrate import calibrate as scales_from_images
from sepvit_deploy.errors import InputError, OptionError, PassportError
from sepvit_deploy.evaluate import Evaluation, Resume
from sepvit_deploy.evaluate import evaluate as evaluate_runner
from sepvit_deploy.evaluate_masks import MaskEvaluation, evaluate_masks
from sepvit_deploy.graph import with_logits
from sepvit_deploy.image_sets import image_set, labelled
from sepvit_deploy.likeness import Likeness
from sepvit_deploy.mask_sets import Labelling, mask_set
from sepvit_deploy.masks import names_and_colours
from sepvit_deploy.pipeline.lowering import image_batches, table_for
from sepvit_deploy.pipeline.models import open_model
from sepvit_deploy.pipeline.opened import Opened, Progress, Report, Running, Warn, open_onnx
from sepvit_deploy.placement import sites
from sepvit_deploy.precision import int8_from_fp32
from sepvit_deploy.runners.batches import InBatches
from sepvit_deploy.sensitivity import Sensitivity, Target
from sepvit_deploy.sensitivity import sensitivity as sensitivity_of

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner


def evaluate(
    model: str | Path,
    source: Path,
    *,
    labels: Path | None = None,
    masks: Path | None = None,
    reduce_zero_label: bool = False,
    ignore: int | None = None,
    against: str | Path | None = None,
    samples: int | None = None,
    batch: int = 8,
    how: Running = Running(),  # noqa: B008 - frozen
    workers: int | None = None,
    max_unreadable: int = 10,
    resume: Path | None = None,
    progress: Progress = lambda share: None,
    warn: Warn = lambda text: None,
) -> Evaluation | MaskEvaluation:
    """Accuracy of a classifier or a segmentation model in any form on images, and its agreement with another.

    Args:
        model: an ONNX file, a plan, or ``torch:VARIANT[:WEIGHTS]``; so is ``against``.
        source: a folder, ImageNet's or ADE20K's layout included, or a manifest.
        labels: of classification, a file of labels; None for class folders.
        masks: of segmentation, the folder of masks; None for ADE20K's layout.
        reduce_zero_label: of segmentation: 0 in masks counts for nothing, and 1 to N are the classes 0 to N - 1.
        ignore: of segmentation, the value in masks that counts for nothing; None for 255, which then must be no class.
        max_unreadable: pictures to pass over, unreadable or, in segmentation, of a size that a file does not take.
        resume: where the progress is kept, so that a killed run goes on there.

    Raises:
        InputError: a file, the images, the labels or the masks are unusable.
    """
    file = open_model(model, trust=how.trust, warn=warn)
    passport, spec, preprocessing = file.require_passport()
    segments = spec.task == "segment"
    given = {"--masks": masks is not None, "--reduce-zero-label": reduce_zero_label, "--ignore": ignore is not None}
    if segments and labels is not None:
        raise OptionError(f"--labels with {model}, a segmentation file", expected="--masks DIR")
    if not segments and any(given.values()):
        options = ", ".join(option for option, is_given in given.items() if is_given)
        raise OptionError(
            f"{options} with {model}, a file of the task {spec.task}",
            expected="a segmentation file",
            hint="the labels of pictures are named with --labels FILE",
        )
    other = open_model(against, trust=how.trust, warn=warn) if against is not None else None
    if other is not None:
        _require_comparable(file, str(model), other, str(against))
    names = (file.path.name, other.path.name if other else "")
    if names[0] == names[1]:
        names = (str(model), str(against))
    with contextlib.ExitStack() as stack:
        if segments:
            labelling = Labelling(spec.num_classes, ignore, reduce_zero_label)
            pairs = mask_set(source, masks, samples=samples)
            found: Evaluation | MaskEvaluation = evaluate_masks(
                stack.enter_context(file.running(how, name=names[0])),
                pairs,
                preprocessing,
                labelling,
                against=stack.enter_context(other.running(how, name=names[1])) if other else None,
                names=names_and_colours(passport.facts, spec.num_classes)[0],
                batch=batch,
                workers=workers,
                max_unreadable=max_unreadable,
                resume=resume,
                belongs={"model": file.sha256, "file to compare with": other.sha256 if other else "none"},
                meaningful=not file.untrained,
                progress=progress,
                warn=warn,
            )
        else:
            found = evaluate_runner(
                stack.enter_context(file.running(how, name=names[0])),
                labelled(source, labels, samples=samples),
                preprocessing,
                against=stack.enter_context(other.running(how, name=names[1])) if other else None,
                batch=batch,
                workers=workers,
                max_unreadable=max_unreadable,
                resume=Resume(resume, file.sha256, other.sha256 if other else None) if resume else None,
                class_folders=labels is None,
                meaningful=not file.untrained,
                progress=progress,
                warn=warn,
            )
    return replace(found, model_sha256=file.sha256)


def _require_comparable(file: Opened, model: str, other: Opened, against: str) -> None:
    """Refuse two files that do not answer the same question about the same input.

    Raises:
        InputError: of another task than segmentation's, or of other classes.
        PassportError: they prepare pictures differently.
    """
    if file.spec and other.spec and "segment" in (file.spec.task, other.spec.task):
        if other.spec.task != file.spec.task:
            raise InputError(f"{against} is of the task {other.spec.task}", expected=f"{file.spec.task}, as {model} is")
        if other.spec.num_classes != file.spec.num_classes:
            has = f"{against} has {other.spec.num_classes} classes"
            raise InputError(has, expected=f"{file.spec.num_classes}, as {model} has")
    if other.preprocessing not in (None, file.preprocessing):
        raise PassportError(f"{against} prepares pictures in another way than {model}", expected="one preprocessing")


def sensitivity(
    path: Path,
    source: Path,
    *,
    scales: Path | None = None,
    method: str = "percentile",
    percentile: float = 99.99,
    samples: int | None = None,
    agreement: float = 0.99,
    alone: bool = False,
    threads: int | None = None,
    report: Report = lambda step: None,
    progress: Progress = lambda share: None,
    warn: Warn = lambda text: None,
) -> tuple[Sensitivity, bool]:
    """What each group of layers costs in INT8, and whether the figures mean anything (False for random weights).

    Of a file that gives masks the logits before them are compared, which tell more of the layers than whole classes do.

    Args:
        scales: a table for this file; None calibrates on the images.
        agreement: share of equal top-1, of segmentation of logit cells with the same class, that the suggested --keep
            line should reach.
        alone: also measure each group with nothing but it in INT8.

    Raises:
        InputError: a file, the images or an option is unusable.
    """
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

    if not 0 < agreement <= 1:
        raise OptionError(f"--agreement {agreement}", expected="a share above 0, up to 1")
    file = open_onnx(path)
    _, spec, preprocessing = file.require_passport()
    file.require_fp32()
    judged = with_logits(file.graph) if spec.output == "mask" else file.graph
    found = sites(judged)
    images = image_set(source, samples=samples, warn=warn)
    if scales is not None:
        table = table_for(file, scales, preprocessing)
    else:
        report("calibrating")
        table = scales_from_images(
            file.graph,
            images,
            preprocessing,
            graph_sha256=file.sha256,
            method=method,
            percentile=percentile,
            threads=threads,
            warn=warn,
        )
    groups = list(dict.fromkeys(site.group for site in found))
    report("measuring the groups")

    def quantized(kept: frozenset[str]) -> Runner:
        include = [site.group for site in found if not site.default and site.group not in kept]
        keep = sorted(kept - {site.group for site in found if not site.default})
        # The rest in FP32: what is measured is INT8 alone, and ONNX Runtime computes FP16 in FP32 on a CPU anyway.
        graph = int8_from_fp32(judged, table, graph_sha256=file.sha256, rest="fp32", keep=keep, include=include).model
        return OnnxRuntimeRunner(graph, name=path.name, threads=threads)

    def batches() -> Iterator[Array]:
        return (batch for _, batch in image_batches(images, preprocessing))

    result = sensitivity_of(
        OnnxRuntimeRunner(judged, name=path.name, threads=threads),
        groups,
        quantized,
        batches,
        target=Target(agreement=agreement),
        alone=alone,
        progress=progress,
    )
    return result, not file.untrained


def agreement_on(
    path: Path, against: Path, source: Path, *, samples: int, progress: Progress = lambda share: None
) -> tuple[float, int]:
    """How often two files decide alike on the images that a calibration of so many samples uses.

    Returns:
        The share of images with the same top-1, or of a segmentation file the share of their pixels with the same
        class, of one that gives logits that of the logits' cells, before any resize; and the number of images.

    Raises:
        InputError: a file or the images are unusable.
    """
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

    file, other = open_onnx(path), open_onnx(against)
    _, spec, preprocessing = file.require_passport()
    candidate = OnnxRuntimeRunner(file.graph, name=path.name)
    reference = OnnxRuntimeRunner(other.graph, name=against.name)
    images = image_set(source, samples=samples)
    if spec.task == "segment":
        likeness = Likeness(reference.name, candidate.name, spec.output_names)
        runners = InBatches(reference), InBatches(candidate)
        for names, batch in image_batches(images, preprocessing):
            likeness.add(runners[0].run(batch), runners[1].run(batch), len(names))
            progress(likeness.images / len(images.files))
        assert likeness.pixel_agreement is not None
        return likeness.pixel_agreement, likeness.images
    found = evaluate_runner(candidate, images, preprocessing, against=reference, progress=progress)
    assert found.against is not None
    return found.against.agreement.share, found.against.agreement.images
