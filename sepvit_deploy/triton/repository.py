"""A model repository as it lies on a disk, read for the linter: nothing of it is loaded or run.

What is read is a regular file inside the repository and below a limit; all else is a problem that a rule reports.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from sepvit_deploy import artifact, plans
from sepvit_deploy.artifact import Passport
from sepvit_deploy.building import EngineFacts
from sepvit_deploy.errors import GraphError, InputError, SepvitError
from sepvit_deploy.graph import MAX_BYTES
from sepvit_deploy.triton.messages import Message, parse, schema
from sepvit_deploy.triton.served import CONFIG, FILES

MAX_CONFIG_BYTES = 1 << 20
MAX_MODELS = 10_000
MAX_ENTRIES = 200_000
"""Of a repository: beyond it, it is some other folder that was named."""
HIDDEN = ".tmp"
"""What a folder that is not ready yet ends in."""
Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name, -1 for a dimension that is free."""


@dataclass(frozen=True)
class Config:
    """One file of a config: its place in the model's folder, and what it says or why it says nothing."""

    place: str
    message: Message | None
    problem: str = ""


@dataclass(frozen=True)
class Version:
    """A version's folder."""

    number: int
    path: Path
    base: Path

    def has(self, name: str) -> bool:
        """True where there is such a file, inside the repository."""
        return os.path.isfile(self.path / name) and is_inside(self.path / name, self.base)

    @cached_property
    def onnx(self) -> Tensors | str:
        """Inputs and outputs of ``model.onnx``, or why it is none."""
        try:
            return _onnx_tensors(self.path / FILES["onnx"])
        except GraphError as error:
            return str(error)

    @cached_property
    def plan(self) -> EngineFacts | str:
        """What the passport of ``model.plan`` says, or why that is not to be believed."""
        try:
            facts = plans.read_plan(self.path / FILES["plan"]).facts
            return facts if facts is not None else "nothing is known of it"
        except InputError as error:
            return str(error)

    def passport(self, name: str) -> Passport | str | None:
        """The passport of a file, or why it is not that file's; None where there is none."""
        try:
            return artifact.read_passport(self.path / name)
        except InputError as error:
            return str(error)


@dataclass(frozen=True)
class ModelFolder:
    """A model: a folder of the repository.

    Attributes:
        base: the folder that everything of it has to lie in.
        strays: folders in it that are neither versions nor known to Triton.
    """

    name: str
    path: Path
    base: Path
    configs: tuple[Config, ...] = ()
    versions: dict[int, Version] = field(default_factory=dict)
    strays: tuple[str, ...] = ()

    @property
    def config(self) -> Message | None:
        """What ``config.pbtxt`` says, where it can be read."""
        return next((config.message for config in self.configs if config.place == CONFIG), None)

    def served(self, message: Message) -> list[Version]:
        """The versions that a config's policy serves, of those that there are."""
        policy, numbers = message.version_policy, sorted(self.versions)
        if policy.HasField("specific"):
            numbers = [number for number in numbers if number in set(policy.specific.versions)]
        elif not policy.HasField("all"):
            numbers = numbers[-max(1, policy.latest.num_versions) :]
        return [self.versions[number] for number in numbers]

    def read(self, place: str, most: int) -> bytes:
        """A file of the model's folder.

        Raises:
            InputError: there is none, it is too large, or it lies elsewhere.
        """
        return read_file(self.path / place, self.base, most)


@dataclass(frozen=True)
class Repository:
    """Every model of a repository.

    Attributes:
        release: the server's, ``25.10``, where it is known.
        leftovers: what is no model, and was left by a writer that was interrupted.
        links: symbolic links that lead out of the repository, and where to.
    """

    path: Path
    models: dict[str, ModelFolder]
    release: str | None = None
    leftovers: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)

    def configs(self) -> Iterator[tuple[ModelFolder, Config, Message]]:
        """Each config that can be read, with its model."""
        for model in self.models.values():
            for config in model.configs:
                if config.message is not None:
                    yield model, config, config.message

    def with_models(self, staged: Repository) -> Repository:
        """As it will be once ``staged`` is in place: its files over those that are there, its versions beside them."""
        merged = dict(self.models)
        for name, model in staged.models.items():
            if (old := self.models.get(name)) is not None:
                new = {config.place for config in model.configs}
                kept = tuple(config for config in old.configs if config.place not in new)
                model = replace(model, configs=model.configs + kept, versions=old.versions | model.versions)
            merged[name] = model
        return replace(self, models=merged)


