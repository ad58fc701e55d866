"""A job on a Ray cluster: each actor holds a model and writes whole parts, which all machines see."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sepvit_deploy.batch_predict.classifying import Classifying, Place, make_parts
from sepvit_deploy.batch_predict.cluster import (
    CLIENT,
    Cluster,
    Model,
    actors_for,
    connected,
    first_line,
    require_shared,
)
from sepvit_deploy.batch_predict.parquet import Counts, counts_of
from sepvit_deploy.batch_predict.parts import Part, part_name
from sepvit_deploy.errors import InputError, SepvitError, ServerError
from sepvit_deploy.optional import require

if TYPE_CHECKING:
    from sepvit_deploy.batch_predict.job import Job, Progress
    from sepvit_deploy.runners.base import Runner

LOG = ".ray.log"
"""In the output: what Ray says."""
MOST_BLOCKS = 2000
"""Tasks that Ray keeps account of; beyond so many parts, a task makes several."""
LOOK_SECONDS = 5.0
"""Between looks at what is done, where the cluster is reached as a client."""
MOST_PASSES = 3
"""In a row that bring nothing."""


def run_on_ray(
    job: Job,
    model: Model,
    how: Classifying,
    cluster: Cluster,
    progress: Callable[[Progress], None],
    report: Callable[[str], None] = lambda step: None,
) -> int:
    """Make the parts that are missing, on the machines of a cluster; the number of actors.

    What Ray says of a part is for the progress alone: a part is done when its file is there, so one whose task ran
    twice, because the machine that held the answer was lost, is there once.

    Args:
        progress: called as parts are done.

    Raises:
        ServerError: there is no such cluster, or it fails.
        InputError: a machine lacks the model, the pictures or the output.
    """
    log = job.output / LOG
    with connected(cluster.address, log) as ray:
        workers = actors_for(ray, cluster)
        report("asking the machines of the cluster")
        require_shared(ray, cluster, job.place, model)
        report(f"classifying with {workers} actors")
        failures: list[str] = []
        while not job.complete:
            before = job.progress.done
            failures.append(_one_pass(ray, job, model, how, replace(cluster, workers=workers), progress))
            job.look()  # made, but the answer was lost
            if job.progress.done > before:
                failures.clear()
            if len(failures) == MOST_PASSES:
                raise ServerError(f"the Ray cluster does no part to its end ({failures[-1]})", hint=f"see {log}")
        return workers


class _Worker:
    """An actor: a model, and the parts that it is given. What fails is an answer, so that the job ends in one line."""

    def __init__(self, model: Model, how: Classifying, place: Place) -> None:
        self._model, self._how, self._place = model, how, place
        self._held = contextlib.ExitStack()
        self._runner: Runner | None = None

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Make the part of one row; one that is there already is only counted."""
        part = Part(**{name: int(values[0]) for name, values in block.items()})
        path = self._place.output / part_name(part.index)
        failure = ""
        counts = counts_of(path) or Counts(0, 0)
        if counts.images != part.images:
            try:
                if self._runner is None:
                    self._runner = self._held.enter_context(self._model.running())
                (made,) = make_parts(self._runner, self._how, self._place, [part])
                counts = made.counts
            except SepvitError as error:
                failure = f"{socket.gethostname()}: {error}"
        answer = {"part": part.index, "images": counts.images, "failed": counts.failed, "failure": failure}
        return {name: [value] for name, value in answer.items()}


def _one_pass(
    ray: Any, job: Job, model: Model, how: Classifying, cluster: Cluster, progress: Callable[[Progress], None]
) -> str:
    """Give every missing part to an actor once; what Ray said where it failed."""
    missing = [vars(part) for part in job.missing()]
    arguments = (missing, {"model": model, "how": how, "place": job.place}, cluster)
    try:
        answers = _answers(*arguments)
        if cluster.address.startswith(CLIENT):  # Ray Data does not run at a client's end, but in a task of the cluster
            task = ray.remote(num_cpus=0, max_retries=0)(_all_answers).remote(*arguments)
            while not ray.wait([task], timeout=LOOK_SECONDS)[0]:
                job.look()
                progress(job.progress)
            answers = (answer for answer in ray.get(task))
        with contextlib.closing(answers):  # which ends the tasks; Ray's own thread would go on after the connection
            for answer in answers:
                if answer["failure"]:
                    raise InputError(answer["failure"], hint="the same command goes on once that is mended")
                job.add(answer["part"], Counts(answer["images"], answer["failed"]))
                progress(job.progress)
    except ray.exceptions.RayError as error:
        return first_line(error)
    return "it answered, and wrote nothing"


def _answers(
    missing: list[dict[str, int]], worker: dict[str, Any], cluster: Cluster
) -> Generator[dict[str, Any], None, None]:
    """What actors answer of each part, as they are done."""
    data = require("ray.data", extra="ray")
    data.DataContext.get_current().enable_progress_bars = False
    answers = data.from_items(missing, override_num_blocks=min(len(missing), MOST_BLOCKS)).map_batches(
        _Worker,
        batch_size=1,
        # One part under way and one waiting, so that a machine that dies takes few along.
        compute=data.ActorPoolStrategy(size=min(cluster.workers or 1, len(missing)), max_tasks_in_flight_per_actor=2),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
        fn_constructor_kwargs=worker,
    )
    yield from answers.iter_rows()


def _all_answers(missing: list[dict[str, int]], worker: dict[str, Any], cluster: Cluster) -> list[dict[str, Any]]:
    return list(_answers(missing, worker, cluster))
