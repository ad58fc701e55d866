"""The image that the cluster runs: Triton's of the matching release, with what the preprocessing model imports."""

from __future__ import annotations

import importlib.metadata

from sepvit_deploy.manifests.asked import Cluster

USER = 1000
"""``triton-server`` of Triton's image, as KServe's runtime names it: a number, for Kubernetes can prove no name."""


def dockerfile(cluster: Cluster) -> str:
    """The text of a Dockerfile; its context needs no other file, for KServe mounts the model repository."""
    prefix = f"{cluster.registry}/" if cluster.registry else ""
    return f"""\
# Triton {cluster.tag} for {cluster.model}.
#
#     docker build --tag {cluster.own_image} .
{_push(cluster)}#
# Triton's image comes from NVIDIA's catalogue of containers. Where your builder finds it under another name, put the
# registry before it: --build-arg TRITON_IMAGE=HOST/PATH/nvidia/tritonserver:{cluster.tag}, or write this file again
# with --registry HOST/PATH. The release is no free choice: it carries the TensorRT that a plan was built with.
ARG TRITON_IMAGE={prefix}nvidia/tritonserver:{cluster.tag}
FROM ${{TRITON_IMAGE}}

{_pillow() if cluster.pictures else ""}\
# The model repository is no part of the image: KServe mounts it at /mnt/models.
EXPOSE 8080 9000 8002
USER {USER}
"""


def _push(cluster: Cluster) -> str:
    if cluster.has_registry:
        return f"#     docker push {cluster.own_image}\n"
    return "# That name is in no registry: it has to be on every node, or give one with --image HOST/PATH/NAME:TAG.\n"


def _pillow() -> str:
    return f"""\
# The preprocessing model decodes and resizes pictures with the very version that the model was checked with. The
# system's Python is this image's only one.
RUN python3 -m pip install --no-cache-dir --break-system-packages pillow=={importlib.metadata.version("pillow")}

"""
