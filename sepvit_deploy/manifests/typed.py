"""Manifests held against the classes that the kserve and kubernetes packages bring: every key and every type.

Those classes are generated from the schemas of the resources. By themselves they judge little: reading a document they
drop unknown keys without a word, and a value of the wrong type is kept, or converted. So a document is walked beside
them here, and at last written again by KServe's own client: what comes out must be what went in.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from sepvit_deploy.errors import ManifestFailed
from sepvit_deploy.manifests import kserve_classes
from sepvit_deploy.optional import require

ROOTS = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
    ("v1", "Service"): "V1Service",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "V2HorizontalPodAutoscaler",
}
"""Resources by ``apiVersion`` and ``kind``, and the class of each."""
_RENAMED = {
    "K8sIoApiAutoscalingV2HorizontalPodAutoscalerBehavior": "V2HorizontalPodAutoscalerBehavior",
    "K8sIoApiAppsV1DeploymentStrategy": "V1DeploymentStrategy",
}
"""Kubernetes' classes as the kserve package calls them, which it lacks itself."""
_QUANTITIES = ("ResourceQuantity", "V1beta1MetricQuantity")
_QUANTITY = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?", re.ASCII)
_PLAIN: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def require_typed(document: Mapping[str, Any], file: str) -> None:
    """Refuse a manifest that its API would refuse, or take only in part.

    Raises:
        ManifestFailed: a key is unknown, a type is wrong, or what is required is missing; each by its place.
        MissingDependency: the kserve package is not installed.
    """
    if found := faults(document):
        raise ManifestFailed(
            f"{file} is no {document.get('kind')}: {'; '.join(found)}",
            expected="what the installed kserve package describes",
        )


def faults(document: Mapping[str, Any]) -> list[str]:
    """What in a manifest its classes do not take, each with its place; [] where nothing is."""
    root = ROOTS.get((str(document.get("apiVersion")), str(document.get("kind"))))
    if root is None:
        return [f"{document.get('apiVersion')} {document.get('kind')} is none of the kinds that are judged"]
    walk = _Walk()
    made = walk.read(document, root, "")
    if walk.faults:
        return walk.faults
    _, client = kserve_classes.load()
    again = client.ApiClient().sanitize_for_serialization(made)
    return [] if again == document else ["KServe's client writes it in another way than it was read"]


class _Walk:
    """A document, read into the generated classes from its leaves up; what they do not take is collected."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        models, _ = kserve_classes.load()
        self._modules = (models, require("kubernetes.client", extra="kserve"))

    def read(self, value: Any, hint: str, path: str) -> Any:
        """``value`` as the class or the plain type that ``hint`` names; the value itself where it is none."""
        if inner := re.fullmatch(r"[Ll]ist\[(.*)\]", hint):
            if not isinstance(value, list):
                return self._wrong(value, "a list", path)
            return [self.read(item, inner[1], f"{path}[{i}]") for i, item in enumerate(value)]
        if inner := re.fullmatch(r"dict\(str, (.*)\)|Dict\[str, (.*)\]", hint):
            if not isinstance(value, Mapping):
                return self._wrong(value, "a table", path)
            return {key: self.read(item, inner[1] or inner[2], f"{path}.{key}") for key, item in value.items()}
        if hint in _QUANTITIES:
            fits = type(value) is int or (isinstance(value, str) and _QUANTITY.fullmatch(value))
            return value if fits else self._wrong(value, "a quantity", path)
        if plain := _PLAIN.get(hint):
            fits = isinstance(value, plain) and (hint == "bool" or not isinstance(value, bool))
            return value if fits else self._wrong(value, hint, path)
        if hint in ("object", "datetime"):  # whatever the API takes: a number or a name, a time
            return value
        kind = self._named(_RENAMED.get(hint, hint))
        if kind is None:
            self.faults.append(f"{path}: {hint} is in neither package")
            return value
        return self._instance(value, kind, path)

    def _instance(self, value: Any, kind: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            return self._wrong(value, "a table", path)
        attributes = {key: attribute for attribute, key in kind.attribute_map.items()}
        before = len(self.faults)
        arguments = {}
        for key, item in value.items():
            place = f"{path}.{key}".lstrip(".")
            if key in attributes:
                arguments[attributes[key]] = self.read(item, kind.openapi_types[attributes[key]], place)
                continue
            near = kind.attribute_map.get(key) or next(iter(difflib.get_close_matches(str(key), attributes, 1)), None)
            self.faults.append(f"{place} is no key" + (f", {near} is" if near else ""))
        if len(self.faults) > before:
            return value
        try:
            return kind(**arguments)
        except ValueError as error:  # a required key is missing, or a value is none of those that there are
            words = [line.strip() for line in str(error).splitlines() if "For further information" not in line]
            self.faults.append(f"{path or kind.__name__}: {re.sub(r' .type=.*', '', ' '.join(words))}")
            return value

    def _named(self, name: str) -> Any:
        return next((getattr(module, name) for module in self._modules if hasattr(module, name)), None)

    def _wrong(self, value: Any, expected: str, path: str) -> Any:
        self.faults.append(f"{path} is {value!r:.60}, not {expected}")
        return value
