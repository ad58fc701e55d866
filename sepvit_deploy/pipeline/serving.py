"""A model's file to a server that answers for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sepvit_deploy.masks import names_and_colours
from sepvit_deploy.pipeline.models import PLANS, open_model
from sepvit_deploy.pipeline.opened import Running, Warn
from sepvit_deploy.server import Lane, Model, Settings
from sepvit_deploy.server import serve as serve_model


def serve(
    source: str,
    settings: Settings,
    how: Running,
    *,
    labels: list[str] | None = None,
    warn: Warn,
    log: Callable[[str], None],
    started: Callable[[str, bool, Lane], None],
) -> None:
    """Serve what `open_model` opens; see `server.serve`.

    Args:
        warn: told why a plan is trusted without its passport.

    Raises:
        SepvitError: the model has no passport or does not open, or the address cannot be taken.
    """
    path = Path(source)

    @contextlib.contextmanager
    def opened() -> Iterator[Model]:
        found = open_model(source, trust=how.trust, warn=warn)
        passport, spec, preprocessing = found.require_passport()
        names = colours = None
        if spec.task == "segment":
            names, colours = names_and_colours(passport.facts, spec.num_classes)
        with found.running(how) as runner:
            yield Model(runner, spec, preprocessing, found.sha256, _platform(path), found.untrained, names, colours)

    watched = path if path.is_file() else None
    serve_model(opened, settings, labels=labels, watched=watched, log=log, started=started)


def _platform(path: Path) -> str:
    """In the words of Triton's model metadata."""
    if path.suffix in PLANS:
        return "tensorrt_plan"
    return "onnxruntime_onnx" if path.suffix == ".onnx" else "pytorch"
