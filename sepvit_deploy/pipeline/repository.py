"""From a model's file and its passport to a place in Triton's model repository."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sepvit_deploy import artifact, triton
from sepvit_deploy.building import Profile, default_profiles, size_text
from sepvit_deploy.classes import MAX_LABEL_BYTES, read_labels, require_labels
from sepvit_deploy.contract import name_of, require_name
from sepvit_deploy.errors import GraphError, InputError, OptionError, PassportError, PlanError
from sepvit_deploy.graph import static_shapes
from sepvit_deploy.heads import MASK_CLASSES
from sepvit_deploy.masks import Colour, names_and_colours, palette
from sepvit_deploy.pipeline.models import TORCH, TORCH_COMPILE, OpenedPlan, open_model
from sepvit_deploy.pipeline.opened import Opened, OpenedOnnx, Warn, open_onnx
from sepvit_deploy.runners.onnxruntime import has_signed_activations
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.triton import Served, Serving, Written
from sepvit_deploy.triton.config import LABELS
from sepvit_deploy.triton.repository import read_file


def write_repository(
    sources: Sequence[str],
    repository: Path,
    *,
    serving: Serving,
    name: str | None = None,
    labels: Path | None = None,
    warn: Warn = lambda text: None,
) -> Written:
    """Write plans and ONNX files as models of a repository.

    Args:
        name: of the model, where there is one.
        labels: a file with a name for each class; None keeps those that a model of the repository has.
        warn: told what will not work as one might expect.

    Raises:
        InputError: a file or an option is unusable.
        RepositoryFailed: a server would refuse the result; nothing was changed.
    """
    if name is not None:
        require_name(name)
        if len(sources) > 1:
            raise OptionError(f"--name {name} for {len(sources)} models", expected="one model, or no --name")
    if labels is not None and os.path.isfile(labels) and os.stat(labels).st_size > MAX_LABEL_BYTES:
        raise InputError(f"{labels} is larger than {MAX_LABEL_BYTES >> 20} MiB", expected="one label a line")
    texts = tuple(read_labels(labels)) if labels is not None else None
    given = [_served(source, name, texts, warn) for source in sources]
    served = [_with_kept_labels(each, repository) for each in given]
    for each in served:
        if each.kind != "plan" and serving.cuda_graphs:
            raise OptionError(
                f"--cuda-graphs with {each.path}", expected="a plan: ONNX Runtime captures none in Triton"
            )
        if serving.ensemble and not (each.classifies or each.segments):
            warn(f"{each.path} gives feature maps and no classes: there is nothing to rank, and so no ensemble")
    kept = tuple(now.name for was, now in zip(given, served, strict=True) if now.labels != was.labels)
    return replace(triton.write(repository, served, serving, warn), kept_labels=kept)


def _with_kept_labels(served: Served, repository: Path) -> Served:
    """With the labels of the versions before it, where none are given and those fit; what does not is refused later."""
    if served.labels is None and served.classifies:
        with contextlib.suppress(InputError, ValueError):
            content = read_file(repository / served.name / LABELS, repository, MAX_LABEL_BYTES)
            labels = tuple(content.decode("utf-8").splitlines())
            if len(labels) == len(served.classes) and labels != served.classes:
                return replace(served, labels=labels)
    return served


def _served(source: str, name: str | None, labels: tuple[str, ...] | None, warn: Warn) -> Served:
    """What a repository needs to know of a file."""
    if source.startswith((TORCH, TORCH_COMPILE)):
        raise OptionError(f"{source} is no file", expected="FILE.onnx or FILE.plan", hint="export it first")
    opened = open_model(source)
    passport, spec, preprocessing = opened.require_passport()
    if labels is not None and spec.task != "classify":
        gives = "masks of class numbers" if spec.task == "segment" else "no classes"
        raise OptionError(f"--labels with {source}, which gives {gives}", expected="a classifier")
    require_labels(list(labels) if labels is not None else None, spec.num_classes)
    if opened.untrained:
        warn(f"{source} has random weights: it serves, and its answers mean nothing")
    if isinstance(opened, OpenedPlan):
        facts = opened.plan.facts
        assert facts is not None  # it has a passport
        if facts.builder == "rtx":
            raise PlanError(
                f"{source} is a plan of TensorRT-RTX, and Triton has no backend for that",
                expected="a plan of TensorRT, or an ONNX file",
                hint="type: sepvit-deploy build FILE.onnx --builder tensorrt; or serve FILE.onnx",
            )
        graph, shapes, batch, profiles = _behind(opened, warn), facts.network.outputs, facts.batch, facts.profiles
        if spec.any_size:
            _require_box(source, spec, batch, profiles)
    else:
        assert isinstance(opened, OpenedOnnx)
        graph, profiles = opened, ()
        known = {key: list(shape) for key, shape in static_shapes(opened.graph).items()}
        shapes = {key: [-1 if dim is None else dim for dim in known.get(key, [])] for key in opened.output_names}
        batch = known.get(spec.input_name, [None])[0]
    free = 2 if spec.any_size else 0  # height and width of its outputs, too
    told = {key: shape[1 : len(shape) - free] for key, shape in shapes.items() if len(shape) > free}
    if unknown := [key for key in spec.output_names if key not in told or any(dim < 1 for dim in told[key])]:
        raise GraphError(f"{source} does not say the shape of {', '.join(unknown)}", hint="export it again")
    return Served(
        name=name or name_of(Path(source)),
        kind="plan" if isinstance(opened, OpenedPlan) else "onnx",
        path=opened.path,
        sha256=passport.sha256,
        onnx=graph.path if graph else None,
        spec=spec,
        preprocessing=preprocessing,
        outputs={key: (*told[key], *[-1] * free) for key in spec.output_names},
        batch=batch,
        profiles=profiles,
        signed_int8=graph is not None and has_signed_activations(graph.graph),
        labels=labels,
        colours=_colours(passport, spec),
    )


def _require_box(source: str, spec: ModelSpec, batch: int | None, profiles: Sequence[Profile]) -> None:
    """Refuse a plan for any size whose profiles leave out the largest pictures: one of them is the server's warm-up.

    Raises:
        PlanError: no profile covers the box that pictures are fitted into, lying or standing.
    """
    for size in (spec.size, (spec.size[1], spec.size[0])):
        if not any(profile.covers_size(size) for profile in profiles):
            usual = " ".join(f"--profile {profile}" for profile in default_profiles(batch, spec.size))
            told = ", ".join(profile.takes for profile in profiles)
            raise PlanError(
                f"{source} takes batches of {told}, and pictures of {size_text(size)} come",
                expected=f"profiles that cover {size_text(spec.size)} lying and standing",
                hint=f"type: sepvit-deploy build FILE {usual}",
            )


def _colours(passport: artifact.Passport, spec: ModelSpec) -> tuple[Colour, ...]:
    """Of a segmentation model: its own, or else those that every model has; of the classes that a palette holds."""
    if spec.task != "segment":
        return ()
    _, colours = names_and_colours(passport.facts, spec.num_classes)
    return tuple(colours or palette(spec.num_classes))[:MASK_CLASSES]


def _behind(opened: Opened, warn: Warn) -> OpenedOnnx | None:
    """The ONNX file that a plan was built from, where it lies beside it; else no CPU can stand in, and that is told."""
    assert opened.passport is not None
    parent = next((parent for parent in opened.passport.parents if parent.role == "onnx"), None)
    reason = f"the passport of {opened.path} names no ONNX file"
    if parent is not None and Path(parent.name).name == parent.name:
        path = opened.path.parent / parent.name
        reason = f"{path} is not there"
        if os.path.isfile(path):
            reason = f"{path} is not what {opened.path.name} was built from"
            if artifact.sha256(path) == parent.sha256:
                try:
                    return open_onnx(path)
                except (GraphError, PassportError) as error:
                    reason = str(error)
    warn(f"no CPU can serve {opened.path}: {reason}, so there is no configs/cpu.pbtxt")
    return None
