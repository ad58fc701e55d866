"""The command that writes what a cluster is told."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sepvit_deploy.cli import show
from sepvit_deploy.cli.app import JsonOption, app
from sepvit_deploy.errors import OptionError

if TYPE_CHECKING:
    from sepvit_deploy.pipeline.manifests import Manifests

KSERVE, RAY = "KServe alone", "Ray alone"
MOST_REPLICAS = 4
"""On KServe, where nothing is said."""


@app.command("manifests")
def manifests(
    model: Annotated[str, typer.Argument(metavar="FILE", help="FILE.onnx or FILE.plan.", show_default=False)],
    target: Annotated[
        Literal["kserve", "ray"],
        typer.Option("--for", help="KServe's Triton runtime on Kubernetes, or Ray Serve.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="A folder for the files, and for them alone.", show_default=False)
    ],
    name: Annotated[str | None, typer.Option(help="Of the model; default: the file's.", show_default=False)] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes.", show_default=False)
    ] = None,
    device: Annotated[
        Literal["cpu", "gpu"] | None,
        typer.Option(help="For an ONNX file, cpu by default; a plan takes a gpu.", show_default=False),
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="Cores of a replica; default: 4, Ray 1.", show_default=False)] = None,
    min_replicas: Annotated[int, typer.Option(help="The least.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(help="The most; default: 4 on KServe, the least on Ray.", show_default=False)
    ] = None,
    storage_uri: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Of the model repository.",
            show_default=False,
            rich_help_panel=KSERVE,
        ),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Of Kubernetes; default: default.", show_default=False, rich_help_panel=KSERVE)
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="HOST/NAME:TAG",
            help="Pulled by the cluster; without one, NAME:RELEASE, which each node has to have.",
            show_default=False,
            rich_help_panel=KSERVE,
        ),
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(
            metavar="HOST/PATH", help="Of Triton's image, before nvidia/.", show_default=False, rich_help_panel=KSERVE
        ),
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(
            metavar="YY.MM-py3", help="Of Triton, where none is known.", show_default=False, rich_help_panel=KSERVE
        ),
    ] = None,
    autoscaler: Annotated[
        Literal["keda", "hpa"] | None,
        typer.Option(
            help="KEDA (default), or Kubernetes' own over an adapter.", show_default=False, rich_help_panel=KSERVE
        ),
    ] = None,
    queue_ratio: Annotated[
        float | None,
        typer.Option(
            help="Time in queues over time in models, to scale to; default: 0.5.",
            show_default=False,
            rich_help_panel=KSERVE,
        ),
    ] = None,
    queue_delay_us: Annotated[
        int | None,
        typer.Option(
            help="That of the model repository; default: 2000, as there.", show_default=False, rich_help_panel=KSERVE
        ),
    ] = None,
    prometheus: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The one that KEDA asks.", show_default=False, rich_help_panel=KSERVE),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of a replica; default: 8Gi.", show_default=False, rich_help_panel=KSERVE)
    ] = None,
    gpu_product: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Of nodes: NVIDIA-L4.", show_default=False, rich_help_panel=KSERVE),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Images computed at once.", show_default=False, rich_help_panel=RAY)
    ] = None,
    batch_wait_ms: Annotated[
        float | None,
        typer.Option(help="Longest wait for more images; default: 5.", show_default=False, rich_help_panel=RAY),
    ] = None,
    max_ongoing: Annotated[
        int | None,
        typer.Option(help="Requests in a replica; default: two batches.", show_default=False, rich_help_panel=RAY),
    ] = None,
    max_queued: Annotated[
        int | None,
        typer.Option(help="Requests that wait; default: eight batches.", show_default=False, rich_help_panel=RAY),
    ] = None,
    max_body_mb: Annotated[
        float | None, typer.Option(help="Of a request; default: 32.", show_default=False, rich_help_panel=RAY)
    ] = None,
    max_megapixels: Annotated[
        float | None, typer.Option(help="Of a picture; default: 32.", show_default=False, rich_help_panel=RAY)
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Listen here; default: 127.0.0.1.", show_default=False, rich_help_panel=RAY)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Listen here; default: 8000.", show_default=False, rich_help_panel=RAY)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the files that run a model on a cluster: manifests for KServe, or a configuration for Ray Serve.

    Nothing of the model is run, and no cluster is asked: what is written is held against the classes and the schemas
    that the packages kserve, kubernetes and ray bring.
    """
    from sepvit_deploy.manifests.asked import Replicas
    from sepvit_deploy.pipeline import manifests as pipeline

    for_kserve: dict[str, Any] = {
        "storage_uri": storage_uri,
        "namespace": namespace,
        "image": image,
        "registry": registry,
        "release": release,
        "autoscaler": autoscaler,
        "queue_ratio": queue_ratio,
        "queue_delay_us": queue_delay_us,
        "prometheus": prometheus,
        "memory": memory,
        "gpu_product": gpu_product,
    }
    serving = {
        "max_batch": max_batch,
        "batch_wait_ms": batch_wait_ms,
        "max_body_mb": max_body_mb,
        "max_megapixels": max_megapixels,
    }
    for_ray = {"max_ongoing": max_ongoing, "max_queued": max_queued, "host": host, "port": port}
    if target == "kserve":
        hint = "how it is served is in the model repository: sepvit-deploy triton --help"
        _refuse("kserve", for_ray | serving, hint)
        if storage_uri is None:
            raise OptionError("--for kserve without --storage-uri", expected="where the model repository will lie")
    else:
        _refuse("ray", for_kserve, "that is for Kubernetes")
    most = max_replicas if max_replicas is not None else max(min_replicas, MOST_REPLICAS if target == "kserve" else 1)
    asked = {"replicas": Replicas(min_replicas, most)} | _given({"cpus": cpus})
    found = pipeline.subject(model, name=name, device=device)
    if target == "kserve":
        del for_kserve["release"]
        told = asked | _given(for_kserve)
        done = pipeline.write_kserve(found, output, told, release=release, labels=labels, warn=show.warn)
    else:
        done = pipeline.write_ray(found, output, asked | _given(for_ray), _given(serving), labels=labels)
    if as_json:
        show.json_document(asdict(done) | {"folder": str(done.folder)})
    else:
        _show(done)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {option: value for option, value in options.items() if value is not None}


def _refuse(target: str, options: dict[str, Any], hint: str) -> None:
    """Refuse options that the other target has.

    Raises:
        OptionError: one was given.
    """
    for option in _given(options):
        raise OptionError(f"--{option.replace('_', '-')} with --for {target}", expected="no such option", hint=hint)


def _show(done: Manifests) -> None:
    called = f" ({done.resource} in Kubernetes)" if done.resource != done.name else ""
    show.say(f"{done.name}{called}: {', '.join(done.files)} in {done.folder}\ntype, in this order:")
    for command in done.commands:
        show.say(f"  {command}")
    if done.address:
        show.say(f"pictures: POST {done.address}")
    if done.probe:
        show.say(f"probes: GET {done.probe}; /v2/health/ready waits in a replica's queue, and is 503 under overload")
    if done.target == "ray":
        show.say("Ray answers these alone: it does not speak the v2 protocol, as Triton and sepvit-deploy serve do")
        show.say("does it run: serve status; to stop it: Ctrl-C in serve run, or serve shutdown from elsewhere")
