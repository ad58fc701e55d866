"""A deployment spec's file, models/*.toml: read, validated key by key, and written.

A key that is left out has its default; a key that does not exist is refused with the nearest one that does. Paths are
relative to the spec's own folder.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from sepvit_deploy.building import Builder, Precision
from sepvit_deploy.deployment import (
    AcceptanceSpec,
    BuilderChoice,
    CalibrationSpec,
    DeploymentSpec,
    EngineSpec,
    ExportSpec,
    Method,
    ParitySpec,
    PrecisionSpec,
    Target,
    WeightsSpec,
)
from sepvit_deploy.errors import OptionError
from sepvit_deploy.likeness import Tolerance
from sepvit_deploy.spec import MAX_BATCH, OPSETS, ModelSpec, Preprocessing

MAX_SPEC_BYTES = 1 << 20


def read_spec(path: Path) -> DeploymentSpec:
    """Read and validate a spec.

    Raises:
        OptionError: unreadable, no TOML, a key that does not exist, or an unusable value; the file is named.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("it is no regular file")
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise ValueError("it is larger than 1 MiB")
        return spec_from_dict(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OptionError as error:
        raise OptionError(f"{path}: {error.found}", expected=error.expected, hint=error.hint) from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no TOML, or an integer of too many digits
        reason = getattr(error, "strerror", None) or error
        hint = "type: sepvit-deploy init t int8 > my.toml"
        raise OptionError(f"{path} is no deployment spec ({reason})", expected="a TOML file", hint=hint) from error


def spec_from_dict(document: Mapping[str, Any]) -> DeploymentSpec:
    """The record behind a document's keys.

    Raises:
        OptionError: a key is unknown or missing, or its value is unusable.
    """
    values = _known("", DeploymentSpec, document)
    model = ModelSpec(**_known("model", ModelSpec, values["model"]))
    defaults = model.preprocessing.to_dict()
    given = values.get("preprocessing", {})
    if not isinstance(given, Mapping):
        raise OptionError(f"preprocessing is {given!r:.60}", expected="a table of keys and values")
    values["model"] = model
    merged = _known("preprocessing", Preprocessing, {**defaults, **given})
    if type(merged["resize_shorter"]) is int and not merged["resize_shorter"]:
        merged["resize_shorter"] = None
    values["preprocessing"] = Preprocessing(**merged)
    for name, cls, check in (
        ("weights", WeightsSpec, _check_weights),
        ("export", ExportSpec, _check_export),
        ("precision", PrecisionSpec, _check_precision),
        ("calibration", CalibrationSpec, _check_calibration),
        ("acceptance", AcceptanceSpec, _check_acceptance),
        ("engine", EngineSpec, _check_engine),
    ):
        values[name] = cls(**_checked(name, cls, _known(name, cls, values.get(name, {}))))
        check(values[name])
    values["parity"] = _parity(values.get("parity", {}), values["precision"].type)
    return DeploymentSpec(**values)


_T = TypeVar("_T")


def _known(what: str, cls: type[_T], values: object) -> dict[str, Any]:
    """The keys of a table, all of them fields of ``cls``, none without a default left out."""
    if not isinstance(values, Mapping):
        raise OptionError(f"{what} is {values!r:.60}", expected="a table of keys and values")
    names = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
    prefix = f"{what}." if what else ""
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1, 0.5)
            raise OptionError(
                f"unknown key {prefix}{key:.60}",
                expected=", ".join(prefix + name for name in names),
                hint=f"did you mean {prefix}{near[0]}?" if near else None,
            )
    optional = {entry.name for entry in fields(cls) if entry.default is not MISSING}  # type: ignore[arg-type]
    optional |= {entry.name for entry in fields(cls) if entry.default_factory is not MISSING}  # type: ignore[arg-type]
    optional |= {"preprocessing"}
    if missing := [prefix + name for name in names if name not in values and name not in optional]:
        raise OptionError(f"missing: {', '.join(missing)}", expected=", ".join(prefix + name for name in names))
    return dict(values)


