"""Rules on the files that are served, against their passports: tensors, profiles, TensorRT's release."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sepvit_deploy.building import EngineFacts, Profile
from sepvit_deploy.contract import MASK
from sepvit_deploy.errors import OptionError
from sepvit_deploy.triton.messages import Message, schema, type_name
from sepvit_deploy.triton.repository import ModelFolder, Repository, Tensors, Version
from sepvit_deploy.triton.rules.configs import batched
from sepvit_deploy.triton.rules.rule import rule
from sepvit_deploy.triton.rules.versions import file_of
from sepvit_deploy.triton.served import FILES, covered
from sepvit_deploy.triton_releases import ALLOW_VERSION_COMPATIBLE, AS_OF, IMAGES, image_for

VERSION_COMPATIBLE = "version-compatible"
"""The rule that a flag of the server answers."""
Engine = tuple[ModelFolder, Message, Version, EngineFacts]


@rule("passport", "error", "a file whose passport is another's was replaced, and nothing that was checked holds for it")
def _passports(repository: Repository) -> Iterator[tuple[str, str]]:
    for model in repository.models.values():
        if model.config is None:
            continue
        for version in model.served(model.config):
            if version.has(FILES["plan"]) and isinstance(version.plan, str):
                yield f"{model.name}/{version.number}/{FILES['plan']}", version.plan
            if version.has(FILES["onnx"]):
                if isinstance(version.onnx, str):
                    yield f"{model.name}/{version.number}/{FILES['onnx']}", version.onnx
                elif isinstance(found := version.passport(FILES["onnx"]), str):
                    yield f"{model.name}/{version.number}/{FILES['onnx']}", found


@rule("no-passport", "warning", "without a passport nothing tells what a file is, and the next rules cannot look at it")
def _unknown(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, _, message in repository.configs():
        name = file_of(message)
        for version in model.served(message) if name in FILES.values() else ():
            if version.has(name) and not version.has(f"{name}.json"):
                yield f"{model.name}/{version.number}/{name}", f"has no {name}.json beside it"


@rule("tensors", "error", "names, types and dims that are not the file's are seen by Triton only when it loads")
def _tensors(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        for version in model.served(message):
            actual = _actual(version, file_of(message))
            if actual is None:
                continue
            told: Tensors = {
                entry.name: (type_name(entry.data_type), batched(message, list(entry.dims)))
                for entry in (*message.input, *message.output)
            }
            place = f"{model.name}/{config.place}"
            for name in sorted(told.keys() | actual.keys()):
                if told.get(name) != actual.get(name):
                    found = f"says {name} is {_said(told.get(name))}"
                    yield place, f"{found}, and in the file of version {version.number} it is {_said(actual.get(name))}"


def _actual(version: Version, file: str) -> Tensors | None:
    """Tensors of the file that is served, as far as they are known."""
    if file == FILES["onnx"] and version.has(file) and isinstance(version.onnx, dict):
        return version.onnx
    if file == FILES["plan"] and version.has(file) and isinstance(version.plan, EngineFacts):
        network = version.plan.network
        tensors = (network.inputs | network.outputs).items()
        # A passport says no types; of what this package builds, masks alone are no FP32.
        return {name: ("UINT8" if name == MASK else "FP32", tuple(shape)) for name, shape in tensors}
    return None


def _said(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "not there" if tensor is None else f"{tensor[0]} {list(tensor[1])}"


@rule(
    "batch-profile", "error", "Triton makes batches up to max_batch_size, and a batch in no profile fails its requests"
)
def _profiles(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, message, version, facts in _engines(repository):
        place, most = f"{model.name}/{version.number}", message.max_batch_size
        if facts.batch is not None or not most:
            if facts.batch is not None and most:
                yield place, f"is for batches of {facts.batch} and no other, and max_batch_size is {most}"
            elif facts.profiles and not most:
                yield place, "takes any batch of its profiles, and max_batch_size is 0"
            continue
        for group in message.instance_group or [schema().ModelInstanceGroup()]:  # without one, the server makes one
            chosen = list(group.profile) or ["0"]  # the server's default, however many there are
            if unknown := [each for each in chosen if not (each.isdecimal() and int(each) < len(facts.profiles))]:
                count = f"{len(facts.profiles)} profile{'' if len(facts.profiles) == 1 else 's'}"
                yield place, f"has {count}, and the config asks for {', '.join(unknown)}"
                continue
            profiles: tuple[Profile, ...] = tuple(facts.profiles[int(each)] for each in chosen)
            if (reached := covered(profiles)) < most:
                told = ", ".join(profile.takes for profile in profiles)
                found = f"takes batches of {told} in profile {', '.join(chosen)}"
                yield place, f"{found}, none of {reached + 1}, and max_batch_size is {most}"


@rule("tensorrt-release", "error", "a plan loads in the TensorRT that built it, and a server carries one")
def _release(repository: Repository) -> Iterator[tuple[str, str]]:
    carried = _carried(repository.release)
    for model, _, version, facts in _engines(repository):
        if carried and not _loads(facts, carried):
            needed = image_for(facts.builder_version)
            hint = f", which tritonserver:{needed} carries" if needed else ""
            found = f"was built by TensorRT {_patch(facts.builder_version)}{hint}"
            yield f"{model.name}/{version.number}", f"{found}; release {repository.release} carries {carried}"


def require_known_release(repository: Repository) -> None:
    """Refuse a release that no plan of the repository can be held against.

    Raises:
        OptionError: which TensorRT it carries is not known.
    """
    if repository.release and not _carried(repository.release) and has_plans(repository):
        raise OptionError(
            f"--release {repository.release}: which TensorRT it carries was not known on {AS_OF}",
            expected=" or ".join(tag.removesuffix("-py3") for tag in IMAGES.values()),
            hint="leave --release out to judge all else",
        )


def has_plans(repository: Repository) -> bool:
    """True where a plan is served of which the TensorRT is known."""
    return any(True for _ in _engines(repository))


@rule(
    VERSION_COMPATIBLE,
    "warning",
    "a version-compatible plan brings code of the TensorRT that built it, which a server runs only where it is told to",
)
def _host_code(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, _, version, facts in _engines(repository):
        if facts.version_compatible:
            found = f"is version-compatible: start the server with {ALLOW_VERSION_COMPATIBLE}"
            yield f"{model.name}/{version.number}", found


@rule("one-tensorrt", "error", "a server carries one TensorRT: plans of two never load together")
def _one(repository: Repository) -> Iterator[tuple[str, str]]:
    engines = list(_engines(repository))
    strict = [facts.builder_version for _, _, _, facts in engines if not facts.version_compatible]
    if not strict:
        return
    first = _patch(strict[0])
    for model, _, version, facts in engines:
        if not _loads(facts, first):
            found = f"was built by TensorRT {_patch(facts.builder_version)}"
            yield f"{model.name}/{version.number}", f"{found}, and another plan here by {first}"


def _engines(repository: Repository) -> Iterator[Engine]:
    """Every plan that is served and known."""
    for model, _, message in repository.configs():
        if file_of(message) == FILES["plan"]:
            for version in model.served(message):
                if version.has(FILES["plan"]) and isinstance(version.plan, EngineFacts):
                    yield model, message, version, version.plan


def _carried(release: str | None) -> str | None:
    """TensorRT of a release, as far as the table knows."""
    return next((version for version, tag in IMAGES.items() if tag == f"{release}-py3"), None)


def _patch(version: str) -> str:
    return ".".join(version.split(".")[:3])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall("[0-9]{1,9}", _patch(version))) or (0,)


def _loads(facts: EngineFacts, carried: str) -> bool:
    """True where a server with this TensorRT loads the plan."""
    built, there = _numbers(facts.builder_version), _numbers(carried)
    return built == there or (facts.version_compatible and built < there and built[0] == there[0])
