"""Triton's own protobuf messages: a config's text and its record, and nothing that reads them by other means."""

from __future__ import annotations

import re
from typing import Any

from sepvit_deploy.errors import RepositoryFailed
from sepvit_deploy.optional import require

Message = Any
"""A record of model_config_pb2, whose types are made when it is imported."""


def schema() -> Any:
    """The module of Triton's records.

    Raises:
        MissingDependency: tritonclient is not installed.
    """
    return require("tritonclient.grpc.model_config_pb2", extra="serving")


def parse(text: str) -> Message:
    """A config as Triton reads it.

    Raises:
        ValueError: it is none; the message says where.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, schema().ModelConfig())
    except text_format.ParseError as error:
        text = re.sub("^([0-9]+):[0-9]+ : ", r"line \1: ", str(error))
        raise ValueError(" ".join(text.split())) from error


def as_text(config: Message, comments: tuple[str, ...] = ()) -> str:
    """A config's text, below ``comments``, proven by reading it back.

    Raises:
        RepositoryFailed: it reads as something else.
    """
    from google.protobuf import text_format

    head = "".join(f"# {line}".rstrip() + "\n" for line in comments)
    text = head + ("\n" if head else "") + str(text_format.MessageToString(config))
    if parse(text) != config:
        raise RepositoryFailed(f"the config of {config.name} reads back as another one")
    return text


def type_name(config_type: int) -> str:
    """FP32 for TYPE_FP32, BYTES for TYPE_STRING: as clients say it."""
    kinds: dict[int, str] = {number: name for name, number in schema().DataType.items()}
    name = kinds.get(config_type, f"TYPE_{config_type}").removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
