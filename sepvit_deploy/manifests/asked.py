"""What a cluster is asked for, as small validated records. Nothing here imports KServe, Kubernetes or Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sepvit_deploy.contract import (
    MAX_DELAY_US,
    classify_name,
    mask_name,
    preprocess_name,
    rank_name,
    segment_name,
)
from sepvit_deploy.errors import OptionError

Autoscaler = Literal["keda", "hpa"]
MAX_REPLICAS = 1000
MAX_CPUS = 1024
SCHEMES = ("pvc", "s3", "gs", "hf", "oci", "https", "hdfs", "webhdfs")
"""Of a storage URI: what KServe's storage initializer fetches from another place than the pod."""
_LABEL = re.compile("[a-z]([a-z0-9-]*[a-z0-9])?", re.ASCII)
_LONGEST_NAME = 44
"""``keda-hpa-NAME-predictor`` becomes a label, and a label has 63 characters."""
_LONGEST_HOST = 63


@dataclass(frozen=True)
class Replicas:
    """How many copies of a model serve: a number, or as many as the load asks for between two.

    Raises:
        OptionError: not 1 <= least <= most <= `MAX_REPLICAS`.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most <= MAX_REPLICAS:
            raise OptionError(
                f"--min-replicas {self.least} and --max-replicas {self.most}",
                expected=f"1 <= min <= max <= {MAX_REPLICAS}; where none runs, nothing tells that one is needed",
            )

    @property
    def fixed(self) -> bool:
        """True where nothing is left to decide."""
        return self.least == self.most


@dataclass(frozen=True)
class Cluster:
    """What Kubernetes is asked for.

    Attributes:
        model: its name in Triton.
        classifies: models from pictures to classes stand around it; segments: those to masks do.
        sha256: of the model's file.
        gpu: a GPU for each replica; without one, Triton takes its configuration ``cpu``.
        built_on: the GPU that a plan was built on, where it loads on no other kind; "" otherwise.
        tag: of Triton's image, ``25.10-py3``.
        version_compatible: the plan loads in a newer TensorRT than its own, in a server that is told so.
        registry: host and path before ``nvidia/tritonserver``.
        image: that the cluster pulls, with the registry that it is in; "" for the one that the Dockerfile builds, under
            its own name, which is in no registry: it has to be on every node, and is never pulled.
        queue_ratio: time in queues over time in models, to which replicas are added.
        queue_delay_us: for which the model repository lets a request wait for others; it is no part of that time.
        prometheus: address of the Prometheus that KEDA asks.
        memory: a quantity such as ``8Gi``.
        gpu_product: the node label ``nvidia.com/gpu.product`` to ask for; "" for any.

    Raises:
        OptionError: a value is unusable; the message names its option.
    """

    model: str
    classifies: bool
    sha256: str
    gpu: bool
    tag: str
    storage_uri: str
    replicas: Replicas
    built_on: str = ""
    version_compatible: bool = False
    namespace: str = "default"
    registry: str = ""
    image: str = ""
    autoscaler: Autoscaler = "keda"
    queue_ratio: float = 0.5
    queue_delay_us: int = 2000
    segments: bool = False
    prometheus: str = "http://prometheus-operated.monitoring:9090"
    cpus: int = 4
    memory: str = "8Gi"
    gpu_product: str = ""

    def __post_init__(self) -> None:
        label = f"a DNS label of at most {_LONGEST_NAME} characters: small letters, digits and '-'"
        if not _LABEL.fullmatch(self.name) or len(self.name) > _LONGEST_NAME:
            raise OptionError(f"--name {self.model!r:.120} is {self.name!r:.60} in Kubernetes", expected=label)
        if not _LABEL.fullmatch(self.namespace) or len(self.namespace) > _LONGEST_HOST:
            raise OptionError(f"--namespace {self.namespace!r:.80}", expected="a DNS label: small letters, digits, '-'")
        if len(host := f"{self.name}-predictor-{self.namespace}") > _LONGEST_HOST:
            raise OptionError(
                f"--name and --namespace make the host {host}", expected=f"at most {_LONGEST_HOST} characters"
            )
        if not re.fullmatch(f"({'|'.join(SCHEMES)})://[^\\s\"'\\\\]+", self.storage_uri, re.ASCII):
            expected = f"where KServe finds the model repository: {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
            raise OptionError(f"--storage-uri {self.storage_uri!r:.80}", expected=expected)
        if not re.fullmatch("[0-9]{2}[.][0-9]{2}-py3", self.tag, re.ASCII):
            raise OptionError(f"--release {self.tag!r:.40}", expected="a tag of Triton's image such as 25.10-py3")
        if self.registry and not re.fullmatch("[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._-]+)*", self.registry, re.ASCII):
            raise OptionError(f"--registry {self.registry!r:.80}", expected="HOST, HOST:PORT or HOST/PATH")
        if self.image and not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._:/@-]*", self.image, re.ASCII):
            raise OptionError(f"--image {self.image!r:.80}", expected="an image such as HOST/PATH/NAME:TAG")
        if not 0.01 <= self.queue_ratio <= 100:
            raise OptionError(f"--queue-ratio {self.queue_ratio}", expected="0.01 to 100")
        if not 0 <= self.queue_delay_us <= MAX_DELAY_US:
            raise OptionError(f"--queue-delay-us {self.queue_delay_us}", expected=f"0 to {MAX_DELAY_US}")
        if not re.fullmatch(r"https?://[^\s\"'\\]+", self.prometheus, re.ASCII):
            raise OptionError(f"--prometheus {self.prometheus!r:.80}", expected="an address such as http://HOST:9090")
        require_cpus(self.cpus)
        if not re.fullmatch("[1-9][0-9]{0,5}(Mi|Gi)", self.memory, re.ASCII):
            raise OptionError(f"--memory {self.memory!r:.40}", expected="a quantity such as 8Gi or 512Mi")
        if self.gpu_product and not self.gpu:
            raise OptionError("--gpu-product without a GPU", expected="it with --device gpu, or with a plan")
        if self.gpu_product and not re.fullmatch("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", self.gpu_product):
            raise OptionError(f"--gpu-product {self.gpu_product!r:.80}", expected="a label such as NVIDIA-L4")

    @property
    def name(self) -> str:
        """The model's name as Kubernetes takes it: a DNS label, ``sepvit-t`` of ``sepvit_t``."""
        return re.sub("[_.]", "-", self.model.lower())

    @property
    def pictures(self) -> str:
        """The model in Triton that takes pictures; "" where there is none."""
        if self.classifies:
            return classify_name(self.model)
        return segment_name(self.model) if self.segments else ""

    @property
    def around(self) -> tuple[str, ...]:
        """The models in Triton that it computes with, before and behind it."""
        if not self.pictures:
            return ()
        return preprocess_name(self.model), rank_name(self.model) if self.classifies else mask_name(self.model)

    @property
    def own_image(self) -> str:
        """What the image of the Dockerfile is called: the name, and the release of Triton in it."""
        return self.image or f"{self.name}:{self.tag.removesuffix('-py3')}"

    @property
    def has_registry(self) -> bool:
        """True where the image's name begins with a host, by Docker's rule; else it is one of Docker Hub's names."""
        first, slash, _ = self.own_image.partition("/")
        return bool(slash) and (first == "localhost" or "." in first or ":" in first)

    @property
    def metrics_name(self) -> str:
        """Name of the Service that Prometheus finds the pods by."""
        return f"{self.name}-metrics"

    @property
    def predictor_name(self) -> str:
        """Name of the Deployment that KServe makes."""
        return f"{self.name}-predictor"


def require_cpus(cpus: int) -> int:
    """The number of CPU cores as it was given.

    Raises:
        OptionError: below 1, or beyond `MAX_CPUS`.
    """
    if not 1 <= cpus <= MAX_CPUS:
        raise OptionError(f"--cpus {cpus}", expected=f"1 to {MAX_CPUS}")
    return cpus
