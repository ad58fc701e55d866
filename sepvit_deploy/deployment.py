"""Everything that a deployment decides, in one record: what models/*.toml say, which `spec_file` reads and writes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from sepvit_deploy.building import AT_SIZES, Builder, BuildRequest, Precision, Profile
from sepvit_deploy.errors import OptionError
from sepvit_deploy.likeness import FP32, OF_ENGINE, OF_PRECISION, Tolerance
from sepvit_deploy.spec import ModelSpec, Preprocessing
from sepvit_deploy.variants import CLASSIFY_SIZE

Target = Literal["tensorrt", "cpu"]
BuilderChoice = Literal["tensorrt", "rtx", "auto"]
Method = Literal["entropy", "percentile", "mse", "minmax"]


@dataclass(frozen=True)
class WeightsSpec:
    """The checkpoint: ``file`` (empty: given by --weights), its digest (empty: not checked), averaged or not."""

    file: str = ""
    sha256: str = ""
    ema: bool = False


@dataclass(frozen=True)
class ExportSpec:
    """The ONNX file: opset, images in a batch (0: dynamic), simplified or not."""

    opset: int = 20
    batch: int = 0
    simplify: bool = True


@dataclass(frozen=True)
class PrecisionSpec:
    """Types of the graph.

    Attributes:
        keep: patterns of layers that stay out of it.
        attention: INT8 also inside the attention within windows.
        smooth: SmoothQuant's alpha at norm2 -> fc1; 0 leaves it out.
    """

    type: Precision = "fp16"
    target: Target = "tensorrt"
    keep: tuple[str, ...] = ()
    attention: bool = False
    smooth: float = 0.0


@dataclass(frozen=True)
class CalibrationSpec:
    """Where the ranges of INT8 come from: a folder or manifest of images (empty: given by --images), and the rule."""

    images: str = ""
    method: Method = "percentile"
    percentile: float = 99.99
    samples: int = 512
    batch: int = 8


@dataclass(frozen=True)
class AcceptanceSpec:
    """What the file must reach against its FP32 twin on the calibration images: a share of equal top-1."""

    agreement: float = 0.99


@dataclass(frozen=True)
class EngineSpec:
    """The engine, which is built where its builder is there.

    Attributes:
        builder: ``auto`` takes TensorRT where it and a GPU are there, else TensorRT-RTX.
        profiles: batches, of a model of any size with sizes, as ``--profile`` takes them; () for what
            `building.default_profiles` says.
        workspace_mb, level, hardware_compatible: 0, -1 and "" leave them to the builder.
        compute_capabilities: GPU generations of TensorRT-RTX; () for all.
    """

    builder: BuilderChoice = "tensorrt"
    profiles: tuple[str, ...] = ()
    workspace_mb: int = 0
    level: int = -1
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: Literal["", "ampere+", "same-cc"] = ""
    refittable: bool = False

    def request(self, builder: Builder) -> BuildRequest:
        """What it asks of a builder.

        Raises:
            OptionError: a value is unusable, or is not for this builder.
        """
        return BuildRequest(
            builder=builder,
            profiles=tuple(map(Profile.parse, self.profiles)),
            workspace_mb=self.workspace_mb or None,
            level=None if self.level == -1 else self.level,
            compute_capabilities=self.compute_capabilities,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible or None,
            refittable=self.refittable,
        )


@dataclass(frozen=True)
class ParitySpec:
    """What counts as equal on each rung of the ladder from the model in torch to the engine.

    Attributes:
        rewritten: the rewritten model; onnx: the float32 file; precision: the file of `PrecisionSpec.type`. All three
            against the model as the paper writes it.
        engine: against the file that it was built from.
    """

    rewritten: Tolerance
    onnx: Tolerance
    precision: Tolerance
    engine: Tolerance

    @classmethod
    def of(cls, precision: Precision) -> ParitySpec:
        """The defaults of a precision."""
        return cls(FP32, FP32, OF_PRECISION[precision], OF_ENGINE[precision])


@dataclass(frozen=True)
class DeploymentSpec:
    """One deployable file: what it holds, where it comes from, and what it must reach.

    Attributes:
        parity: by default what `ParitySpec.of` says of the precision.
    """

    name: str
    model: ModelSpec
    preprocessing: Preprocessing
    weights: WeightsSpec = field(default_factory=WeightsSpec)
    export: ExportSpec = field(default_factory=ExportSpec)
    precision: PrecisionSpec = field(default_factory=PrecisionSpec)
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    acceptance: AcceptanceSpec = field(default_factory=AcceptanceSpec)
    engine: EngineSpec = field(default_factory=EngineSpec)
    parity: ParitySpec = None  # type: ignore[assignment] # filled in below: it depends on the precision

    def __post_init__(self) -> None:
        if not self.parity:
            object.__setattr__(self, "parity", ParitySpec.of(self.precision.type))
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise OptionError(
                f"name is {self.name!r:.110}", expected="a file's name: letters, digits, '.', '_' and '-'"
            )
        if self.preprocessing.size != self.model.size:
            raise OptionError(
                f"preprocessing.size is {list(self.preprocessing.size)}", expected=f"model.size {list(self.model.size)}"
            )
        self.model.require_ratio(self.preprocessing)
        self._require_profiles()
        if self.precision.target == "cpu" and self.engine != EngineSpec():  # deploy would pass over it in silence
            raise OptionError("engine with precision.target 'cpu'", expected="precision.target 'tensorrt'")

    def _require_profiles(self) -> None:
        """Refuse profiles that `build` would refuse after everything before it was done."""
        batch, any_size = self.export.batch, self.model.any_size
        for text in self.engine.profiles:
            profile = Profile.parse(text)
            if batch and not any_size:
                raise OptionError(f"engine.profiles with export.batch {batch}", expected="export.batch 0")
            if batch and (profile.minimum, profile.maximum) != (batch, batch):
                raise OptionError(f"engine.profiles {text} with export.batch {batch}", expected=f"batches of {batch}")
            if any_size and profile.sizes is None:
                raise OptionError(
                    f"engine.profiles {text} without sizes, and model.any_size is true", expected=f"such as {AT_SIZES}"
                )
            if profile.sizes is not None and not any_size:
                raise OptionError(
                    f"engine.profiles {text} with sizes, and model.any_size is false",
                    expected=f"batches alone, {text.partition('@')[0]}",
                )


def default_spec(variant: str, precision: Precision) -> DeploymentSpec:
    """A complete spec of a classifier with weights and images to be supplied.

    Raises:
        OptionError: no such variant or precision.
    """
    if precision not in get_args(Precision):
        raise OptionError(f"there is no precision {precision!r}", expected=", ".join(get_args(Precision)))
    size = (CLASSIFY_SIZE, CLASSIFY_SIZE)
    model = ModelSpec(variant, "classify", size, 1000)
    return DeploymentSpec(
        name=f"sepvit_{variant}_{precision}",
        model=model,
        preprocessing=model.preprocessing,
        precision=PrecisionSpec(type=precision),
        acceptance=AcceptanceSpec(0.99 if precision == "int8" else 0.999),
    )
