"""Rules on a config by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sepvit_deploy.classes import MAX_LABEL_BYTES
from sepvit_deploy.errors import InputError
from sepvit_deploy.triton.messages import Message, schema
from sepvit_deploy.triton.repository import Repository
from sepvit_deploy.triton.rules.rule import rule
from sepvit_deploy.triton.served import CPU_CONFIG

MAY_DIFFER = ("platform", "backend", "default_model_filename", "instance_group", "optimization", "parameters")
"""What may be another on a CPU; all else is what a client meets, and how the server keeps itself alive."""


@rule("config-unreadable", "error", "Triton refuses a config that it cannot parse, and does not start")
def _unreadable(repository: Repository) -> Iterator[tuple[str, str]]:
    for model in repository.models.values():
        for config in model.configs:
            if config.message is None:
                yield f"{model.name}/{config.place}", config.problem


@rule("name-differs", "error", "Triton refuses a config whose name is not that of its folder")
def _name(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        if message.name not in ("", model.name):
            yield f"{model.name}/{config.place}", f"says name {message.name!r:.100}"


@rule("tensor-twice", "error", "Triton takes a tensor that is named twice, and answers wrongly")
def _twice(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        for kind in ("input", "output"):
            for name, count in Counter(entry.name for entry in getattr(message, kind)).items():
                if count > 1:
                    yield f"{model.name}/{config.place}", f"names the {kind} {name!r:.100} {count} times"


@rule("no-instances", "error", "an instance group needs a count: with 0, Triton chooses one itself without a word")
def _instances(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        for group in message.instance_group:
            if group.count < 1:
                yield f"{model.name}/{config.place}", f"an instance group has count {group.count}"


@rule("response-cache", "warning", "without --cache-config the server caches nothing, and does not say so")
def _cache(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        if message.response_cache.enable:
            yield f"{model.name}/{config.place}", "enables the response cache: start the server with --cache-config"


@rule("unbounded-queue", "warning", "under overload an unbounded queue grows until every client has given up")
def _queue(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        if message.platform == "ensemble" or message.HasField("sequence_batching"):
            continue
        if not message.dynamic_batching.default_queue_policy.max_queue_size:
            text = "has no dynamic_batching.default_queue_policy.max_queue_size: overload is a hang"
            yield f"{model.name}/{config.place}", text


@rule("cuda-graphs", "error", "CUDA graphs need a GPU, and are captured for batches that the config allows")
def _graphs(repository: Repository) -> Iterator[tuple[str, str]]:
    cpu = schema().ModelInstanceGroup.KIND_CPU
    for model, config, message in repository.configs():
        cuda, place = message.optimization.cuda, f"{model.name}/{config.place}"
        if not cuda.graphs:
            continue
        if any(group.kind == cpu for group in message.instance_group):
            yield place, "captures CUDA graphs for instances of KIND_CPU"
        for spec in cuda.graph_spec:
            if spec.batch_size > message.max_batch_size:
                yield place, f"captures a CUDA graph of batch {spec.batch_size}, above {message.max_batch_size}"


@rule("cpu-config", "error", "a CPU config that is another model breaks the clients that it is a fallback for")
def _cpu(repository: Repository) -> Iterator[tuple[str, str]]:
    kinds = schema().ModelInstanceGroup
    for model, config, message in repository.configs():
        if config.place != CPU_CONFIG or model.config is None:
            continue
        other, place = model.config, f"{model.name}/{config.place}"
        names = [entry.name for entry in message.DESCRIPTOR.fields if entry.name not in MAY_DIFFER]
        if differing := [name for name in names if getattr(message, name) != getattr(other, name)]:
            yield place, f"differs from config.pbtxt in {', '.join(differing)}"
        if not message.instance_group or any(group.kind != kinds.KIND_CPU for group in message.instance_group):
            yield place, "does not say KIND_CPU for every instance"


@rule("labels", "error", "labels that are missing, or not one for each class, name the wrong class")
def _labels(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        for output in message.output:
            if not output.label_filename:
                continue
            place = f"{model.name}/{output.label_filename}"
            try:
                lines = model.read(output.label_filename, MAX_LABEL_BYTES).decode("utf-8").splitlines()
            except (InputError, ValueError) as error:
                yield place, f"cannot be used: {error}"
                continue
            classes = output.dims[-1] if output.dims else 0
            if len(lines) != classes:
                yield place, f"has {len(lines)} labels for the {classes} classes of {output.name} in {config.place}"
            elif not all(line.strip() for line in lines):
                yield place, "has a line without a label"


def batched(message: Message, dims: list[int]) -> tuple[int, ...]:
    """The whole shape behind a config's dims: with a leading -1 where the server batches."""
    return (-1, *dims) if message.max_batch_size > 0 else tuple(dims)
