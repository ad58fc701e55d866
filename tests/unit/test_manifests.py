"""What a cluster is asked for, how it is scaled, and the folder that it lands in: without KServe, Kubernetes or Ray."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.errors import OptionError, OutputError
from sepvit_deploy.manifests import monitoring
from sepvit_deploy.manifests.asked import Cluster, Replicas
from sepvit_deploy.manifests.dockerfile import dockerfile
from sepvit_deploy.manifests.folder import write_folder
from sepvit_deploy.manifests.ray import Application

# The fields that are used of monitoring.coreos.com/v1, as the Prometheus operator's API reference gives them.
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "namespace"],
    "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": STRINGS},
}
DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}
ENDPOINT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["port"],
    "properties": {"port": {"type": "string"}, "path": {"type": "string"}, "interval": DURATION},
}
RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["record", "expr"],
    "properties": {"record": {"type": "string"}, "expr": {"type": "string"}, "labels": STRINGS},
}
GROUP = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "interval": DURATION,
        "rules": {"type": "array", "items": RULE},
    },
}
SPECS = {
    "ServiceMonitor": {
        "type": "object",
        "additionalProperties": False,
        "required": ["selector", "endpoints"],
        "properties": {
            "selector": {"type": "object", "additionalProperties": False, "properties": {"matchLabels": STRINGS}},
            "namespaceSelector": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "any": {"type": "boolean"},
                    "matchNames": {"type": "array", "items": {"type": "string"}},
                },
            },
            "endpoints": {"type": "array", "minItems": 1, "items": ENDPOINT},
        },
    },
    "PrometheusRule": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"groups": {"type": "array", "items": GROUP}},
    },
}


def cluster(**more: Any) -> Cluster:
    known: dict[str, Any] = {
        "model": "sepvit_t",
        "classifies": True,
        "sha256": "ab" * 32,
        "gpu": True,
        "tag": "25.10-py3",
        "storage_uri": "s3://models/sepvit",
        "replicas": Replicas(1, 4),
    }
    return Cluster(**known | more)


def application(**more: Any) -> Application:
    known: dict[str, Any] = {
        "name": "sepvit_t",
        "import_path": "a.b:c",
        "args": {},
        "max_batch": 8,
        "max_ongoing": 16,
        "max_queued": 64,
        "cpus": 1,
        "gpu": False,
        "replicas": Replicas(1, 1),
    }
    return Application(**known | more)


def operator_faults(document: dict[str, Any]) -> list[str]:
    """What the Prometheus operator would not take."""
    whole = {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": "monitoring.coreos.com/v1"},
            "kind": {"const": document["kind"]},
            "metadata": METADATA,
            "spec": SPECS[document["kind"]],
        },
    }
    return [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(document)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"replicas": (3, 2)}, "--min-replicas 3 and --max-replicas 2; expected 1 <= min <= max"),
        ({"replicas": (0, 2)}, "--min-replicas 0"),
        ({"model": "7seas"}, "--name '7seas' is '7seas' in Kubernetes; expected a DNS label"),
        ({"model": "sepvit_"}, "is 'sepvit-' in Kubernetes"),
        ({"model": "m" * 45}, "at most 44 characters"),
        ({"model": "m" * 40, "namespace": "n" * 20}, "--name and --namespace make the host"),
        ({"namespace": "Team A"}, "--namespace 'Team A'; expected a DNS label"),
        ({"storage_uri": "/mnt/models"}, "--storage-uri '/mnt/models'; expected where KServe finds"),
        ({"storage_uri": "s3://a\nb"}, "--storage-uri"),
        ({"tag": "latest"}, "--release 'latest'; expected a tag of Triton's image such as 25.10-py3"),
        ({"registry": "https://host"}, "--registry 'https://host'; expected HOST, HOST:PORT or HOST/PATH"),
        ({"image": "an image"}, "--image 'an image'"),
        ({"queue_ratio": math.nan}, "--queue-ratio nan; expected 0.01 to 100"),
        ({"queue_delay_us": -1}, "--queue-delay-us -1; expected 0 to 10000000"),
        ({"prometheus": "prometheus:9090"}, "--prometheus 'prometheus:9090'; expected an address such as"),
        ({"cpus": 0}, "--cpus 0; expected 1 to 1024"),
        ({"gpu_product": "NVIDIA L4"}, "--gpu-product 'NVIDIA L4'; expected a label such as NVIDIA-L4"),
        ({"gpu_product": "NVIDIA-L4", "gpu": False}, "--gpu-product without a GPU"),
        ({"memory": "8 GB"}, "--memory '8 GB'; expected a quantity such as 8Gi"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        replicas = wrong.pop("replicas", (1, 4))
        cluster(replicas=Replicas(*replicas), **wrong)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_ongoing": 7}, "--max-ongoing 7; expected 8, the largest batch"),
        ({"max_queued": 0}, "--max-queued 0; expected 1 to"),
        ({"port": 70000}, "--port 70000; expected 1 to 65535"),
        ({"cpus": 0}, "--cpus 0"),
    ],
)
def test_what_ray_could_not_do_is_refused_here(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        application(**wrong)
    assert words in str(caught.value)


@given(st.from_regex("[a-z][A-Za-z0-9_.-]{0,30}[a-z0-9]", fullmatch=True))
def test_a_name_becomes_a_dns_label_in_kubernetes_and_stays_itself_in_triton(model: str) -> None:
    asked = cluster(model=model)
    assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", asked.name)
    assert len(f"keda-hpa-{asked.predictor_name}") <= 63
    assert asked.model == model


def test_prometheus_finds_every_pod_once_and_the_query_asks_for_what_it_found() -> None:
    asked = cluster(namespace="vision")
    service, monitor = monitoring.metrics_service(asked), monitoring.service_monitor(asked)
    assert operator_faults(monitor) == []
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]] == ["vision"]
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = service["spec"]["ports"]
    assert endpoint["port"] == port["name"]
    assert port["targetPort"] == 8002
    assert service["spec"]["clusterIP"] == "None"
    query = monitoring.keda_query(asked)
    series = 'model=~"sepvit_t|sepvit_t_preprocess|sepvit_t_rank",namespace="vision",service="sepvit-t-metrics"'
    assert query.count(f"{{{series}}}") == 3
    assert query.count("(") == query.count(")")
    own = 'model=~"sepvit_t",namespace="vision",service="sepvit-t-metrics"'
    assert f"- 2000 * sum(rate(nv_inference_request_success{{{own}}}[1m])), 0)" in query
    assert "request_success" not in monitoring.keda_query(cluster(queue_delay_us=0))
    assert service["metadata"]["name"] == "sepvit-t-metrics"


def test_a_dot_in_a_name_is_no_pattern_and_a_dense_model_stands_alone() -> None:
    assert 'model=~"a[.]b"' in monitoring.ratio_query(cluster(model="a.b", classifies=False))


def test_a_segmentation_model_stands_between_its_own_two() -> None:
    asked = cluster(classifies=False, segments=True)
    assert asked.pictures == "sepvit_t_segment"
    assert 'model=~"sepvit_t|sepvit_t_preprocess|sepvit_t_mask"' in monitoring.ratio_query(asked)
    assert "pillow" in dockerfile(asked)


def test_the_autoscaler_of_kubernetes_scales_by_what_the_rule_records() -> None:
    asked = cluster(autoscaler="hpa", queue_ratio=0.25)
    rule, scaler = monitoring.prometheus_rule(asked), monitoring.horizontal_pod_autoscaler(asked)
    assert operator_faults(rule) == []
    (recording,) = rule["spec"]["groups"][0]["rules"]
    (metric,) = scaler["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == recording["record"]
    assert metric["external"]["metric"]["selector"]["matchLabels"].items() <= recording["labels"].items()
    assert metric["external"]["target"] == {"type": "Value", "value": "0.25"}
    assert scaler["spec"]["scaleTargetRef"]["name"] == "sepvit-t-predictor"


@pytest.mark.parametrize(
    "plant",
    [
        lambda d: d["spec"]["endpoints"][0].update(intervall="15s"),
        lambda d: d["spec"]["endpoints"][0].update(interval=15),
        lambda d: d["spec"].update(name_space_selector={}),
        lambda d: d["spec"].pop("selector"),
    ],
)
def test_a_fault_in_a_monitor_is_found(plant: Any) -> None:
    document = monitoring.service_monitor(cluster())
    plant(document)
    assert len(operator_faults(document)) == 1


@given(st.floats(0.01, 100))
def test_a_ratio_is_written_as_kubernetes_writes_numbers(ratio: float) -> None:
    text = monitoring.quantity(ratio)
    assert re.fullmatch(r"[0-9]+(\.[0-9]{1,3})?", text)
    assert float(text) == pytest.approx(ratio, abs=0.0006)


def test_the_image_is_the_matching_triton_with_pillow() -> None:
    lines = dockerfile(cluster()).splitlines()
    assert "ARG TRITON_IMAGE=nvidia/tritonserver:25.10-py3" in lines
    assert "FROM ${TRITON_IMAGE}" in lines
    assert "USER 1000" in lines
    (install,) = [line for line in lines if line.startswith("RUN ")]
    assert install.endswith(f" pillow=={importlib.metadata.version('pillow')}")
    mirrored = dockerfile(cluster(registry="mirror.example:5000/cache"))
    assert "ARG TRITON_IMAGE=mirror.example:5000/cache/nvidia/tritonserver:25.10-py3" in mirrored.splitlines()
    assert "RUN " not in dockerfile(cluster(classifies=False))


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("", False),
        ("sepvit:7", False),
        ("sepvit/t:7", False),
        ("docker.io/sepvit/t:7", True),
        ("localhost/t:7", True),
        ("mirror:5000/t:7", True),
    ],
)
def test_an_image_without_a_registry_is_a_name_of_docker_hub(image: str, registry: bool) -> None:
    asked = cluster(image=image)
    assert asked.has_registry is registry
    assert (f"#     docker push {asked.own_image}\n" in dockerfile(asked)) is registry


def test_a_folder_takes_the_same_files_again_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_folder(folder, {"a.yaml": "a: 1\n", "b.yaml": "b: 2\n"})
    before = {name: (folder / name).stat().st_mtime_ns for name in os.listdir(folder)}
    write_folder(folder, {"a.yaml": "a: 1\n", "b.yaml": "b: 2\n"})
    assert {name: (folder / name).stat().st_mtime_ns for name in os.listdir(folder)} == before
    with pytest.raises(OutputError, match=r"out holds a\.yaml, not as this would write it; expected an empty folder"):
        write_folder(folder, {"a.yaml": "a: 2\n", "b.yaml": "b: 2\n"})
    (folder / "b.yaml").unlink()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"out holds notes\.txt"):
        write_folder(folder, {"a.yaml": "a: 1\n", "b.yaml": "b: 2\n"})
    assert sorted(os.listdir(folder)) == ["a.yaml", "notes.txt"]


def test_places_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="file is a file; expected a folder to write"):
        write_folder(tmp_path / "file", {"a": ""})
    with pytest.raises(OutputError, match="cannot be written"):
        write_folder(tmp_path / "absent" / "out", {"a": ""})
