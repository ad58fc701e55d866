"""The files that put a model repository on Kubernetes: KServe with its Triton runtime.

KServe's ``kserve-tritonserver`` starts ``tritonserver`` on ports 8080 (HTTP), 9000 (gRPC) and 8002 (metrics), over the
model repository that it mounts at ``/mnt/models``; the arguments of the InferenceService come after its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sepvit_deploy.contract import METRICS_PORT
from sepvit_deploy.manifests import monitoring
from sepvit_deploy.manifests.asked import Cluster
from sepvit_deploy.manifests.dockerfile import USER, dockerfile
from sepvit_deploy.manifests.typed import require_typed
from sepvit_deploy.optional import require
from sepvit_deploy.triton_releases import ALLOW_VERSION_COMPATIBLE

RUNTIME = "kserve-tritonserver"
HTTP_PORT, GRPC_PORT = 8080, 9000
SHARED_MEMORY = "1Gi"
START_SECONDS, PROBE_SECONDS = 600, 5
_GPU = "nvidia.com/gpu"

_NOTES = {
    "inferenceservice.yaml": """\
The model repository at the storage URI is written by: {triton}
Clients say {models}, as Triton calls them; Kubernetes says {name}.
{storage}Mode Standard: a Deployment and a Service, without Knative, whose pods may have one port. KServe up to 0.15
knows it as RawDeployment, which later ones take, too.
/dev/shm is a volume of its own: pictures and tensors pass through it to the preprocessing model, and a container's
own 64 MiB end with a batch. What is in it counts against the memory limit.
{scaling}{hardware}""",
    "metrics-service.yaml": """\
Which ports KServe's own Service has is for its controller to decide. This one depends on two labels that KServe puts
on every pod of a predictor, and on nothing else. It has no address: Prometheus asks every pod behind it.""",
    "servicemonitor.yaml": """\
For the Prometheus operator. Where its Prometheus selects monitors by a label (serviceMonitorSelector), put that on this
one. Add no PodMonitor: it would count each request a second time.""",
    "hpa.yaml": """\
An adapter has to serve the series {recorded} to Kubernetes as an external metric. For
prometheus-adapter, under externalRules of its configuration:
  - seriesQuery: '{recorded}'
    resources: {{overrides: {{namespace: {{resource: namespace}}}}}}
    metricsQuery: '<<.Series>>{{<<.LabelMatchers>>}}'""",
    "prometheusrule.yaml": "For the Prometheus operator: what hpa.yaml scales by.",
    "kustomization.yaml": """\
kubectl apply -k . applies what this names; the Dockerfile makes {image}, which {reached}.""",
}
_STORAGE = """\
KServe reads a private bucket with the secret, or the role, of a service account: make one, and name it here under
predictor as serviceAccountName.
"""
_HARDWARE = """
The plan was built on {}, and loads on GPUs of that kind: where nodes have others, too, ask for it with --gpu-product,
which selects by the label nvidia.com/gpu.product of NVIDIA's GPU feature discovery."""
_SCALING = {
    "keda": """\
Scaled by time in queues, but for the delay that fills batches, over time in the models. KServe gives KEDA the query
with the type AverageValue, replicas = value / target, in which the replicas that run have no part: hence the query
multiplies by them. Of the target KServe reads value; averageValue is what it means. KEDA has to reach the Prometheus
at serverAddress.""",
    "hpa": "Scaled by hpa.yaml: to KServe that is an external autoscaler.",
    "fixed": "Not scaled: least and most replicas are the same.",
}


