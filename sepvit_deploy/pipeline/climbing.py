"""The ladder behind a plan or a spec: its ONNX files are found by their digests, and every form of the model is run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy import gpu, ladder, parity
from sepvit_deploy.building import BuildRequest, EngineFacts, Profile, Size
from sepvit_deploy.deployment import ParitySpec
from sepvit_deploy.engine import engine_from_onnx
from sepvit_deploy.errors import OptionError, ParityFailed
from sepvit_deploy.graph import OUTPUT_SUFFIX, with_outputs
from sepvit_deploy.image_sets import image_set
from sepvit_deploy.images import image_files, load_batch
from sepvit_deploy.ladder import Climb, NoiseFloor, Rung
from sepvit_deploy.pipeline import provenance
from sepvit_deploy.pipeline.checking import ANY_SIZES, IMAGES_AT_ONCE, RANDOM, random_images, reference_of
from sepvit_deploy.pipeline.models import PLANS, TORCH, OpenedPlan, open_model
from sepvit_deploy.pipeline.opened import Opened, OpenedOnnx, Report, Running, Warn, present_taps
from sepvit_deploy.runners.batches import InBatches
from sepvit_deploy.spec_file import read_spec

if TYPE_CHECKING:
    from sepvit_deploy.model.build import Reference
    from sepvit_deploy.model.taps import Tap
    from sepvit_deploy.runners.base import Array, Runner

SAMPLES = 64
"""Pictures that a climb takes by default: every form of the model runs on each, the slowest in torch on a CPU."""


@dataclass(frozen=True)
class Climbed:
    """A climb, and what is known beside it.

    Attributes:
        block: the first block that an engine with inner tensors computes otherwise, where the engine was wrong.
        left_out: why there was no engine on the ladder of a spec; empty where there was one.
    """

    climb: Climb
    block: str | None
    left_out: str

    def require_passed(self) -> None:
        """Make the climb a gate.

        Raises:
            ParityFailed: naming the first rung out of tolerance, and the first block within it.
        """
        try:
            self.climb.require_passed()
        except ParityFailed as error:
            if self.block is None:
                raise
            raise ParityFailed(f"{error.found}; first in {self.block}", expected=error.expected) from error

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return self.climb.to_dict() | {"passed": self.climb.passed, "block": self.block, "left_out": self.left_out}


def has_ladder(source: str | Path) -> bool:
    """True of what `climb` takes: a plan, or a spec."""
    return not str(source).startswith(TORCH) and Path(source).suffix in (*PLANS, ".toml")


def climb(
    source: str | Path,
    *,
    weights: Path | None = None,
    ema: bool = False,
    images: Path | None = None,
    samples: int | None = None,
    out: Path = Path("build"),
    noise_floor: int = 0,
    how: Running = Running(),  # noqa: B008 - frozen
    report: Report = lambda step: None,
    warn: Warn = lambda text: None,
) -> Climbed:
    """Compare every form of a model, from torch to the engine, on the same images.

    Args:
        source: a plan, with the files that it was made from beside it; or a spec, deployed to ``out``.
        weights: the checkpoint; a spec's own by default, not needed for random weights.
        images: a folder or manifest; random images otherwise.
        samples: images to use; `SAMPLES` by default.
        noise_floor: engines of the FP32 file to build, 2 or more, and judge the engine's drift by how they differ.

    Raises:
        InputError: a file of the chain is missing or another one, or the plan does not load here.
        CheckFailed: outputs cannot be compared at all; that they differ is in the result.
    """
    path = Path(source)
    if noise_floor and (noise_floor < 2 or not gpu.devices()):
        found = f"--noise-floor {noise_floor}" + ("" if gpu.devices() else " without a GPU")
        raise OptionError(found, expected="2 builds or more, on the GPU that they run on")
    if path.suffix == ".toml":
        spec = read_spec(path)
        file, left_out = provenance.deployed(spec, path, out, how)
        tolerances: ParitySpec | None = spec.parity
        own = path.parent / spec.weights.file if spec.weights.file else None
        weights = weights or (own if own and os.path.isfile(own) else None)
        ema = ema or spec.weights.ema
        if left_out:
            warn(left_out)
    else:
        file, left_out, tolerances = open_model(source, trust=how.trust, warn=warn), "", None
    chain = provenance.chain(file)
    tolerances = tolerances or ParitySpec.of(chain[-1].precision)
    model = reference_of(chain[0], weights, ema=ema, report=report, warn=warn)
    with contextlib.ExitStack() as stack:
        rungs = _rungs(stack, model, chain, tolerances, how)
        profiles = file.plan.facts.profiles if isinstance(file, OpenedPlan) and file.plan.facts else ()
        names, batches, used = _images(chain[0], images, samples, profiles)
        if isinstance(file, OpenedPlan):
            report("loading the engine")
            engine = stack.enter_context(file.running(how))
            rungs.append(Rung("engine", engine, tolerances.engine, what="runtime"))
        floor = None
        if noise_floor:
            report(f"building {noise_floor} engines of {chain[0].path.name}")
            floor = _noise(chain[0], file, noise_floor, list(batches), how)
            names, batches, used = _images(chain[0], images, samples, profiles)
        report("comparing")
        outputs = chain[0].output_names
        climbed = ladder.climb(rungs, batches, source=used, outputs=outputs, names=names, floor=floor)
    block = None
    failed = climbed.failed
    if failed is not None and failed.what == "runtime" and isinstance(file, OpenedPlan) and file.plan.facts:
        report("building the engine with its inner tensors")
        _, batches, used = _images(chain[0], images, samples, profiles)
        block = _first_block(chain[-1], file.plan.facts, batches, tolerances, how)
    return Climbed(climbed, block, left_out)


def _rungs(
    stack: contextlib.ExitStack,
    model: Reference,
    chain: Sequence[OpenedOnnx],
    tolerances: ParitySpec,
    how: Running,
) -> list[Rung]:
    """Every rung but the engine; the runners stay open as long as ``stack``."""
    from sepvit_deploy.model.deploy import deployed
    from sepvit_deploy.model.taps import taps
    from sepvit_deploy.runners.torch import TorchRunner

    spec = chain[0].spec
    assert spec is not None
    of = (spec.output_names, None if spec.any_size else spec.size)
    rungs = [
        Rung(
            "torch",
            TorchRunner(model, *of, name="the paper's model", taps=tuple(taps(spec, deployed=False))),
            parity.FP32,
        ),
        Rung(
            "rewritten",
            TorchRunner(deployed(model, spec), *of, name="in torch", taps=tuple(taps(spec, deployed=True))),
            tolerances.rewritten,
        ),
    ]
    for file in chain:
        assert file.passport is not None
        is_fp32 = file.precision == "fp32"
        name = "precision" if not is_fp32 else "onnx" if file is chain[0] else file.passport.stage
        runner = stack.enter_context(file.running(how, taps=True))
        rungs.append(Rung(name, runner, tolerances.onnx if is_fp32 else tolerances.precision))
    return rungs


def _images(
    file: OpenedOnnx, source: Path | None, samples: int | None, profiles: Sequence[Profile]
) -> tuple[list[str], Iterator[Array], str]:
    """Names, batches and a description of the images; random ones where there is no ``source``."""
    _, spec, preprocessing = file.require_passport()
    if source is None:
        if samples is not None:
            raise OptionError(f"--samples {samples} without --images", expected="pictures to take them from")
        batches = _random_sizes(profiles) if spec.any_size and profiles else random_images(spec, None)
        return [], batches, RANDOM
    if samples is not None and samples < 1:
        raise OptionError(f"--samples {samples}", expected="1 or more")
    found = image_set(source).files if source.suffix == ".toml" else tuple(image_files(source))
    wanted = min(samples or SAMPLES, len(found))
    files = [found[i * len(found) // wanted] for i in range(wanted)]  # of every folder, where there are folders
    step = 1 if preprocessing.keep_ratio else IMAGES_AT_ONCE  # images of several sizes are no batch
    starts = range(0, len(files), step)
    batches = (load_batch(files[start : start + step], preprocessing) for start in starts)
    return [str(path) for path in files], batches, f"{len(files)} pictures of {source.name}"


def _random_sizes(profiles: Sequence[Profile]) -> Iterator[Array]:
    """Random images for an engine of any size: of `ANY_SIZES`, as near to them as each of its profiles lets it be."""
    for size in dict.fromkeys(_nearest(size, profile) for profile in profiles for size in ANY_SIZES):
        yield from parity.random_batches(size, (2,))


def _nearest(size: Size, profile: Profile) -> Size:
    """The size nearest to another one that a profile covers."""
    least, _, most = profile.sizes or (size, size, size)
    return min(max(size[0], least[0]), most[0]), min(max(size[1], least[1]), most[1])


def _noise(file: OpenedOnnx, engine: Opened, builds: int, batches: list[Array], how: Running) -> NoiseFloor:
    """How far builds of the FP32 file are apart here, each timed anew."""
    import numpy as np

    if not isinstance(engine, OpenedPlan) or engine.plan.facts is None:
        raise OptionError("--noise-floor without an engine that has a passport", expected="a plan to judge by it")
    request = provenance.request(engine.plan.facts)
    found = []
    for _ in range(builds):
        with _engine(file, file.graph, request, how) as runner:
            batched = InBatches(runner)
            runs = [batched.run(batch) for batch in batches]
        found.append({name: np.concatenate([run[name].ravel() for run in runs]) for name in runs[0]})
    return ladder.noise_floor(found)


@contextlib.contextmanager
def _engine(file: OpenedOnnx, graph: Any, request: BuildRequest, how: Running) -> Iterator[Runner]:
    """An engine that is built, run, and forgotten."""
    from sepvit_deploy.runners.cuda import open_cuda
    from sepvit_deploy.runners.tensorrt import TensorRtRunner

    built = engine_from_onnx(
        graph.SerializeToString(),
        request,
        name=file.path.name,
        precision=file.precision,
        keep=file.keep,
        rest=file.rest,
        inspect=False,
    )
    assert built.plan is not None
    with TensorRtRunner(
        built.plan,
        name=f"{file.path.name}, built here",
        builder=request.builder,
        cuda=open_cuda(how.cuda),
        version_compatible=request.version_compatible,
    ) as runner:
        yield runner


class _Tapped:
    """A runner whose outputs named `OUTPUT_SUFFIX` become the maps of their taps."""

    def __init__(self, runner: Runner, taps: Sequence[Tap]) -> None:
        self.name, self.input_shape = runner.name, runner.input_shape
        self._runner = runner
        self._taps = {tap.name + OUTPUT_SUFFIX: tap for tap in taps}

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`; the taps come first, in the order of computation."""
        found = self._runner.run(images)
        maps = {tap.name: tap.as_map(found[output]) for output, tap in self._taps.items()}
        return maps | {name: value for name, value in found.items() if name not in self._taps}


def _first_block(
    file: OpenedOnnx, facts: EngineFacts, batches: Iterator[Array], tolerances: ParitySpec, how: Running
) -> str | None:
    """Where an engine leaves its file: built again with the inner tensors as outputs, which may fuse otherwise."""
    assert file.spec is not None
    taps = present_taps(file.graph, file.spec)
    graph = with_outputs(file.graph, [tap.name for tap in taps])
    with file.running(how, taps=True) as reference, _engine(file, graph, provenance.request(facts), how) as runner:
        compared = parity.compare(
            InBatches(reference),
            _Tapped(InBatches(runner), taps),
            batches,
            source="the same images",
            outputs=file.output_names,
            tolerance=tolerances.engine,
        )
    return compared.first_out
