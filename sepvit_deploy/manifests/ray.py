"""Ray Serve's configuration of a model, held against Ray's own schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sepvit_deploy.contract import HTTP_PORT, RAY_PROBE
from sepvit_deploy.errors import ManifestFailed, OptionError
from sepvit_deploy.manifests.asked import Replicas, require_cpus
from sepvit_deploy.optional import require

FILE = "serve_config.yaml"
NOTES = f"""\
On this machine: serve run {FILE}. On a cluster that runs: serve deploy {FILE}
Every node needs sepvit-deploy with the extras ray and cpu, or those of a plan's builder, and the model's file at the
path below; a replica refuses another file there. With 127.0.0.1 as the host, only the node itself is answered.
Probes ask GET {RAY_PROBE}, which Ray answers itself: /v2/health/ready waits in a replica's queue, and is 503 under
overload."""
KEEP_ALIVE_S = 75
"""Longer than the 60 s of usual load balancers, which must be the ones that close."""
REQUEST_TIMEOUT_S = 30.0
MAX_REQUESTS = 1_000_000


@dataclass(frozen=True)
class Application:
    """What Ray is asked for.

    Attributes:
        args: of the application's builder, which ``import_path`` names.
        max_batch: images that a replica computes at once.
        max_ongoing: requests in one replica, those of the batch under way among them.
        max_queued: requests that wait for a replica; beyond it the answer is 503.
        cpus: cores of a replica.

    Raises:
        OptionError: a value is unusable; the message names its option.
    """

    name: str
    import_path: str
    args: Mapping[str, Any]
    max_batch: int
    max_ongoing: int
    max_queued: int
    cpus: int
    gpu: bool
    replicas: Replicas
    host: str = "127.0.0.1"
    port: int = HTTP_PORT

    def __post_init__(self) -> None:
        if not self.max_batch <= self.max_ongoing <= MAX_REQUESTS:
            expected = f"{self.max_batch}, the largest batch, to {MAX_REQUESTS}: a replica fills no batch with fewer"
            raise OptionError(f"--max-ongoing {self.max_ongoing}", expected=expected)
        if not 1 <= self.max_queued <= MAX_REQUESTS:
            raise OptionError(f"--max-queued {self.max_queued}", expected=f"1 to {MAX_REQUESTS}")
        require_cpus(self.cpus)
        if not 1 <= self.port <= 65535:
            raise OptionError(f"--port {self.port}", expected="1 to 65535")


def config(application: Application) -> dict[str, Any]:
    """The configuration, as Ray's own schema takes it whole.

    Raises:
        ManifestFailed: the installed Ray takes another form.
        MissingDependency: Ray is not installed.
    """
    replicas = application.replicas
    deployment: dict[str, Any] = {
        "name": "Classifier",
        "max_ongoing_requests": application.max_ongoing,
        "max_queued_requests": application.max_queued,
        "ray_actor_options": {"num_cpus": application.cpus} | ({"num_gpus": 1} if application.gpu else {}),
    }
    if replicas.fixed:
        deployment["num_replicas"] = replicas.least
    else:
        # A replica is busy with one batch; what is beyond it is worth another replica.
        deployment["autoscaling_config"] = {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": application.max_batch,
        }
    document = {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": application.host,
            "port": application.port,
            "request_timeout_s": REQUEST_TIMEOUT_S,
            "keep_alive_timeout_s": KEEP_ALIVE_S,
        },
        "applications": [
            {
                "name": application.name,
                "route_prefix": "/",
                "import_path": application.import_path,
                "args": dict(application.args),
                "deployments": [deployment],
            }
        ],
    }
    require_schema(document)
    return document


def require_schema(document: Mapping[str, Any]) -> None:
    """Refuse a configuration that Ray would refuse, or take only in part: its schema drops unknown keys without a word.

    Raises:
        ManifestFailed: a key is unknown, missing, or of another type.
        MissingDependency: Ray is not installed.
    """
    schema = require("ray.serve.schema", extra="ray")
    scaling = require("ray.serve.config", extra="ray").AutoscalingConfig
    try:
        read = schema.ServeDeploySchema.model_validate(document).model_dump(exclude_unset=True)
        for application in read["applications"]:
            for deployment in application.get("deployments", ()):
                if isinstance(asked := deployment.get("autoscaling_config"), Mapping):  # kept there as it was given
                    deployment["autoscaling_config"] = scaling.model_validate(asked).model_dump(exclude_unset=True)
    except ValueError as error:  # pydantic's own is one
        raise ManifestFailed(f"Ray does not take {FILE}: {error}", expected="Ray Serve's configuration") from error
    if other := _differing(document, read, ""):
        raise ManifestFailed(f"Ray does not take {', '.join(other)} of {FILE}", expected="keys of its schema")


def _differing(document: object, read: object, path: str) -> list[str]:
    """Places where what Ray read is not what was written."""
    if isinstance(document, Mapping) and isinstance(read, Mapping):
        keys = [*document, *(key for key in read if key not in document)]
        return [place for key in keys for place in _differing(document.get(key), read.get(key), f"{path}.{key}")]
    if isinstance(document, list) and isinstance(read, list) and len(document) == len(read):
        pairs = enumerate(zip(document, read, strict=True))
        return [place for i, (ours, theirs) in pairs for place in _differing(ours, theirs, f"{path}[{i}]")]
    return [] if document == read else [path.lstrip(".")]