def kserve_files(cluster: Cluster, triton: str) -> dict[str, str]:
    """Every file of a deployment on KServe by its name, each manifest proven by the classes of its kind.

    Args:
        triton: the command that writes the model repository.

    Raises:
        ManifestFailed: the installed kserve package describes other resources than these.
        MissingDependency: it is not installed.
    """
    documents: dict[str, Mapping[str, Any]] = {
        "inferenceservice.yaml": inference_service(cluster),
        "metrics-service.yaml": monitoring.metrics_service(cluster),
        "servicemonitor.yaml": monitoring.service_monitor(cluster),
    }
    scaling = "fixed" if cluster.replicas.fixed else cluster.autoscaler
    if scaling == "hpa":
        documents["hpa.yaml"] = monitoring.horizontal_pod_autoscaler(cluster)
        documents["prometheusrule.yaml"] = monitoring.prometheus_rule(cluster)
    for name, document in documents.items():
        if document["apiVersion"] != "monitoring.coreos.com/v1":  # of which neither package knows
            require_typed(document, name)
    documents["kustomization.yaml"] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(documents),
    }
    words = {
        "triton": triton,
        "storage": _STORAGE if cluster.storage_uri.startswith(("s3://", "gs://")) else "",
        "scaling": _SCALING[scaling],
        "hardware": _HARDWARE.format(cluster.built_on) if cluster.built_on else "",
        "models": f"{cluster.model}, or {cluster.pictures} for pictures" if cluster.pictures else cluster.model,
        "name": cluster.name,
        "image": cluster.own_image,
        "reached": "the cluster has to reach" if cluster.has_registry else "every node has to have: it is never pulled",
        "recorded": monitoring.RECORDED,
    }
    files = {"Dockerfile": dockerfile(cluster)}
    for name, document in documents.items():
        files[name] = as_yaml(document, _NOTES[name].format(**words))
    return files


def as_yaml(document: Mapping[str, Any], notes: str, *, extra: str = "kserve") -> str:
    """A document as YAML under its notes, each line of them a comment; ``extra`` is what brings PyYAML."""
    tree = json.loads(json.dumps(document))  # what occurs twice is written twice, not as a reference
    text: str = require("yaml", extra=extra).safe_dump(tree, sort_keys=False, width=1000)
    # A file's name may hold what YAML takes for the end of a line.
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in notes)
    return "".join(f"# {line}\n" for line in plain.split("\n")) + text


def inference_service(cluster: Cluster) -> dict[str, Any]:
    """The InferenceService: Triton over the model repository, and what it is scaled by."""
    autoscaler = "none" if cluster.replicas.fixed else {"keda": "keda", "hpa": "external"}[cluster.autoscaler]
    predictor: dict[str, Any] = {
        "minReplicas": cluster.replicas.least,
        "maxReplicas": cluster.replicas.most,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}}],
        "model": _model(cluster),
    }
    if cluster.gpu_product:
        predictor["nodeSelector"] = {"nvidia.com/gpu.product": cluster.gpu_product}
    if autoscaler == "keda":
        predictor["autoScaling"] = {"metrics": [{"type": "External", "external": _external(cluster)}]}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": cluster.name,
            "namespace": cluster.namespace,
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": autoscaler,
                "sepvit-deploy/sha256": cluster.sha256,
            },
        },
        "spec": {"predictor": predictor},
    }


def _external(cluster: Cluster) -> dict[str, Any]:
    value = monitoring.quantity(cluster.queue_ratio)
    return {
        "metric": {
            "backend": "prometheus",
            "serverAddress": cluster.prometheus,
            "query": monitoring.keda_query(cluster),
        },
        "target": {"type": "AverageValue", "averageValue": value, "value": value},
    }


def _model(cluster: Cluster) -> dict[str, Any]:
    resources = {"cpu": str(cluster.cpus), "memory": cluster.memory} | ({_GPU: "1"} if cluster.gpu else {})
    ready = {"httpGet": {"path": "/v2/health/ready", "port": HTTP_PORT}, "periodSeconds": PROBE_SECONDS}
    arguments = [] if cluster.gpu else ["--model-config-name=cpu"]
    arguments += [ALLOW_VERSION_COMPATIBLE] if cluster.version_compatible else []
    return {
        "name": "kserve-container",
        "modelFormat": {"name": "triton"},
        "protocolVersion": "v2",
        "runtime": RUNTIME,
        "storageUri": cluster.storage_uri,
        # No runtimeVersion: KServe would put it in place of the image's tag.
        "image": cluster.own_image,
        # Where a node has no such image it is not to come from Docker Hub, where anybody may have taken its name.
        **({} if cluster.has_registry else {"imagePullPolicy": "Never"}),
        **({"args": arguments} if arguments else {}),
        # The first is the one that KServe's Service leads to.
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "resources": {"requests": resources, "limits": dict(resources)},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        "securityContext": {
            "runAsUser": USER,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"drop": ["ALL"]},
        },
        # An engine takes a while to load; until then neither of the others counts.
        "startupProbe": ready | {"failureThreshold": START_SECONDS // PROBE_SECONDS},
        "readinessProbe": ready,
        "livenessProbe": ready | {"httpGet": {"path": "/v2/health/live", "port": HTTP_PORT}, "failureThreshold": 6},
        # Requests still come while the end of a pod is told through the cluster.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
    }
