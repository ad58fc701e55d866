"""A model's file to what a cluster is told about it: manifests for KServe, or a configuration for Ray Serve."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sepvit_deploy.building import EngineFacts
from sepvit_deploy.classes import read_labels, require_labels
from sepvit_deploy.contract import RAY_PROBE, name_of, require_name
from sepvit_deploy.errors import OptionError
from sepvit_deploy.images import MAX_UPLOAD_PIXELS
from sepvit_deploy.manifests import ray
from sepvit_deploy.manifests.asked import Cluster, require_cpus
from sepvit_deploy.manifests.folder import write_folder
from sepvit_deploy.manifests.kserve import as_yaml, kserve_files
from sepvit_deploy.pipeline.models import TORCH, TORCH_COMPILE, OpenedPlan, open_model
from sepvit_deploy.pipeline.opened import Warn
from sepvit_deploy.pipeline.ray_serving import IMPORT_PATH
from sepvit_deploy.ray_serve import Serving
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.triton_releases import AS_OF, IMAGES, image_for
from sepvit_deploy.uploads import CLASSIFY

Device = Literal["cpu", "gpu"]
MAX_BATCH = 8
"""Of a file that takes any batch."""
BATCH_WAIT_MS = 5.0
REPOSITORY = "model_repository"
MAX_BODY_MB, MAX_MEGAPIXELS = 32.0, MAX_UPLOAD_PIXELS / 1_000_000


@dataclass(frozen=True)
class Subject:
    """A model as it was found, and what it is called.

    Attributes:
        facts: of a plan; None for an ONNX file.
        gpu: whether it runs on one.
        max_batch: the most images that it takes at once, or `MAX_BATCH`.
    """

    path: Path
    name: str
    sha256: str
    spec: ModelSpec
    facts: EngineFacts | None
    gpu: bool
    max_batch: int


@dataclass(frozen=True)
class Manifests:
    """What was written: files in a folder, and what to type next, in order.

    Attributes:
        target: ``kserve`` or ``ray``.
        name: of the model; ``resource`` is what the cluster calls it.
        address: where a picture is classified, or gets its mask; "" for a file of another task.
        probe: what a load balancer asks whether a node serves; "" where the cluster's own probes do.
    """

    target: str
    name: str
    resource: str
    folder: Path
    files: tuple[str, ...]
    commands: tuple[str, ...]
    address: str
    probe: str = ""


def subject(model: str, *, name: str | None = None, device: Device | None = None) -> Subject:
    """Read what is known of a model's file; nothing of it is run.

    Args:
        name: None for the one that a repository of Triton would give it.
        device: for an ONNX file; by default a CPU.

    Raises:
        InputError: the file is unusable, has no passport, or cannot be served on that device.
    """
    if model.startswith((TORCH, TORCH_COMPILE)):
        raise OptionError(f"{model} is a model in torch", expected="FILE.onnx or FILE.plan, which a server loads")
    path = Path(model)
    name = require_name(name if name is not None else name_of(path))
    opened = open_model(path)
    passport, spec, _ = opened.require_passport()
    facts = opened.plan.facts if isinstance(opened, OpenedPlan) else None
    if facts is not None and device == "cpu":
        raise OptionError(f"--device cpu for {model}", expected="gpu: a plan runs nowhere else")
    if facts is not None:
        batch = facts.batch or max((profile.maximum for profile in facts.profiles), default=MAX_BATCH)
    else:
        batch = known if isinstance(known := passport.facts.get("batch"), int) else MAX_BATCH
    return Subject(path, name, passport.sha256, spec, facts, facts is not None or device == "gpu", batch)


def write_kserve(
    found: Subject,
    output: Path,
    asked: Mapping[str, Any],
    *,
    release: str | None = None,
    labels: Path | None = None,
    warn: Warn = lambda text: None,
) -> Manifests:
    """Write what runs a model on KServe's Triton runtime into the folder ``output``.

    Args:
        asked: fields of `Cluster` beside those that the model decides.
        release: tag of Triton's image; None for the one that carries the plan's TensorRT.
        labels: file of the classes' names, for the command that writes the model repository.
        warn: told where the cluster could not find the image.

    Raises:
        OptionError: a value is unusable, or Triton runs no such plan.
        InputError: the labels are unusable, or not one for each class.
        OutputError: the folder cannot be written, or holds something else.
    """
    if labels is not None and found.spec.task != "classify":
        gives = "masks of class numbers" if found.spec.task == "segment" else "no classes"
        raise OptionError(f"--labels with {found.path}, which gives {gives}", expected="a classifier")
    require_labels(read_labels(labels) if labels else None, found.spec.num_classes)
    cluster = Cluster(
        model=found.name,
        classifies=found.spec.task == "classify",
        segments=found.spec.task == "segment",
        sha256=found.sha256,
        gpu=found.gpu,
        tag=_tag(found, release),
        built_on=_kind(found.facts),
        version_compatible=found.facts is not None and found.facts.version_compatible,
        **asked,
    )
    options = f"--name {found.name} --repository {REPOSITORY} --queue-delay-us {cluster.queue_delay_us}"
    # Without its folder, which is nobody else's business.
    files = kserve_files(cluster, _triton(found.path.name, options, labels.name if labels else None))
    write_folder(output, files)
    place = shlex.quote(str(output))
    if not cluster.has_registry:
        warn(
            f"the image {cluster.own_image} is in no registry, and by that name Docker Hub may have a stranger's: the "
            "manifest forbids to pull it; give --image HOST/PATH/NAME:TAG, or bring it to every node"
        )
    commands = (
        _triton(str(found.path), options, str(labels) if labels else None),
        _upload(cluster.storage_uri),
        f"docker build --tag {cluster.own_image} {place}",
        f"docker push {cluster.own_image}" if cluster.has_registry else f"# bring {cluster.own_image} to every node",
        f"kubectl apply -k {place}",
    )
    served = f"/v2/models/{cluster.pictures}/infer" if cluster.pictures else ""
    return Manifests("kserve", found.name, cluster.name, output, tuple(sorted(files)), commands, served)


def _triton(model: str, options: str, labels: str | None) -> str:
    """The command that writes the model repository."""
    named = f" --labels {shlex.quote(labels)}" if labels else ""
    return f"sepvit-deploy triton {shlex.quote(model)} {options}{named}"


def _upload(uri: str) -> str:
    """The command, or as a comment the words, that bring the model repository to where KServe looks for it."""
    scheme = uri.partition("://")[0]
    if scheme == "s3":
        return f"aws s3 sync {REPOSITORY} {shlex.quote(uri)}"
    if scheme == "gs":
        return f"gcloud storage rsync --recursive {REPOSITORY} {shlex.quote(uri)}"
    how = {
        "pvc": "in a pod that mounts the claim, which is the first part of the URI; the rest is the folder in it",
        "oci": "as the folder /models of an image",
        "https": "as a .tar.gz or .zip archive",
    }
    words = f", {how[scheme]}" if scheme in how else ""
    return f"# put what is in {REPOSITORY} at {uri}{words}"


def _kind(facts: EngineFacts | None) -> str:
    """The GPU that a plan is bound to; "" where it is bound to none."""
    if facts is None or facts.device is None or facts.hardware_compatible:
        return ""
    return f"{facts.device.name}, compute capability {facts.device.compute_capability}"


def _tag(found: Subject, release: str | None) -> str:
    """Tag of the image of Triton that runs this file.

    Raises:
        OptionError: there is none, none is known, or ``release`` is another.
    """
    if found.facts is None:
        return release or max(IMAGES.values())
    if found.facts.builder == "rtx":
        raise OptionError(
            f"{found.path} is a plan of TensorRT-RTX, for which Triton has no backend",
            expected="a plan of TensorRT, or an ONNX file",
            hint="Ray Serve runs it: --for ray",
        )
    version = found.facts.builder_version
    known = image_for(version)
    if known is None and release is None:
        raise OptionError(
            f"the plan is of TensorRT {version}, and which image of Triton carries it is not known as of {AS_OF}",
            expected=f"one of TensorRT {', '.join(IMAGES)}",
            hint="look it up in Triton's compatibility matrix, and give it: --release YY.MM-py3",
        )
    if release is not None and known not in (None, release) and not found.facts.version_compatible:
        raise OptionError(
            f"--release {release:.40} for a plan of TensorRT {version}",
            expected=f"{known}, for a plan loads in the TensorRT that built it",
        )
    return release or known or ""


def write_ray(
    found: Subject, output: Path, asked: Mapping[str, Any], serving: Mapping[str, Any], *, labels: Path | None = None
) -> Manifests:
    """Write a configuration of Ray Serve into the folder ``output``.

    Args:
        asked: fields of `ray.Application`, and ``serving`` those of `Serving`, beside those that the model decides.
        labels: file of the classes' names.

    Raises:
        OptionError: a value is unusable, or the model gives no classes.
        OutputError: the folder cannot be written, or holds something else.
    """
    if found.spec.task != "classify":
        serves = "sepvit-deploy serve, and Triton (--for kserve), give masks" if found.spec.task == "segment" else None
        task = found.spec.task
        raise OptionError(f"{found.path} is for the task {task}", expected="a classification file", hint=serves)
    require_labels(read_labels(labels) if labels else None, found.spec.num_classes)
    cpus = asked.get("cpus", 1)
    defaults = {"max_batch": found.max_batch, "batch_wait_ms": BATCH_WAIT_MS}
    limits = {"max_body_mb": MAX_BODY_MB, "max_megapixels": MAX_MEGAPIXELS}
    told = Serving(
        model=_absolute(found.path),
        sha256=found.sha256,
        name=found.name,
        labels=_absolute(labels) if labels else None,
        provider="cuda" if found.gpu else "cpu",
        threads=None if found.gpu else require_cpus(cpus),
        **{**defaults, **limits, **serving},
    )
    queue = {"max_ongoing": 2 * told.max_batch, "max_queued": 8 * told.max_batch}
    application = ray.Application(
        name=found.name,
        import_path=IMPORT_PATH,
        args=told.to_dict(),
        max_batch=told.max_batch,
        gpu=found.gpu,
        **{"cpus": cpus, **queue, **asked},
    )
    command = f"serve run {shlex.quote(str(output / ray.FILE))}"
    write_folder(output, {ray.FILE: as_yaml(ray.config(application), ray.NOTES, extra="ray")})
    base = f"http://{application.host}:{application.port}"
    files = (ray.FILE,)
    return Manifests(
        "ray", found.name, found.name, output, files, (command,), f"{base}{CLASSIFY}", f"{base}{RAY_PROBE}"
    )


def _absolute(path: Path) -> Path:
    """From the root, for a replica runs in another folder; links stay, for another node may have others."""
    return Path(os.path.abspath(path))
