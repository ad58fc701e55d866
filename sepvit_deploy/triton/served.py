"""What is known of a model that a repository is to hold, and what its user asks for: everything a config is made from.

A limit is the most images that the server joins into one run: Triton's max_batch_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sepvit_deploy.building import Profile
from sepvit_deploy.classes import TOP
from sepvit_deploy.contract import MAX_DELAY_US
from sepvit_deploy.errors import OptionError, PlanError
from sepvit_deploy.masks import Colour
from sepvit_deploy.spec import MAX_BATCH, ModelSpec, Preprocessing

Kind = Literal["plan", "onnx"]
FILES: dict[Kind, str] = {"plan": "model.plan", "onnx": "model.onnx"}
"""What Triton calls the file of a version."""
CONFIG, CPU_CONFIG = "config.pbtxt", "configs/cpu.pbtxt"
"""Where a model's folder says how it is served, and how where there is no GPU."""
ONNX_LIMIT = 8
"""For an ONNX file, which takes any batch: beyond it, a CPU only makes each request wait longer."""
MAX_INSTANCES = 64


@dataclass(frozen=True)
class Served:
    """One model, as it was found.

    Attributes:
        name: what it is called in the repository.
        path: the file that is served; its passport lies beside it.
        onnx: for a plan, the ONNX file that it was built from, where that is beside it; for an ONNX file, itself.
        outputs: shape of each output for one image; -1 for a height and a width that go with the input's.
        batch: of a file of a fixed batch; None where the profiles, or the limit, say it.
        profiles: of a plan with a dynamic batch.
        signed_int8: its activations are INT8 as TensorRT takes them.
        labels: names of the classes; None for their numbers.
        colours: of the classes of a segmentation model, in the masks' palette.
    """

    name: str
    kind: Kind
    path: Path
    sha256: str
    onnx: Path | None
    spec: ModelSpec
    preprocessing: Preprocessing
    outputs: dict[str, tuple[int, ...]]
    batch: int | None
    profiles: tuple[Profile, ...]
    signed_int8: bool
    labels: tuple[str, ...] | None
    colours: tuple[Colour, ...] = ()

    @property
    def classifies(self) -> bool:
        """It gives logits, so that an ensemble from pictures to classes makes sense."""
        return self.spec.task == "classify"

    @property
    def segments(self) -> bool:
        """It gives a class for each pixel, so that an ensemble from pictures to masks makes sense."""
        return self.spec.task == "segment"

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of its images; -1 where they are free."""
        return (-1, -1) if self.spec.any_size else self.spec.size

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each class."""
        return self.labels or tuple(map(str, range(self.spec.num_classes)))

    @property
    def top(self) -> int:
        """Classes that an answer names."""
        return min(TOP, self.spec.num_classes)


@dataclass(frozen=True)
class Serving:
    """How it is to be served.

    Attributes:
        max_batch: None for the file's own limit.
        instances: copies of the model on each GPU.
        queue_delay_us: longest that a request waits for others to join it.
        cuda_graphs: replay the launches of the usual batches.
        ensemble: models from pictures to classes, or to masks, too.
        version: None for the next one.

    Raises:
        OptionError: a value is unusable.
    """

    max_batch: int | None = None
    instances: int = 1
    queue_delay_us: int = 2000
    cuda_graphs: bool = False
    ensemble: bool = True
    version: int | None = None

    def __post_init__(self) -> None:
        for option, value, least, most in (
            ("--max-batch", self.max_batch, 1, MAX_BATCH),
            ("--instances", self.instances, 1, MAX_INSTANCES),
            ("--queue-delay-us", self.queue_delay_us, 0, MAX_DELAY_US),
            ("--version", self.version, 1, 2**31 - 1),
        ):
            if value is not None and not least <= value <= most:
                raise OptionError(f"{option} {value}", expected=f"{least} to {most}")


def covered(profiles: tuple[Profile, ...]) -> int:
    """The highest batch up to which every batch from 1 is in a profile; 0 where none takes one image.

    Of a file of any size, in a profile of each range of sizes that there is: Triton joins what comes, whatever size.
    """
    lowest = []
    for sizes in {profile.sizes for profile in profiles}:
        reached = 0
        for profile in sorted(profiles, key=lambda profile: profile.minimum):
            if profile.sizes == sizes and profile.minimum <= reached + 1:
                reached = max(reached, profile.maximum)
        lowest.append(reached)
    return min(lowest, default=0)


def limit(served: Served, asked: int | None) -> int:
    """Triton's max_batch_size: 0 for a file of a fixed batch.

    Raises:
        OptionError: more is asked for than the file takes, or a batch below it is in no profile.
        PlanError: no profile takes a single image, or there is a gap that --max-batch must end before.
    """
    if served.batch is not None:
        if asked not in (None, served.batch):
            raise OptionError(f"--max-batch {asked}: {served.path} is for batches of {served.batch} and no other")
        return 0
    if not served.profiles:
        return asked or ONNX_LIMIT
    reached, highest = covered(served.profiles), max(profile.maximum for profile in served.profiles)
    told = ", ".join(profile.takes for profile in served.profiles)
    if reached == 0:
        raise PlanError(
            f"{served.path} takes batches of {told}, and a server meets single images",
            expected="a profile from 1",
            hint="build it again with --profile 1,8,32",
        )
    if asked is None and reached < highest:
        raise PlanError(
            f"{served.path} takes batches of {told}, and none of {reached + 1}, which a server may make",
            expected="profiles without a gap",
            hint=f"serve it with --max-batch {reached}, or build it again with --profile 1,{min(8, highest)},{highest}",
        )
    if asked is not None and asked > reached:
        raise OptionError(f"--max-batch {asked}", expected=f"1 to {reached}, as {served.path} takes batches of {told}")
    return asked or reached
