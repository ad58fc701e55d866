"""The files of a model's folder, before any is written: bytes, or the path of the file to copy."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sepvit_deploy.artifact import passport_path
from sepvit_deploy.contract import classify_name, mask_name, preprocess_name, rank_name, segment_name
from sepvit_deploy.errors import InputError
from sepvit_deploy.images import MAX_UPLOAD_PIXELS, decode_image, preprocess
from sepvit_deploy.triton import config
from sepvit_deploy.triton.messages import as_text
from sepvit_deploy.triton.served import CONFIG, CPU_CONFIG, FILES, Served, Serving

WARMUP = "warmup"
Content = bytes | Path


@dataclass
class Model:
    """One folder of a repository.

    Attributes:
        shared: files of the folder that all versions share, by their place in it.
        version: files of the version folder.
    """

    name: str
    shared: dict[str, Content] = field(default_factory=dict)
    version: dict[str, Content] = field(default_factory=dict)


def models(served: Served, serving: Serving) -> list[Model]:
    """Every folder that a model needs, in the order in which they may appear: what others use comes first.

    Raises:
        InputError: a label cannot be a line of a text.
    """
    if not ((served.classifies or served.segments) and serving.ensemble):
        return [_model(served, serving)]
    if served.segments:
        behind, name = _mask(served, serving), segment_name(served.name)
        text = as_text(config.of_segment(served, serving), _SEGMENT)
    else:
        behind, name = _rank(served, serving), classify_name(served.name)
        text = as_text(config.of_ensemble(served, serving), _ENSEMBLE)
    # Triton loads a version that has a folder, and git keeps no empty one.
    ensemble = Model(name, {CONFIG: text.encode()}, {".keep": b""})
    return [_preprocess(served, serving), behind, _model(served, serving), ensemble]


def _model(served: Served, serving: Serving) -> Model:
    comments = (
        f"{served.name}, from {served.path.name} (SHA-256 {served.sha256}), as sepvit-deploy triton writes it.",
        *_MODEL,
        *(_NO_CPU if served.onnx is None else _CPU),
    )
    model = Model(served.name, {CONFIG: as_text(config.of_model(served, serving), comments).encode()})
    sources = {FILES[served.kind]: served.path}
    if served.onnx is not None:
        text = as_text(config.of_model_on_cpu(served, serving), _ON_CPU)
        model.shared[CPU_CONFIG] = text.encode()
        sources[FILES["onnx"]] = served.onnx
    for name, path in sources.items():
        model.version |= {name: path, f"{name}.json": passport_path(path)}
    if served.classifies:
        model.shared[config.LABELS] = _label_lines(served.classes)
    picture = decode_image(_photograph())
    whole = replace(served.preprocessing, keep_ratio=False)  # of any size, the largest
    images = preprocess(picture, whole).astype("<f4").tobytes()
    model.shared[f"{WARMUP}/{config.WARMUP_IMAGES}"] = images * (served.batch or 1)
    return model


def _preprocess(served: Served, serving: Serving) -> Model:
    settings: dict[str, object] = {"preprocessing": served.preprocessing.to_dict(), "max_pixels": MAX_UPLOAD_PIXELS}
    if served.segments:
        settings["sizes"] = True
    picture = _photograph()
    element = len(picture).to_bytes(4, "little") + picture  # Triton's form of BYTES
    return Model(
        preprocess_name(served.name),
        {
            CONFIG: as_text(config.of_preprocess(served, serving), _PREPROCESS).encode(),
            f"{WARMUP}/{config.WARMUP_PICTURE}": element * (served.batch or 1),
        },
        _python("preprocess", ("errors", "heads", "images", "spec", "variants"))
        | {"preprocessing.json": _json(settings)},
    )


def _rank(served: Served, serving: Serving) -> Model:
    settings = {"top": served.top, "labels": served.classes}
    return Model(
        rank_name(served.name),
        {CONFIG: as_text(config.of_rank(served, serving), _RANK).encode()},
        _python("rank", ("errors", "classes")) | {"ranking.json": _json(settings)},
    )


def _mask(served: Served, serving: Serving) -> Model:
    settings = {"palette": served.colours}
    return Model(
        mask_name(served.name),
        {CONFIG: as_text(config.of_mask(served, serving), _MASK).encode()},
        _python("mask", ("errors", "masks")) | {"masking.json": _json(settings)},
    )


def _python(model: str, modules: Iterable[str]) -> dict[str, Content]:
    """A Python model and the modules of this package that it runs, as they are: what serves is what is tested."""
    package = importlib.resources.files("sepvit_deploy")
    doc = '"""The part of sepvit-deploy that this model runs, copied."""\n'
    files: dict[str, Content] = {"sepvit_deploy/__init__.py": doc.encode()}
    files |= {f"sepvit_deploy/{name}.py": (package / f"{name}.py").read_bytes() for name in modules}
    return files | {"model.py": (package / "triton" / "python" / f"{model}.py").read_bytes()}


def _photograph() -> bytes:
    """The picture that warms a server up: the cat Chelsea by Stefan van der Walt, CC0."""
    return (importlib.resources.files("sepvit_deploy.triton.python") / "photograph.jpg").read_bytes()


def _label_lines(labels: tuple[str, ...]) -> bytes:
    """Labels as Triton reads them, one a line."""
    for number, label in enumerate(labels):
        if not label.strip() or len(label.splitlines()) != 1:
            raise InputError(f"label {number} is {label!r:.60}", expected="one line of text for each class")
    return "".join(f"{label}\n" for label in labels).encode()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


_MODEL = (
    "Requests wait for others to join them, but not longer than max_queue_delay_microseconds. A full queue, or a wait",
    "of default_timeout_microseconds, is answered UNAVAILABLE: a client sees an overload, and no hang.",
    "Two versions are served: the one before answers until the new one is loaded.",
    "Warm-up never asks for more than max_batch_size: Triton has been seen to die of that.",
)
_CPU = ("Where there is no GPU: tritonserver --model-config-name=cpu, which takes configs/cpu.pbtxt.",)
_NO_CPU = ("There is no configs/cpu.pbtxt, for the ONNX file that the plan was built from was not beside it.",)
_ON_CPU = (
    "For tritonserver --model-config-name=cpu: the ONNX file beside it, in ONNX Runtime; see ../config.pbtxt.",
    "One instance, which takes every core: a second one would share them.",
    "Graph level 2, where it stands, is no optimisation: INT8 is computed as it is written, as TensorRT does, for ONNX",
    "Runtime's own INT8 kernels saturate on some CPUs.",
)
_PREPROCESS = (
    "Encoded pictures, or pixels as UINT8 HWC, to images: give one of the two inputs.",
    "Needs numpy and Pillow in Triton's Python. Each instance is a process; more of them decode more pictures at once.",
)
_RANK = ("Logits to the best classes: their numbers, labels and scores. Needs numpy in Triton's Python.",)
_MASK = (
    "What the model gives to the classes of the picture's own pixels: a PNG whose values are class numbers, for masks",
    "that differ in size have no tensor in common. Needs numpy and Pillow in Triton's Python.",
)
_SEGMENT = (
    "An encoded picture to its mask, a PNG of the picture's size whose values are class numbers.",
    "Each step batches and queues by itself; an ensemble does neither.",
)
_ENSEMBLE = (
    "An encoded picture to the best classes. Each step batches and queues by itself; an ensemble does neither.",
)