def read_repository(path: Path, release: str | None = None) -> Repository:
    """Read a repository's configs and list its folders.

    Raises:
        InputError: it is no folder, cannot be listed, or is far larger than a repository.
        MissingDependency: tritonclient is not installed.
    """
    schema()
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        links = _links(path)
    except OSError as error:
        kind = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        expected = "a model repository: a folder with a folder for each model"
        raise InputError(f"{path} {kind}", expected=expected) from error
    folders = [entry.name for entry in entries if entry.is_dir()]
    if len(folders) > MAX_MODELS:
        raise InputError(f"{path} holds {len(folders)} folders", expected=f"at most {MAX_MODELS} models")
    leftovers = tuple(name for name in folders if name.startswith(".") and name.endswith(HIDDEN))
    models = {name: _model(path / name, path) for name in folders if name not in leftovers}
    return Repository(path, models, release, leftovers, links)


def is_inside(path: Path, base: Path) -> bool:
    """True where a file, whatever links lead to it, lies in a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(base))


def read_file(path: Path, base: Path, most: int) -> bytes:
    """A regular file inside ``base``.

    Raises:
        InputError: it is not there, no such file, larger than ``most``, or lies outside.
    """
    try:
        if not is_inside(path, base):
            raise InputError(f"{path.name} lies outside of the repository")
        if not os.path.isfile(path):
            raise InputError(f"{path.name} is {'no regular file' if os.path.lexists(path) else 'not there'}")
        if (size := os.stat(path).st_size) > most:
            raise InputError(f"{path.name} has {size} bytes", expected=f"at most {most}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read ({error})") from error


def _model(path: Path, base: Path) -> ModelFolder:
    configs: list[Config] = []
    versions: dict[int, Version] = {}
    strays: list[str] = []
    try:
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
        more = sorted(os.listdir(path / "configs")) if os.path.isdir(path / "configs") else []
    except OSError as error:
        return ModelFolder(path.name, path, base, (Config(CONFIG, None, f"the folder is unreadable ({error})"),))
    for place in (CONFIG, *(f"configs/{name}" for name in more if name.endswith(".pbtxt"))):
        configs.append(_config(path, base, place))
    for name in names:
        if re.fullmatch("[1-9][0-9]{0,8}", name, re.ASCII):
            versions[int(name)] = Version(int(name), path / name, base)
        elif name not in ("configs", "warmup", "initial_state"):
            strays.append(name)
    return ModelFolder(path.name, path, base, tuple(configs), versions, tuple(strays))


def _config(path: Path, base: Path, place: str) -> Config:
    try:
        return Config(place, parse(read_file(path / place, base, MAX_CONFIG_BYTES).decode("utf-8")))
    except (SepvitError, ValueError, RecursionError) as error:
        return Config(place, None, str(error))


def _links(path: Path) -> dict[str, str]:
    """Links that lead out of the repository: their places in it, and where they lead."""
    found: dict[str, str] = {}
    seen = 0
    for folder, folders, files in os.walk(path):
        seen += len(folders) + len(files)
        if seen > MAX_ENTRIES:
            raise InputError(f"{path} holds more than {MAX_ENTRIES} files", expected="a model repository")
        for name in (*folders, *files):
            place = Path(folder, name)
            if place.is_symlink() and not is_inside(place, path):
                found[place.relative_to(path).as_posix()] = os.path.realpath(place)
    return found


def _onnx_tensors(path: Path) -> Tensors:
    """Inputs and outputs of an ONNX file, whose weights stay where they are.

    Raises:
        GraphError: it is none, or keeps its weights outside of its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if os.stat(path).st_size > MAX_BYTES:
            raise GraphError(f"{path.name} is larger than 2 GiB")
        model = onnx.load_model_from_string(path.read_bytes())
    except (OSError, DecodeError, ValueError) as error:
        raise GraphError(f"{path.name} is no ONNX file ({error})") from error
    if not model.graph.node:
        raise GraphError(f"{path.name} is no ONNX file")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            place = path.parent / entry.value
            if entry.key == "location" and not (is_inside(place, path.parent) and os.path.isfile(place)):
                raise GraphError(f"{path.name} keeps weights in {entry.value!r}, which is not beside it")
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: (
            _ONNX_TYPES.get(value.type.tensor_type.elem_type, "another type"),
            tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim),
        )
        for value in (*model.graph.input, *model.graph.output)
        if value.name not in weights
    }


_ONNX_TYPES = {1: "FP32", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL", 10: "FP16", 11: "FP64"}
"""Of TensorProto, by Triton's names."""
