"""A job on this machine: one model, and threads that decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sepvit_deploy.batch_predict.classifying import Classifying, make_parts

if TYPE_CHECKING:
    from sepvit_deploy.batch_predict.job import Job, Progress
    from sepvit_deploy.runners.base import Runner


def run_here(job: Job, runner: Runner, how: Classifying, progress: Callable[[Progress], None]) -> None:
    """Make the parts that are missing.

    Args:
        progress: called after each part.

    Raises:
        InputError: as `make_parts`.
    """
    for made in make_parts(runner, how, job.place, job.missing()):
        job.add(made.part, made.counts)
        progress(job.progress)
