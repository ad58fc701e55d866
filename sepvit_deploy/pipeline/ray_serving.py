"""What Ray Serve imports: a file, opened in each replica, behind the deployment of `sepvit_deploy.ray_serve`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sepvit_deploy.classes import read_labels, require_labels
from sepvit_deploy.errors import OptionError, PassportError
from sepvit_deploy.pipeline.models import open_model
from sepvit_deploy.pipeline.opened import Running
from sepvit_deploy.ray_serve import Loaded, Serving, application

IMPORT_PATH = "sepvit_deploy.pipeline.ray_serving:app"


def app(args: dict[str, Any]) -> Any:
    """Build the application of a configuration; ``args`` are as `Serving.to_dict` writes them.

    Raises:
        OptionError: they are not.
    """
    try:
        serving = Serving.from_dict(args)
    except (ValueError, TypeError) as error:
        raise OptionError(f"the application's args: {error}", hint="type: sepvit-deploy manifests --for ray") from error
    return application(serving, loaded)


@contextlib.contextmanager
def loaded(serving: Serving) -> Iterator[Loaded]:
    """The model of a replica, ready to run.

    Raises:
        PassportError: the file on this node is another one.
        InputError: it is unusable here.
    """
    opened = open_model(serving.model)
    if opened.sha256 != serving.sha256:
        raise PassportError(
            f"{serving.model} on this node is another file (SHA-256 {opened.sha256[:12]}...)",
            expected=f"{serving.sha256[:12]}..., as the configuration says",
        )
    _, spec, preprocessing = opened.require_passport()
    if spec.task != "classify":
        raise OptionError(f"{serving.model} is for the task {spec.task}", expected="a classification file")
    labels = read_labels(serving.labels) if serving.labels else None
    require_labels(labels, spec.num_classes)
    with opened.running(Running(provider=serving.provider, threads=serving.threads), name=serving.name) as runner:
        yield Loaded(runner, preprocessing, labels)
