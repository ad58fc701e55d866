"""Rules on ensembles: what a step is given, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator

from sepvit_deploy.triton.messages import Message, type_name
from sepvit_deploy.triton.repository import ModelFolder, Repository
from sepvit_deploy.triton.rules.configs import batched
from sepvit_deploy.triton.rules.rule import rule

Step = tuple[Message, Message]
"""A step, and the config of its model."""


@rule("ensemble-model", "error", "a step needs its model, in the version that it asks for")
def _models(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, message in _ensembles(repository):
        if not message.ensemble_scheduling.step:
            yield model.name, "is an ensemble without a step"
        for step in message.ensemble_scheduling.step:
            used = repository.models.get(step.model_name)
            if used is None:
                yield model.name, f"has a step of {step.model_name!r:.100}, which is not in the repository"
            elif step.model_version > 0 and step.model_version not in used.versions:
                yield model.name, f"has a step of version {step.model_version} of {used.name}, which is not there"


@rule("ensemble-map", "error", "every tensor of a step comes from somewhere, and every output of the ensemble does")
def _maps(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, message in _ensembles(repository):
        steps = list(_steps(repository, message))
        made = {entry.name for entry in message.input}
        made |= {value for step in message.ensemble_scheduling.step for value in step.output_map.values()}
        for step, config in steps:
            inputs = {entry.name: entry for entry in config.input}
            outputs = {entry.name for entry in config.output}
            for lacking in sorted(inputs.keys() - step.input_map.keys()):
                if not inputs[lacking].optional:
                    yield model.name, f"gives {step.model_name} no {lacking}"
            for key in sorted(step.input_map.keys() - inputs.keys()):
                yield model.name, f"gives {step.model_name} {key!r:.60}, which is none of its inputs"
            for key in sorted(step.output_map.keys() - outputs):
                yield model.name, f"takes {key!r:.60} of {step.model_name}, which is none of its outputs"
            for value in sorted(set(step.input_map.values()) - made):
                yield model.name, f"gives {step.model_name} {value!r:.60}, which no step makes"
        if len(steps) == len(message.ensemble_scheduling.step):
            for entry in message.output:
                if entry.name not in made:
                    yield model.name, f"gives {entry.name}, which no step makes"


@rule("ensemble-types", "error", "a tensor has one type and one shape, on both sides of every step")
def _types(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, message in _ensembles(repository):
        uses: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
        for entry in (*message.input, *message.output):
            uses.setdefault(entry.name, []).append((model.name, *_tensor(message, entry)))
        for step, config in _steps(repository, message):
            for entries, mapped in ((config.input, step.input_map), (config.output, step.output_map)):
                for entry in entries:
                    if entry.name in mapped:
                        use = (step.model_name, *_tensor(config, entry))
                        uses.setdefault(mapped[entry.name], []).append(use)
        for name, (first, *others) in uses.items():
            for other in others:
                if first[1] != other[1] or not _agree(first[2], other[2]):
                    told = f"{first[1]} {list(first[2])} for {first[0]}, {other[1]} {list(other[2])} for {other[0]}"
                    yield model.name, f"has a tensor {name} that is {told}"


@rule("ensemble-batch", "error", "a step that takes less than the ensemble's max_batch_size fails its requests")
def _batch(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, message in _ensembles(repository):
        for step, config in _steps(repository, message):
            if message.max_batch_size > config.max_batch_size:
                found = f"has max_batch_size {message.max_batch_size}"
                yield model.name, f"{found}, and its step {step.model_name} has {config.max_batch_size}"


@rule("ensemble-batching", "warning", "an ensemble does not batch: each of its models needs dynamic_batching")
def _batching(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, message in _ensembles(repository):
        for step, config in _steps(repository, message):
            if config.platform != "ensemble" and not config.HasField("dynamic_batching"):
                yield step.model_name, f"is a step of {model.name} and has no dynamic_batching"


@rule("ensemble-cycle", "error", "an ensemble that needs itself never loads, or never answers")
def _cycles(repository: Repository) -> Iterator[tuple[str, str]]:
    needs = {
        model.name: {step.model_name for step in message.ensemble_scheduling.step}
        for model, message in _ensembles(repository)
    }
    for name in _in_a_circle(needs):
        yield name, "is a step of itself, through the ensembles that it uses"
    for model, message in _ensembles(repository):
        steps = message.ensemble_scheduling.step
        maker = {value: k for k, step in enumerate(steps) for value in step.output_map.values()}
        edges = {
            str(k): {str(maker[value]) for value in step.input_map.values() if value in maker}
            for k, step in enumerate(steps)
        }
        if circle := sorted(_in_a_circle(edges)):
            names = ", ".join(steps[int(k)].model_name for k in circle)
            yield model.name, f"has steps that wait for each other: {names}"


def _in_a_circle(edges: dict[str, set[str]]) -> set[str]:
    """Those that reach themselves."""
    found = set()
    for start in edges:
        pending, seen = list(edges[start]), set()
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += edges.get(node, ())
        if start in seen:
            found.add(start)
    return found


def _ensembles(repository: Repository) -> Iterator[tuple[ModelFolder, Message]]:
    for model in repository.models.values():
        if model.config is not None and model.config.platform == "ensemble":
            yield model, model.config


def _steps(repository: Repository, message: Message) -> Iterator[Step]:
    """The steps whose models are there and can be read."""
    for step in message.ensemble_scheduling.step:
        used = repository.models.get(step.model_name)
        if used is not None and used.config is not None:
            yield step, used.config


def _tensor(config: Message, entry: Message) -> tuple[str, tuple[int, ...]]:
    return type_name(entry.data_type), batched(config, list(entry.dims))


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))
