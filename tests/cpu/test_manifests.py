"""The command `manifests`: what it writes, that its own validation finds planted faults, and what it refuses."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sepvit_deploy import plans
from sepvit_deploy.artifact import Parent, Passport, write_with_passport
from sepvit_deploy.building import EngineFacts, NetworkFacts, Profile
from sepvit_deploy.errors import ManifestFailed
from sepvit_deploy.gpu import Device
from sepvit_deploy.manifests import kserve, kserve_classes, monitoring, ray, typed
from sepvit_deploy.manifests.asked import Cluster, Replicas
from sepvit_deploy.ray_serve import Serving
from sepvit_deploy.spec import ModelSpec
from tests.cpu.commands import Done, call, classifier, complaint, environment, spawn
from tests.cpu.serving import segmenter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::DeprecationWarning:kubernetes")
SPEC = ModelSpec("t", "classify", (224, 224), 5)
FACTS = EngineFacts(
    builder="tensorrt",
    builder_version="10.13.3.9",
    platform="linux x86_64",
    device=None,
    compute_capabilities=(),
    profiles=(Profile(1, 8, 32),),
    batch=None,
    workspace_mb=None,
    level=None,
    version_compatible=False,
    hardware_compatible=None,
    refittable=False,
    network=NetworkFacts(3, {}, {}, {"images": [-1, 3, 224, 224]}, {"logits": [-1, 5]}),
    build_seconds=1.0,
    timing_cache_hit=None,
    inspection=None,
)
CLUSTER = Cluster("sepvit_t", True, "ab" * 32, True, "25.10-py3", "pvc://models/sepvit", Replicas(1, 4))
STORED = ("--for", "kserve", "--storage-uri", "s3://models/sepvit")
KSERVE = (*STORED, "--name", "sepvit_t")
IMAGE = ("--image", "mirror.example/sepvit:7")


def onnx_model(folder: Path, spec: ModelSpec = SPEC) -> Path:
    path = classifier(folder / "tiny.onnx")
    facts = {"precision": "fp32", "batch": "dynamic"}
    passport = Passport("export", (Parent("weights", "random", seed=0),), spec.to_dict(), facts)
    write_with_passport(path, path.read_bytes(), passport)
    return path


def plan(folder: Path, facts: EngineFacts = FACTS) -> Path:
    path = folder / "tiny.plan"
    magic = b"vtrt" if facts.builder == "rtx" else b"ftrt"
    passport = Passport(
        stage="build",
        parents=(Parent("onnx", "t.onnx", sha256="ab" * 32), Parent("weights", "random", seed=0)),
        model=SPEC.to_dict(),
        facts={"precision": "fp16", "engine": facts.to_dict()},
    )
    plans.write_plan(path, magic + b"engine" * 9, passport)
    return path


def written(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("*.yaml")}


def predictor(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = written(folder)["inferenceservice.yaml"]["spec"]["predictor"]
    return found


def test_a_plan_on_kserve(tmp_path: Path) -> None:
    done = call("manifests", plan(tmp_path), *KSERVE, "--output", tmp_path / "out", "--namespace", "vision")
    assert done.code == 0, done
    assert "sepvit_t (sepvit-t in Kubernetes)" in done.out
    assert "docker build --tag sepvit-t:25.10" in done.out
    documents = written(tmp_path / "out")
    assert sorted(documents) == [
        "inferenceservice.yaml",
        "kustomization.yaml",
        "metrics-service.yaml",
        "servicemonitor.yaml",
    ]
    assert documents["kustomization.yaml"]["resources"] == [
        name for name in sorted(documents) if name != "kustomization.yaml"
    ]
    service = documents["inferenceservice.yaml"]
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    assert service["metadata"]["namespace"] == "vision"
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert model["protocolVersion"] == "v2"
    assert [port["containerPort"] for port in model["ports"]] == [8080, 9000, 8002]
    assert model["image"] == "sepvit-t:25.10"
    assert "runtimeVersion" not in model
    assert "args" not in model
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert model["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert model["securityContext"]["allowPrivilegeEscalation"] is False
    (metric,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    assert "nv_inference_queue_duration_us" in metric["external"]["metric"]["query"]
    assert metric["external"]["target"]["value"] == "0.5"
    texts = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()]
    assert not any("nvcr" in text or "&id" in text or str(tmp_path) in text for text in texts)


def test_an_onnx_file_on_cpus_and_on_gpus(tmp_path: Path) -> None:
    model = onnx_model(tmp_path)
    done = call("manifests", model, *KSERVE, "--output", tmp_path / "cpu", "--json", "--max-replicas", "1")
    assert done.document["commands"][-1] == f"kubectl apply -k {tmp_path / 'cpu'}"
    found = predictor(tmp_path / "cpu")
    assert found["model"]["args"] == ["--model-config-name=cpu"]
    assert "nvidia.com/gpu" not in found["model"]["resources"]["limits"]
    assert "autoScaling" not in found  # one replica is nothing to scale
    annotations = written(tmp_path / "cpu")["inferenceservice.yaml"]["metadata"]["annotations"]
    assert annotations["serving.kserve.io/autoscalerClass"] == "none"
    more = ("--device", "gpu", "--autoscaler", "hpa", "--release", "25.12-py3", "--image", "mirror.example/sepvit:7")
    assert call("manifests", model, *KSERVE, "--output", tmp_path / "gpu", *more).code == 0
    found = predictor(tmp_path / "gpu")
    assert found["model"]["image"] == "mirror.example/sepvit:7"
    assert found["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"hpa.yaml", "prometheusrule.yaml"} <= written(tmp_path / "gpu").keys()


def test_what_is_to_be_typed_can_be_typed(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    command = ("manifests", plan(folder), *STORED, "--output", tmp_path / "out", "--json")
    done = call(*command, *IMAGE)
    triton, upload, *rest = done.document["commands"]
    assert triton.startswith(f"sepvit-deploy triton '{folder}/tiny.plan' --name tiny --repository model_repository")
    assert upload == "aws s3 sync model_repository s3://models/sepvit"
    assert rest == [
        f"docker build --tag mirror.example/sepvit:7 {tmp_path / 'out'}",
        "docker push mirror.example/sepvit:7",
        f"kubectl apply -k {tmp_path / 'out'}",
    ]
    assert done.err == ""
    done = call(*command[:3], "kserve", "--storage-uri", "pvc://models/t", *command[6:8], "--output", tmp_path / "pvc")
    assert "# put what is in model_repository at pvc://models/t, in a pod that mounts the claim" in done.out


def test_labels_on_kserve_are_in_the_command_that_writes_the_repository(tmp_path: Path) -> None:
    labels = tmp_path / "my labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    command = ("manifests", plan(tmp_path), *KSERVE, *IMAGE, "--labels", labels)
    done = call(*command, "--output", tmp_path / "out", "--json")
    assert done.document["commands"][0].endswith(f" --labels '{labels}'")
    text = (tmp_path / "out" / "inferenceservice.yaml").read_text(encoding="utf-8")
    assert "--labels 'my labels.txt'" in text
    assert str(tmp_path) not in text
    labels.write_text("a\n", encoding="utf-8")
    complaint(call(*command, "--output", tmp_path / "two"), "--labels has 1 labels; expected 5")
    assert not (tmp_path / "two").exists()


def test_a_bucket_needs_a_service_account_and_an_older_kserve_another_mode(tmp_path: Path) -> None:
    model = plan(tmp_path)
    for uri, asked in (("s3://m/x", True), ("gs://m/x", True), ("pvc://m/x", False)):
        out = tmp_path / uri[:3]
        stored = ("--for", "kserve", "--storage-uri", uri)
        assert call("manifests", model, *stored, *IMAGE, "--output", out).code == 0
        text = (out / "inferenceservice.yaml").read_text(encoding="utf-8")
        assert ("serviceAccountName" in text) is asked
        assert "RawDeployment" in text


def test_an_image_that_is_in_no_registry_is_never_pulled(tmp_path: Path) -> None:
    done = call("manifests", plan(tmp_path), *KSERVE, "--output", tmp_path / "out")
    assert done.code == 0
    assert "warning: the image sepvit-t:25.10 is in no registry" in done.err
    assert "docker push" not in done.out + (tmp_path / "out" / "Dockerfile").read_text(encoding="utf-8")
    assert predictor(tmp_path / "out")["model"]["imagePullPolicy"] == "Never"
    assert call("manifests", plan(tmp_path), *KSERVE, *IMAGE, "--output", tmp_path / "own").code == 0
    assert "imagePullPolicy" not in predictor(tmp_path / "own")["model"]


def test_a_version_compatible_plan_is_allowed_to_load(tmp_path: Path) -> None:
    free = plan(tmp_path, replace(FACTS, version_compatible=True))
    assert call("manifests", free, *KSERVE, "--output", tmp_path / "out").code == 0
    flag = "--backend-config=tensorrt,version-compatible=true"
    assert predictor(tmp_path / "out")["model"]["args"] == [flag]


def test_a_model_is_called_as_in_a_repository_of_triton(tmp_path: Path) -> None:
    model = onnx_model(tmp_path).rename(tmp_path / "my model.onnx")
    (tmp_path / "tiny.onnx.json").rename(f"{model}.json")
    for target in (STORED, ("--for", "ray")):
        done = call("manifests", model, *target, "--output", tmp_path / target[1], "--json")
        assert done.document["name"] == "my_model"


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    command = ("manifests", onnx_model(tmp_path), *KSERVE, "--output")
    for folder in ("a", "b", "a"):
        assert call(*command, tmp_path / folder).code == 0
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b
    complaint(call(*command, tmp_path / "a", "--max-replicas", "9"), "a holds inferenceservice.yaml, not as this would")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == a


def test_a_name_of_a_file_cannot_leave_the_comment_that_tells_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    evil = folder / "a\nkind: Pod\rkind: Pod\u2028kind: Pod.onnx"
    model = onnx_model(folder).rename(evil)
    (folder / "tiny.onnx.json").rename(f"{model}.json")
    assert call("manifests", model, *KSERVE, "--output", tmp_path / "out").code == 0
    assert written(tmp_path / "out")["inferenceservice.yaml"]["kind"] == "InferenceService"


Plant = Callable[[dict[str, Any]], Any]
FAULTS: list[tuple[Plant, str]] = [
    (lambda d: d["spec"].update(predicter={}), "spec.predicter is no key, predictor is"),
    (lambda d: d["spec"]["predictor"].update(min_replicas=2), "spec.predictor.min_replicas is no key, minReplicas is"),
    (
        lambda d: d["spec"]["predictor"]["model"]["readinessProbe"].update(http_get={}),
        "spec.predictor.model.readinessProbe.http_get is no key, httpGet is",
    ),
    (lambda d: d["spec"]["predictor"].update(maxReplicas="4"), "spec.predictor.maxReplicas is '4', not int"),
    (lambda d: d["spec"]["predictor"].update(minReplicas=True), "spec.predictor.minReplicas is True, not int"),
    (
        lambda d: d["spec"]["predictor"]["model"]["ports"][1].pop("containerPort"),
        "spec.predictor.model.ports[1]: ",
    ),
    (lambda d: d["spec"]["predictor"]["model"].update(args="--x"), "spec.predictor.model.args is '--x', not a list"),
    (
        lambda d: d["spec"]["predictor"]["autoScaling"]["metrics"][0]["external"]["target"].update(value="half"),
        "target.value is 'half', not a quantity",
    ),
    (lambda d: d["spec"]["predictor"]["model"].pop("modelFormat"), "spec.predictor.model: "),
    (lambda d: d["spec"]["predictor"].update(model=[]), "spec.predictor.model is [], not a table"),
    (lambda d: d.update(kind="InferenceServices"), "is none of the kinds that are judged"),
]


@pytest.mark.parametrize(("plant", "words"), FAULTS)
def test_a_fault_in_a_manifest_is_found(plant: Plant, words: str) -> None:
    document = copy.deepcopy(kserve.inference_service(CLUSTER))
    assert typed.faults(document) == []
    plant(document)
    (fault,) = typed.faults(document)
    assert words in fault


OPEN = ("annotations", "labels", "selector", "matchLabels", "requests", "limits", "nodeSelector", "args")
"""Tables whose keys anybody chooses; a Service's selector is one, too."""
ANYTHING = ("port", "targetPort")
"""A number or a name."""


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of everything in a document, but in tables whose keys anybody chooses."""
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for key, item in items:
        yield (*path, key)
        if key not in OPEN or isinstance(item, list):
            yield from places(item, (*path, key))


def table_at(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@pytest.mark.parametrize(
    "document",
    [
        kserve.inference_service(replace(CLUSTER, gpu_product="NVIDIA-L4")),
        monitoring.metrics_service(CLUSTER),
        monitoring.horizontal_pod_autoscaler(CLUSTER),
    ],
    ids=lambda document: document["kind"],
)
def test_no_key_can_be_misspelt_and_no_type_be_wrong(document: dict[str, Any]) -> None:
    assert typed.faults(document) == []
    every = list(places(document))
    assert len(every) >= 15
    for *path, key in every:
        if isinstance(key, str):
            faulty = copy.deepcopy(document)
            table = table_at(faulty, tuple(path))
            table[f"{key}x"] = table.pop(key)
            assert typed.faults(faulty), (path, key)
        if key not in ANYTHING:
            faulty = copy.deepcopy(document)
            table_at(faulty, tuple(path))[key] = object()
            assert typed.faults(faulty), (path, key)


def test_the_command_writes_nothing_that_its_validation_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = kserve.inference_service

    def faulty(cluster: Cluster) -> dict[str, Any]:
        document = sound(cluster)
        document["spec"]["predictor"]["minReplica"] = 1
        return document

    monkeypatch.setattr(kserve, "inference_service", faulty)
    done = call("manifests", onnx_model(tmp_path), *KSERVE, "--output", tmp_path / "out")
    words = "inferenceservice.yaml is no InferenceService: spec.predictor.minReplica is no key, minReplicas is"
    complaint(done, words, "expected what the installed kserve package describes", code=1)
    assert not (tmp_path / "out").exists()


def test_a_configuration_of_ray(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    options = ("--for", "ray", "--labels", tmp_path / "labels.txt", "--max-replicas", "3", "--max-batch", "16")
    done = call("manifests", onnx_model(tmp_path), *options, "--output", tmp_path / "out", "--cpus", "2")
    assert done.code == 0, done
    assert f"serve run {tmp_path}/out/serve_config.yaml" in done.out
    *_, protocol, last = done.out.splitlines()
    assert "does not speak the v2 protocol" in protocol
    assert all(words in last for words in ("serve status", "Ctrl-C", "serve shutdown"))
    document = written(tmp_path / "out")["serve_config.yaml"]
    (application,) = document["applications"]
    (deployment,) = application["deployments"]
    assert deployment["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 16}
    assert deployment["ray_actor_options"] == {"num_cpus": 2}
    assert (deployment["max_ongoing_requests"], deployment["max_queued_requests"]) == (32, 128)
    serving = Serving.from_dict(application["args"])
    assert (serving.model, serving.threads, serving.provider) == (tmp_path / "tiny.onnx", 2, "cpu")
    assert document["http_options"]["host"] == "127.0.0.1"


def test_a_plan_on_ray_takes_a_gpu_and_its_own_batches(tmp_path: Path) -> None:
    rtx = replace(FACTS, builder="rtx", builder_version="1.7.1.116")
    for kind, facts in (("tensorrt", FACTS), ("rtx", rtx)):
        done = call(
            "manifests", plan(tmp_path, facts), "--for", "ray", "--output", tmp_path / kind, "--min-replicas", "2"
        )
        assert done.code == 0, done
        (application,) = written(tmp_path / kind)["serve_config.yaml"]["applications"]
        (deployment,) = application["deployments"]
        assert deployment["num_replicas"] == 2
        assert deployment["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}
        assert application["args"]["max_batch"] == 32


def misspelt(document: dict[str, Any]) -> None:
    document["applications"][0]["deployments"][0]["num_replica"] = 2


def misspelt_inside(document: dict[str, Any]) -> None:
    document["applications"][0]["deployments"][0]["autoscaling_config"]["max_replica"] = 2


def of_another_type(document: dict[str, Any]) -> None:
    document["applications"][0]["deployments"][0]["max_queued_requests"] = "many"


def missing(document: dict[str, Any]) -> None:
    del document["applications"][0]["import_path"]


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (misspelt, "applications[0].deployments[0].num_replica"),
        (misspelt_inside, "applications[0].deployments[0].autoscaling_config.max_replica"),
        (of_another_type, "applications.0.deployments.0.max_queued_requests"),
        (missing, "applications.0.import_path"),
    ],
)
def test_a_fault_in_a_configuration_of_ray_is_found(plant: Plant, words: str) -> None:
    application = ray.Application("m", "a.b:c", {"model": "m"}, 8, 16, 64, 1, False, Replicas(1, 3))
    document = ray.config(application)
    plant(document)
    with pytest.raises(ManifestFailed) as caught:
        ray.require_schema(document)
    assert words in str(caught.value)


def test_no_key_of_a_configuration_of_ray_can_be_misspelt_and_no_type_be_wrong() -> None:
    application = ray.Application("m", "a.b:c", {"model": "m"}, 8, 16, 64, 1, True, Replicas(1, 3))
    document = ray.config(application)
    every = [path for path in places(document) if path[2:3] != ("args",)]
    assert len(every) > 20
    for *path, key in every:
        faulty = copy.deepcopy(document)
        table = table_at(faulty, tuple(path))
        if not isinstance(table[key], dict | list):
            table[key] = object()
            with pytest.raises(ManifestFailed):
                ray.require_schema(faulty)
        if isinstance(key, str):
            faulty = copy.deepcopy(document)
            table = table_at(faulty, tuple(path))
            table[f"{key}x"] = table.pop(key)
            with pytest.raises(ManifestFailed):
                ray.require_schema(faulty)


def refused(*arguments: str | Path) -> Done:
    return call("manifests", *arguments)


def test_what_no_cluster_can_run_is_refused(tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out")
    model = onnx_model(tmp_path)
    complaint(refused(model, "--for", "kserve", *out), "--for kserve without --storage-uri")
    complaint(refused(model, *KSERVE, *out, "--min-replicas", "5", "--max-replicas", "2"), "--min-replicas 5 and")
    complaint(refused(model, *KSERVE, *out, "--name", "../up"), "--name '../up'")
    complaint(
        refused(model, *KSERVE, *out, "--max-batch", "4"), "--max-batch with --for kserve", "sepvit-deploy triton"
    )
    complaint(refused(model, "--for", "ray", *out, "--registry", "host"), "--registry with --for ray")
    complaint(refused(model, "--for", "ray", *out, "--max-ongoing", "4"), "--max-ongoing 4; expected 8")
    complaint(refused(model, "--for", "ray", *out, "--batch-wait-ms", "nan"), "--batch-wait-ms nan")
    complaint(refused("torch:t", *KSERVE, *out), "torch:t is a model in torch; expected FILE.onnx or FILE.plan")
    foreign = classifier(tmp_path / "foreign.onnx")
    complaint(refused(foreign, *KSERVE, *out), "foreign.onnx has no passport")
    (tmp_path / "three.txt").write_text("a\nb\nc\n", encoding="utf-8")
    done = refused(model, "--for", "ray", *out, "--labels", tmp_path / "three.txt")
    complaint(done, "--labels has 3 labels; expected 5, one for each class")
    dense = tmp_path / "dense"
    dense.mkdir()
    done = refused(onnx_model(dense, ModelSpec("t", "dense", (512, 512), 5)), "--for", "ray", *out)
    complaint(done, "is for the task dense; expected a classification file")
    masks = segmenter(tmp_path / "masks.onnx")
    done = refused(masks, "--for", "ray", *out)
    complaint(done, "is for the task segment", "sepvit-deploy serve, and Triton (--for kserve), give masks")
    done = refused(masks, *KSERVE, *out, "--labels", tmp_path / "three.txt")
    complaint(done, "which gives masks of class numbers; expected a classifier")
    assert not (tmp_path / "out").exists()


def test_a_segmentation_file_on_kserve_is_asked_for_masks(tmp_path: Path) -> None:
    done = call("manifests", segmenter(tmp_path / "m.onnx"), *STORED, "--output", tmp_path / "out")
    assert done.code == 0, done
    assert "pictures: POST /v2/models/m_segment/infer" in done.out
    assert "Clients say m, or m_segment for pictures" in (tmp_path / "out" / "inferenceservice.yaml").read_text()


def test_a_plan_tells_the_gpu_that_it_is_bound_to(tmp_path: Path) -> None:
    h200 = Device(0, "NVIDIA H200", "9.0", 132, 150_000_000_000, 6144, 1, 1, 1, 512, False, True, "13.0")
    bound = plan(tmp_path, replace(FACTS, device=h200))
    out = ("--output", tmp_path / "bound", "--gpu-product", "NVIDIA-H200")
    assert refused(bound, *KSERVE, *out).code == 0
    assert predictor(tmp_path / "bound")["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    text = (tmp_path / "bound" / "inferenceservice.yaml").read_text(encoding="utf-8")
    assert "# The plan was built on NVIDIA H200, compute capability 9.0, and loads on GPUs of that kind" in text
    free = plan(tmp_path, replace(FACTS, device=h200, hardware_compatible="ampere+"))
    assert refused(free, *KSERVE, "--output", tmp_path / "free").code == 0
    assert "built on" not in (tmp_path / "free" / "inferenceservice.yaml").read_text(encoding="utf-8")


def test_plans_that_triton_cannot_run_are_refused(tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out")
    rtx = plan(tmp_path, replace(FACTS, builder="rtx", builder_version="1.7.1.116"))
    complaint(refused(rtx, *KSERVE, *out), "a plan of TensorRT-RTX, for which Triton has no backend", "--for ray")
    newer = plan(tmp_path, replace(FACTS, builder_version="99.1.0.2"))
    done = refused(newer, *KSERVE, *out)
    complaint(done, "the plan is of TensorRT 99.1.0.2", "is not known as of 20", "give it: --release YY.MM-py3")
    assert refused(newer, *KSERVE, *out, "--release", "31.01-py3").code == 0
    assert predictor(tmp_path / "out")["model"]["image"] == "sepvit-t:31.01"
    known = plan(tmp_path)
    done = refused(known, *KSERVE, *out, "--release", "25.12-py3")
    complaint(done, "--release 25.12-py3 for a plan of TensorRT 10.13.3.9; expected 25.10-py3")
    complaint(refused(known, *KSERVE, *out, "--device", "cpu"), "--device cpu", "a plan runs nowhere else")


@pytest.mark.parametrize(("target", "package"), [(KSERVE, "kserve"), (("--for", "ray"), "ray")])
def test_without_the_package_the_extra_is_named(
    target: tuple[str, ...], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    kserve_classes.load.cache_clear()
    done = refused(onnx_model(tmp_path), *target, "--output", tmp_path / "out")
    complaint(done, "is not installed", f"type: pip install 'sepvit-deploy[{package}]'")


def test_manifests_and_a_client_of_triton_in_one_process(tmp_path: Path) -> None:
    """Both packages bring messages of the same names, of which a process takes one set."""
    write = ("manifests", str(onnx_model(tmp_path)), *KSERVE, "--output")
    script = """\
import sys
from sepvit_deploy.cli import run
first = run([*sys.argv[1:-1], sys.argv[-1] + "-1"])
import tritonclient.grpc
left = [name for name in sys.modules if name.partition(".")[0] == "kserve"]
sys.exit(first or run([*sys.argv[1:-1], sys.argv[-1] + "-2"]) or bool(left))
"""
    child = subprocess.run(
        [sys.executable, "-P", "-c", script, *write, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert child.returncode == 0, child.stderr


def test_a_child_says_nothing_but_its_result(tmp_path: Path) -> None:
    done = spawn("manifests", onnx_model(tmp_path), *KSERVE, *IMAGE, "--output", tmp_path / "out", "--json")
    assert done.err == ""
    assert done.document["resource"] == "sepvit-t"