def _checked(what: str, cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The same values, each of the type of its default; a list of texts becomes a tuple."""
    for entry in fields(cls):
        if entry.name not in values:
            continue
        value, default = values[entry.name], entry.default
        if isinstance(default, tuple):
            good = isinstance(value, list) and all(isinstance(item, str) for item in value)
            values[entry.name] = tuple(value) if good else value
        elif isinstance(default, float):
            good = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            good = type(value) is type(default)
        if not good:
            like = f"the like of {json.dumps(default)}" if default != () else 'a list of texts, ["...", "..."]'
            raise OptionError(f"{what}.{entry.name} is {value!r:.60}", expected=like)
    return values


def _one_of(key: str, value: object, allowed: object) -> None:
    if value not in get_args(allowed):
        raise OptionError(f"{key} is {value!r:.60}", expected=" or ".join(get_args(allowed)))


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise OptionError(f"{key} is {value}", expected=f"{low:g} to {high:g}")


def _check_weights(spec: WeightsSpec) -> None:
    if spec.sha256 and not re.fullmatch("[0-9a-f]{64}", spec.sha256):
        raise OptionError(f"weights.sha256 is {spec.sha256!r:.70}", expected="64 hexadecimal digits, or nothing")


def _check_export(spec: ExportSpec) -> None:
    _within("export.opset", spec.opset, OPSETS[0], OPSETS[-1])
    _within("export.batch", spec.batch, 0, MAX_BATCH)


def _check_precision(spec: PrecisionSpec) -> None:
    _one_of("precision.type", spec.type, Precision)
    _one_of("precision.target", spec.target, Target)
    _within("precision.smooth", spec.smooth, 0, 1)
    of_int8 = [name for name in ("attention", "smooth") if getattr(spec, name)] + ["target"] * (spec.target == "cpu")
    unused = of_int8 if spec.type == "fp16" else [*of_int8, *["keep"] * bool(spec.keep)] if spec.type == "fp32" else []
    if unused:  # deploy would pass over it in silence
        raise OptionError(f"precision.{unused[0]} with precision.type {spec.type!r}", expected="precision.type 'int8'")
    if spec.target == "cpu" and spec.attention:
        raise OptionError("precision.attention with precision.target 'cpu'", expected="attention in float32 on a CPU")


def _check_calibration(spec: CalibrationSpec) -> None:
    _one_of("calibration.method", spec.method, Method)
    _within("calibration.percentile", spec.percentile, 90, 100)
    _within("calibration.samples", spec.samples, 1, 1_000_000)
    _within("calibration.batch", spec.batch, 1, MAX_BATCH)


def _check_acceptance(spec: AcceptanceSpec) -> None:
    _within("acceptance.agreement", spec.agreement, 0, 1)


def _check_engine(spec: EngineSpec) -> None:
    _one_of("engine.builder", spec.builder, BuilderChoice)
    try:
        for builder in get_args(Builder) if spec.builder == "auto" else (spec.builder,):
            spec.request(builder)
    except OptionError as error:
        found, expected, hint = (text and _as_keys(text) for text in (error.found, error.expected, error.hint))
        raise OptionError(str(found), expected=expected, hint=hint) from error


def _as_keys(text: str) -> str:
    """The same with keys of the table for options of the command line."""
    for entry in fields(EngineSpec):
        option = "--" + entry.name.replace("_", "-")
        for spelling in (option.removesuffix("s"), option.removesuffix("ies") + "y"):
            text = re.sub(rf"{spelling}(?![a-z-])", f"engine.{entry.name}", text)
    return text.replace("no such option", "no such key")


def _parity(given: object, precision: Precision) -> ParitySpec:
    """The tolerances of a table, each with the defaults of ``precision`` for what it leaves out."""
    rungs = dict(vars(ParitySpec.of(precision)))
    if not isinstance(given, Mapping):
        raise OptionError(f"parity is {given!r:.60}", expected="a table of keys and values")
    for rung, values in _known("parity", ParitySpec, {**rungs, **given}).items():
        if rung in given:
            key = f"parity.{rung}"
            rungs[rung] = replace(rungs[rung], **_checked(key, Tolerance, _known(key, Tolerance, values)))
            for name, high in (("relative", 2), ("sqnr_db", 200), ("top1_agreement", 1)):
                _within(f"{key}.{name}", getattr(rungs[rung], name), 0, high)
    return ParitySpec(**rungs)


_COMMENTS = {
    "weights": "the checkpoint; an empty file is given by --weights, an empty digest is not checked",
    "preprocessing": "as the model was trained; resize_shorter 0 resizes straight to size, without a crop",
    "export": "batch 0 is dynamic",
    "precision": "type fp32, fp16 or int8; target tensorrt or cpu; keep lists patterns of layers that stay out of it",
    "calibration": "for int8: a folder or manifest of images (empty: --images); entropy, percentile, mse or minmax",
    "acceptance": "against the FP32 file on those images: share of equal top-1, or pixels",
    "engine": 'builder tensorrt, rtx or auto; profiles such as ["1", "4,8,32"], of any_size ["1@512x512"];\n'
    'compute_capabilities, of rtx, such as ["8.6"]; 0, -1 and nothing leave it to the builder',
    "parity": "of a form against the model in torch, of the engine against its ONNX file; they go with the precision.\n"
    "INT8 is judged on images, by acceptance; here only a broken one is told from a whole one",
}


def spec_text(spec: DeploymentSpec) -> str:
    """The TOML of a spec, every key written out; `read_spec` gives the same record back."""
    lines = ["# sepvit-deploy deploy THIS.toml --out build", f"name = {json.dumps(spec.name)}"]
    plain = {"model": spec.model.to_dict(), "preprocessing": spec.preprocessing.to_dict()}
    for table, values in (asdict(spec) | plain).items():
        if isinstance(values, dict):
            lines += ["", *(f"# {line}" for line in _COMMENTS.get(table, "").splitlines()), f"[{table}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """JSON's form of texts, numbers, truth values and lists is TOML's, too; None, which TOML lacks, is 0.

    Not JSON's escapes beyond 16 bits, which are pairs of surrogates. A table within a table is written in its line.
    """
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    text = json.dumps(list(value) if isinstance(value, tuple) else 0 if value is None else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")  # the one control character that JSON leaves as it is
