"""Folders of pictures to a table of classes, here or on a cluster."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy import batch_predict as batches
from sepvit_deploy.batch_predict.listing import Source
from sepvit_deploy.classes import TOP
from sepvit_deploy.errors import CheckFailed, Interrupted, OptionError, PassportError
from sepvit_deploy.optional import require
from sepvit_deploy.pipeline.models import TORCH, TORCH_COMPILE, OpenedPlan, open_model
from sepvit_deploy.pipeline.opened import Opened, Report, Running, Warn
from sepvit_deploy.spec import MAX_BATCH, Preprocessing
from sepvit_deploy.variants import CLASSIFY_SIZE

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Runner


@dataclass(frozen=True)
class Batched:
    """What a job did.

    Attributes:
        images: of the job; failed: of them, those whose row holds an error instead of classes.
        made: of the images, those that this run did; parts: files in all.
        workers: threads that decoded, or actors of a cluster; 0 where there was nothing left to do.
        meaningful: False for weights that were never trained.
    """

    output: Path
    model: str
    model_sha256: str
    images: int
    failed: int
    made: int
    parts: int
    workers: int
    seconds: float
    meaningful: bool

    @property
    def images_per_s(self) -> float | None:
        """Of this run; None where it did nothing."""
        return self.made / self.seconds if self.made and self.seconds > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return asdict(self) | {"output": str(self.output), "images_per_s": self.images_per_s}

    def require_usable(self) -> None:
        """Refuse a job none of whose pictures could be used.

        Raises:
            CheckFailed: none could.
        """
        if self.failed == self.images:
            found = f"none of the {self.images:,} pictures could be classified"
            raise CheckFailed(found, hint=f"the column error of {self.output} says why; remove it before another run")


@dataclass(frozen=True)
class _Model:
    """A model as each machine opens it: by its path, and the digest that it must have."""

    source: str
    sha256: str
    how: Running

    def require_same(self) -> None:
        """See `batch_predict.Model.require_same`."""
        self._opened()

    @contextlib.contextmanager
    def running(self) -> Iterator[Runner]:
        """See `batch_predict.Model.running`."""
        with self._opened().running(self.how) as runner:
            yield runner

    def _opened(self) -> Opened:
        opened = open_model(self.source, trust=self.how.trust)
        if opened.sha256 != self.sha256:
            found = f"{self.source} is another file there (SHA-256 {opened.sha256[:12]}...)"
            raise PassportError(found, expected=f"{self.sha256[:12]}...", hint="copy the model to every machine")
        return opened


def batch_predict(
    model: str | Path,
    images: str,
    output: Path,
    *,
    top: int = TOP,
    labels: list[str] | None = None,
    batch: int = 8,
    part_images: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    how: Running = Running(),  # noqa: B008 - frozen
    report: Report = lambda step: None,
    progress: Callable[[batches.Progress], None] = lambda progress: None,
    warn: Warn = lambda text: None,
) -> Batched:
    """Classify all pictures of a folder into a Parquet dataset; what an earlier run of the same job did is kept.

    Args:
        images: a folder, or a pattern of files.
        top: classes to give for each picture.
        part_images: pictures in a file; None for a number that fits.
        workers: threads that decode, or with ``ray`` actors; None for as many as there are processors for.
        ray: address of a cluster: ``auto``, ``local``, ``host:port``, ``ray://host:port``.
        progress: called as parts are done.

    Raises:
        InputError: the model, the pictures, an option or the output is unusable, or the output is of another job.
        Interrupted: Ctrl-C; the same call goes on.
    """
    for value, option, most in ((top, "--top", None), (batch, "--batch", MAX_BATCH), (workers, "--workers", 4096)):
        if value is not None and not 1 <= value <= (most or value):
            raise OptionError(f"{option} {value}", expected=f"1 to {most}" if most else "1 or more")
    require("pyarrow", extra="batch")
    if ray is not None:
        require("ray.data", extra="ray")
    source = Source.parse(images)
    report("loading")
    opened = open_model(model, trust=how.trust, warn=warn)
    if opened.spec is not None and opened.spec.task != "classify":
        masks = opened.spec.task == "segment"
        hint = "for masks type: sepvit-deploy predict MODEL IMAGES" if masks else None
        raise OptionError(f"{model} is for the task {opened.spec.task}", expected="a classification file", hint=hint)
    preprocessing = opened.preprocessing
    if preprocessing is None:
        warn(f"no passport says how {model} takes pictures: as ImageNet's, at {CLASSIFY_SIZE} pixels")
        preprocessing = Preprocessing.for_task("classify", (CLASSIFY_SIZE, CLASSIFY_SIZE))
    if opened.untrained:
        warn("this file holds random weights: its answers mean nothing")
    identity = batches.Identity(
        model=opened.path.name,
        model_sha256=opened.sha256,
        preprocessing=preprocessing.to_dict(),
        top=top,
        labels_sha256=None if labels is None else hashlib.sha256(json.dumps(labels).encode()).hexdigest(),
    )
    classifying = batches.Classifying(preprocessing, top, None if labels is None else tuple(labels), batch)
    start = time.perf_counter()
    used = 0
    with batches.opened(output, source, identity, part_images=part_images, report=report) as job:
        try:
            if not job.complete:
                progress(job.progress)
                run = partial(_on_ray, ray) if ray is not None else _here
                used = run(job, opened, model, classifying, workers, how, progress, report)
            job.finish()
        except KeyboardInterrupt as error:
            job.look()
            done = f"interrupted; {job.progress.done:,} of {job.identity.images:,} pictures are done"
            raise Interrupted(done, hint="the same command goes on from there") from error
        return Batched(
            output=output,
            model=opened.path.name,
            model_sha256=opened.sha256,
            images=job.identity.images,
            failed=job.progress.failed,
            made=job.progress.done - job.found,
            parts=job.parts,
            workers=used,
            seconds=time.perf_counter() - start,
            meaningful=not opened.untrained,
        )


def _here(
    job: batches.Job,
    opened: Opened,
    model: str | Path,
    classifying: batches.Classifying,
    workers: int | None,
    how: Running,
    progress: Callable[[batches.Progress], None],
    report: Report,
) -> int:
    threads = workers or min(4, len(os.sched_getaffinity(0)))
    report("classifying")
    with opened.running(how) as runner:
        batches.run_here(job, runner, replace(classifying, workers=threads), progress)
    return threads


def _on_ray(
    address: str,
    job: batches.Job,
    opened: Opened,
    model: str | Path,
    classifying: batches.Classifying,
    workers: int | None,
    how: Running,
    progress: Callable[[batches.Progress], None],
    report: Report,
) -> int:
    on_gpu = isinstance(opened, OpenedPlan) or how.provider != "cpu"
    how = replace(how, threads=how.threads or 1)  # what an actor asks of the cluster is what it uses
    cluster = batches.Cluster(address, workers, cpus=how.threads or 1, gpus=int(on_gpu))
    shared = _Model(_absolute(str(model)), opened.sha256, how)
    return batches.run_on_ray(job, shared, replace(classifying, workers=cluster.cpus), cluster, progress, report)


def _absolute(source: str) -> str:
    """A model's address that means the same in another working folder."""
    if not source.startswith((TORCH, TORCH_COMPILE)):
        return os.path.abspath(source)
    variant, colon, weights = source.rpartition(":") if source.count(":") > 1 else (source, "", "")
    return f"{variant}{colon}{os.path.abspath(weights)}" if colon else source
