"""How Prometheus finds Triton's metrics, and what replicas are scaled by."""

from __future__ import annotations

from typing import Any

from sepvit_deploy.contract import METRICS_PORT
from sepvit_deploy.manifests.asked import Cluster

QUEUE = "nv_inference_queue_duration_us"
COMPUTE = "nv_inference_compute_infer_duration_us"
REQUESTS = "nv_inference_request_success"
RECORDED = "triton_queue_to_compute_ratio"
WINDOW = "1m"
SCRAPE_INTERVAL = "15s"
"""Four samples in a `WINDOW`: a rate needs two, and a scrape may be late."""


def ratio_query(cluster: Cluster) -> str:
    """PromQL: time that requests waited over time that they were computed, in all replicas.

    The time for which a server waits for more images is no sign of load: where little is asked, every request waits it
    out, and beside a quick engine that is more than any target. So it is taken off. Where nothing is asked both rates
    are 0, and 0 / 0 is NaN, which no autoscaler understands: hence at least a microsecond of computing in a second.
    """
    waited = f"sum(rate({QUEUE}{_series(cluster)}[{WINDOW}]))"
    if cluster.queue_delay_us:
        own = _series(cluster, alone=True)
        waited = f"clamp_min({waited} - {cluster.queue_delay_us} * sum(rate({REQUESTS}{own}[{WINDOW}])), 0)"
    return f"{waited} / clamp_min(sum(rate({COMPUTE}{_series(cluster)}[{WINDOW}])), 1)"


def keda_query(cluster: Cluster) -> str:
    """The ratio times the replicas that report it.

    KServe makes of it a trigger of KEDA's default type, AverageValue: replicas = value / target, without the replicas
    that there are. The ratio is an average already, so by itself it would ask for the same few replicas whatever runs.
    """
    return f"{ratio_query(cluster)} * count(count by (pod) ({QUEUE}{_series(cluster)}))"


def _series(cluster: Cluster, *, alone: bool = False) -> str:
    """Of the models that compute, each of which has a queue: any of them may be what requests wait for.

    Args:
        alone: of the one that waits for more images.
    """
    names = (cluster.model, *(() if alone else cluster.around))
    models = "|".join(name.replace(".", "[.]") for name in names)
    return f'{{model=~"{models}",namespace="{cluster.namespace}",service="{cluster.metrics_name}"}}'


def _metadata(cluster: Cluster, name: str) -> dict[str, Any]:
    return {"name": name, "namespace": cluster.namespace, "labels": _labels(cluster)}


def _labels(cluster: Cluster) -> dict[str, str]:
    return {"app.kubernetes.io/name": cluster.name, "app.kubernetes.io/component": "metrics"}


def metrics_service(cluster: Cluster) -> dict[str, Any]:
    """A Service over the pods that KServe makes, with the port of the metrics and nothing else."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(cluster, cluster.metrics_name),
        "spec": {
            "clusterIP": "None",
            "selector": {"serving.kserve.io/inferenceservice": cluster.name, "component": "predictor"},
            "ports": [{"name": "metrics", "port": METRICS_PORT, "targetPort": METRICS_PORT, "protocol": "TCP"}],
        },
    }


def service_monitor(cluster: Cluster) -> dict[str, Any]:
    """What the Prometheus operator scrapes: each pod behind `metrics_service`."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": _metadata(cluster, cluster.name),
        "spec": {
            "selector": {"matchLabels": _labels(cluster)},
            "namespaceSelector": {"matchNames": [cluster.namespace]},
            "endpoints": [{"port": "metrics", "path": "/metrics", "interval": SCRAPE_INTERVAL}],
        },
    }


def prometheus_rule(cluster: Cluster) -> dict[str, Any]:
    """The ratio as a series of its own, for an adapter to serve to the HorizontalPodAutoscaler."""
    rule = {
        "record": RECORDED,
        "expr": ratio_query(cluster),
        "labels": {"model": cluster.model, "namespace": cluster.namespace},
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": _metadata(cluster, cluster.name),
        "spec": {"groups": [{"name": cluster.name, "interval": SCRAPE_INTERVAL, "rules": [rule]}]},
    }


def horizontal_pod_autoscaler(cluster: Cluster) -> dict[str, Any]:
    """Kubernetes' own autoscaler over the recorded ratio: type Value multiplies by the replicas itself."""
    metric = {"name": RECORDED, "selector": {"matchLabels": {"model": cluster.model}}}
    target = {"type": "Value", "value": quantity(cluster.queue_ratio)}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": cluster.predictor_name, "namespace": cluster.namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": cluster.predictor_name},
            "minReplicas": cluster.replicas.least,
            "maxReplicas": cluster.replicas.most,
            "metrics": [{"type": "External", "external": {"metric": metric, "target": target}}],
        },
    }


def quantity(number: float) -> str:
    """A number as Kubernetes writes one: thousandths are the finest that it keeps."""
    return f"{number:.3f}".rstrip("0").rstrip(".")
