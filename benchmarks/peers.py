"""SepViT beside its competition in one run: the same exporter, the same optimiser, the same runtimes, taking turns.

    python benchmarks/peers.py [--tiers tiny,small,base,lite] [--rounds 9] [--batches 1,8] [--threads 1,2] [--quick]

Peers come from `transformers` (pip install transformers), and from `timm` where it loads, in the sizes that their
papers publish; one whose parameters or MACs are not the published ones is an error, and so is a graph that does not
compute what torch computes. Nothing is downloaded: weights are random, which changes no time. All peers are FP32.
Where there is a GPU, the runtimes that are installed there follow.

A tier is one run: its models take turns in random order in every round, SepViT-T among them, and the ratio is the
median over rounds of (model / SepViT-T rewritten), with a bootstrap 95 % interval. Memory stays below 8 GB, because
tiers do not overlap. Each tier is written when it is done; --tiers small,base measures these anew and leaves the others
of the same options, machine and versions as they are. --quick is the tiny tier, once over, written nowhere.

The blocks of SepViT-T and Swin-T are counted in their graphs, and must be what `sepvit-deploy variants --complexity`
says by formula. Prints Markdown and writes results/<machine>/peers.json and peers.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from sepvit_deploy import ModelSpec, build_model, builders, gpu, onnx_from_torch, pipeline, simplify
from sepvit_deploy.artifact import tool_versions
from sepvit_deploy.bench import Subject, bench
from sepvit_deploy.building import Builder, BuildRequest, Profile
from sepvit_deploy.comparison import ratio_of
from sepvit_deploy.complexity import graph_block_macs, stages
from sepvit_deploy.conditions import Watcher, conditions_of, machine
from sepvit_deploy.engine import engine_from_onnx
from sepvit_deploy.errors import CheckFailed, DeviceError, MissingDependency, ParityFailed, SepvitError
from sepvit_deploy.export import graph_of_module
from sepvit_deploy.latency import Point
from sepvit_deploy.runners.base import Runner
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.variants import VARIANTS, count_macs, count_parameters

from peer_models import (
    CLASSES,
    SIZE,
    SWIN_T,
    TIERS,
    TWINS_B,
    Peer,
    as_exported,
    counted_macs,
    random_model,
    require_as_published,
)
from record import RESULTS, folder_of, save

EXAMPLES = Path(__file__).parents[1] / "examples"
PAPER_FORM, REWRITTEN, FP16, INT8, INT8_CPU, FP32 = (
    *("as the paper writes it", "rewritten", "FP16", "INT8 for TensorRT", "INT8 for a CPU", "FP32"),
)
FURTHEST = {PAPER_FORM: 1e-3, REWRITTEN: 1e-3, FP32: 1e-3, FP16: 5e-2}
"""Largest difference from torch's logits, relative to the largest of them; INT8 was compared when it was made."""
REFERENCE = f"SepViT-T, {REWRITTEN}"
TURN_IMAGES = 4
"""Images timed in a turn at small batches, so that short runs have more samples."""
SWIN_BLOCKS = r"model\.swin\.encoder\.layers\.\d+\.block\d+"
TWINS_BLOCKS = r"model\.block\d+\.\d+"
LIBRARIES = ("transformers", "timm")
ABSENT = "Neither has CSWin; timm, which has Twins-SVT, loads only beside a torchvision built for this torch."


@dataclass(frozen=True)
class Entry:
    """One line of the table: a graph in a file.

    Attributes:
        expected: torch's logits on `probe`.
        module: the model in torch, where the form is one.
        portable: a file of standard operators alone, where the simplified one has ONNX Runtime's own.
    """

    model: str
    form: str
    parameters: int
    macs: int
    path: Path
    expected: np.ndarray
    module: Callable[[], torch.nn.Module] | None = None
    portable: Path | None = None

    @property
    def key(self) -> str:
        return f"{self.model}, {self.form}"


@dataclass(frozen=True)
class Runtime:
    """Where entries run."""

    name: str
    skipped: tuple[str, ...]
    """Forms that are not for it."""
    opened: Callable[[Entry], AbstractContextManager[Runner]]


def probe() -> np.ndarray:
    """Two images to compare outputs on."""
    return np.random.default_rng(1).standard_normal((2, 3, *SIZE), dtype=np.float32)


def logits_of(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(probe())).numpy()


def require_agreement(entry: Entry, runner: Runner) -> None:
    """Refuse to time a graph that computes something else than torch does.

    Raises:
        ParityFailed: its logits differ, or are not finite.
    """
    if (furthest := FURTHEST.get(entry.form)) is None:
        return
    difference = float(np.abs(runner.run(probe())["logits"] - entry.expected).max() / np.abs(entry.expected).max())
    if not difference <= furthest:
        raise ParityFailed(f"{entry.key} is {difference:.1e} away from torch", expected=f"{furthest:.0e} at most")


def peer_entry(peer: Peer, work: Path) -> Entry:
    """Build, check, export and simplify a peer."""
    model = random_model(peer)
    expected = logits_of(model)
    as_exported(model)
    parameters, macs = sum(parameter.numel() for parameter in model.parameters()), counted_macs(model)
    require_as_published(peer, parameters, macs)
    graph = graph_of_module(model, SIZE, name=peer.name)
    smaller = simplify(graph)
    path, portable = work / f"{peer.name}.onnx", None
    onnx.save(smaller, path)
    if any(node.domain not in ("", "ai.onnx") for node in smaller.graph.node):
        portable = work / f"{peer.name}_plain.onnx"
        onnx.save(graph, portable)
    build = functools.partial(random_model, peer)
    return Entry(peer.name, FP32, parameters, macs, path, expected, build, portable)


@functools.cache
def rewritten(variant: str, work: Path) -> Entry:
    """A variant as `sepvit-deploy export` writes it."""
    path = work / f"sepvit_{variant}.onnx"
    done = pipeline.export(variant, path)
    parameters, expected = count_parameters(VARIANTS[variant]), logits_of(build_model(variant))
    assert done.audit.macs is not None
    return Entry(f"SepViT-{variant.title()}", REWRITTEN, parameters, done.audit.macs, path, expected)


def our_entries(variant: str, work: Path) -> list[Entry]:
    """SepViT as the paper writes it, rewritten, and in lower precision."""
    entry = rewritten(variant, work)
    model, spec = build_model(variant), ModelSpec(variant, "classify", SIZE, CLASSES)
    paths = {form: work / f"sepvit_{variant}_{i}.onnx" for i, form in enumerate((PAPER_FORM, FP16, INT8, INT8_CPU))}
    onnx.save(simplify(onnx_from_torch(model, spec)), paths[PAPER_FORM])
    scales = work / f"sepvit_{variant}.scales.json"
    count = sum(1 for picture in EXAMPLES.iterdir() if picture.suffix == ".jpg")
    pipeline.calibrate(entry.path, EXAMPLES, scales, samples=count)
    pipeline.quantize(entry.path, paths[FP16], precision="fp16")
    pipeline.quantize(entry.path, paths[INT8], precision="int8", scales=scales)
    pipeline.quantize(entry.path, paths[INT8_CPU], precision="int8", scales=scales, target="cpu")

    def form(name: str, macs: int, module: Callable[[], torch.nn.Module] | None = None) -> Entry:
        return Entry(entry.model, name, entry.parameters, macs, paths[name], entry.expected, module)

    paper = form(PAPER_FORM, count_macs(VARIANTS[variant]), functools.partial(build_model, variant))
    return [paper, entry, *(form(name, entry.macs) for name in (FP16, INT8, INT8_CPU))]


def tier_entries(tier: str, work: Path) -> tuple[list[Entry], dict[str, str]]:
    """What takes turns in a tier: SepViT of that size in every form, SepViT-T, and the peers; and why others do not."""
    variant, peers = TIERS[tier]
    absent: dict[str, str] = {}
    found = our_entries(variant, work)
    found += [rewritten("t", work)] if variant != "t" else []
    for peer in peers:
        print(f"exporting {peer.name}", file=sys.stderr, flush=True)
        try:
            found.append(peer_entry(peer, work))
        except MissingDependency as error:
            absent[peer.name] = str(error)
    return found, absent


def runtimes(threads: list[int], largest: int) -> Iterator[Runtime]:
    """The runtimes of this machine: ONNX Runtime on the CPU, and what a GPU has."""
    for count in threads:
        on_cpu = functools.partial(_onnxruntime, threads=count)
        yield Runtime(f"ONNX Runtime, CPU, {count} thread{'s' * (count > 1)}", (FP16, INT8), on_cpu)
    if not gpu.devices():
        return
    yield Runtime("ONNX Runtime, CUDA", (INT8_CPU,), functools.partial(_onnxruntime, provider="cuda"))
    yield Runtime("torch, CUDA", (REWRITTEN, FP16, INT8, INT8_CPU), _torch)
    kinds: tuple[Builder, ...] = ("tensorrt", "rtx")
    for kind in kinds:
        with contextlib.suppress(SepvitError):  # not installed: no table
            builders.choose(kind, gpu=True)
            opened = functools.partial(_tensorrt, kind=kind, largest=largest)
            yield Runtime(f"{kind}, engine in a CUDA graph", (INT8_CPU,), opened)


@contextlib.contextmanager
def _onnxruntime(entry: Entry, **how: Any) -> Iterator[Runner]:
    yield OnnxRuntimeRunner(entry.path, name=entry.key, fused=True, **how)


@contextlib.contextmanager
def _torch(entry: Entry) -> Iterator[Runner]:
    from sepvit_deploy.runners.torch import TorchRunner

    assert entry.module is not None
    yield TorchRunner(entry.module(), ("logits",), SIZE, name=entry.key, device="cuda")


@contextlib.contextmanager
def _tensorrt(entry: Entry, *, kind: Builder, largest: int) -> Iterator[Runner]:
    from sepvit_deploy.runners.tensorrt import TensorRtRunner

    request = BuildRequest(kind, profiles=(Profile(1, largest, largest),))
    content = (entry.portable or entry.path).read_bytes()
    built = engine_from_onnx(content, request, name=entry.key, precision=None)
    assert built.plan is not None
    with TensorRtRunner(built.plan, name=entry.key, builder=kind, cuda_graph=True) as runner:
        yield runner


def timed(runners: dict[str, Runner], batch: int, rounds: int) -> tuple[Point, ...]:
    """Every runner at one batch, in turns, where it computes; one that fails ends the benchmark."""
    least = rounds * max(1, TURN_IMAGES // batch)
    found = bench([Subject(runner, (batch,)) for runner in runners.values()], seconds=0, least=least)
    if found.interrupted:
        raise KeyboardInterrupt
    if found.failures:
        raise DeviceError(f"{found.failures[0].engine}: {found.failures[0].error}")
    return found.points


def measured(tier: str, work: Path, batches: list[int], threads: list[int], rounds: int) -> dict[str, Any]:
    """One tier on every runtime, every sample kept."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    entries, failed = tier_entries(tier, work)
    points: list[dict[str, Any]] = []
    with Watcher(on_gpu=bool(gpu.devices())) as look:
        looks = [look()]
        for runtime in runtimes(threads, max(batches)):
            with contextlib.ExitStack() as stack:
                runners: dict[str, Runner] = {}
                for entry in entries:
                    if entry.form in runtime.skipped:
                        continue
                    try:
                        runner = stack.enter_context(runtime.opened(entry))
                        require_agreement(entry, runner)
                        runners[entry.key] = runner
                    except SepvitError as error:
                        if not gpu.devices():  # a runtime of a GPU may refuse a foreign graph; ours may not be wrong
                            raise
                        failed[f"{entry.key} on {runtime.name}"] = str(error)
                for batch in batches:
                    print(f"{tier}: {runtime.name}, batch {batch}", file=sys.stderr, flush=True)
                    for point in timed(runners, batch, rounds):
                        samples = [round(ms, 3) for ms in point.samples_ms]
                        figures = {"samples_ms": samples, "stretches": point.stretches, "settled": point.settled}
                        points.append({"entry": point.engine, "runtime": runtime.name, "batch": batch, **figures})
                    looks.append(look())
                del runners
            gc.collect()
    rows = [
        {"key": entry.key, "megabytes": entry.path.stat().st_size / 1e6}
        | {name: getattr(entry, name) for name in ("model", "form", "parameters", "macs")}
        for entry in entries
    ]
    return {
        "started": started,
        "conditions": asdict(conditions_of(looks)),
        "rows": rows,
        "points": points,
        "failed": failed,
    }


def blocks(work: Path) -> list[dict[str, Any]]:
    """Blocks of each stage, counted in the graphs of SepViT-T, Swin-T and Twins-SVT-B; the formulas must say the same.

    Raises:
        CheckFailed: a graph has other blocks than its formula.
    """
    spec = ModelSpec("t", "classify", SIZE, CLASSES)
    paper = graph_block_macs(onnx_from_torch(build_model("t"), spec, batch=1))
    exported = graph_block_macs(onnx.load(rewritten("t", work).path))
    swin = graph_block_macs(graph_of_module(as_exported(random_model(SWIN_T)), SIZE, batch=1), SWIN_BLOCKS)
    twins: dict[str, int] = {}
    with contextlib.suppress(MissingDependency):
        twins = graph_block_macs(graph_of_module(random_model(TWINS_B), SIZE, batch=1), TWINS_BLOCKS)
    found = []
    for i, stage in enumerate(stages()):
        counted = {
            "sepvit": paper[f"stage{i}.block0"],
            "rewritten": exported[f"stage{i}.block0"],
            "swin": sum(swin[f"model.swin.encoder.layers.{i}.block{j}"] for j in (0, 1)),
        }
        if twins:
            counted["twins"] = sum(twins[f"model.block{i}.{j}"] for j in (0, 1))
        no_token = {"sepvit"} if i == 3 else set()  # the published block has a window token where the model has none
        for name in counted.keys() - no_token:
            if counted[name] != getattr(stage, name):
                raise CheckFailed(f"stage {i + 1} of {name} has {counted[name]}", expected=str(getattr(stage, name)))
        found.append({"stage": stage.number, "graph": counted, "formula": asdict(stage)})
    return found


def point_of(tier: dict[str, Any], key: str, runtime: str, batch: int) -> Point | None:
    for kept in tier["points"]:
        if (kept["entry"], kept["runtime"], kept["batch"]) == (key, runtime, batch):
            return Point(key, batch, tuple(kept["samples_ms"]), tuple(kept["stretches"]), settled=kept["settled"])
    return None


def cells(tier: dict[str, Any], row: dict[str, Any], runtime: str, batch: int) -> list[str]:
    """Milliseconds an image, and the ratio to SepViT-T with its interval."""
    mine, reference = (point_of(tier, key, runtime, batch) for key in (row["key"], REFERENCE))
    if mine is None:
        return ["for a GPU" if row["form"] in (FP16, INT8) and "CPU" in runtime else "", ""]
    p50 = f"{mine.p50_ms / batch:.3g}"
    if reference is None or row["key"] == REFERENCE:
        return [p50, "1" if reference else ""]
    ratio = ratio_of(mine, reference)
    return [p50, f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"]


def markdown(document: dict[str, Any]) -> str:
    """A table for each runtime, then the blocks."""
    where, options = document["conditions"], document["options"]
    tools = [f"{name} {where['versions'].get(name, 'absent')}" for name in ("onnxruntime", *LIBRARIES)]
    lines = [
        f"{where['device']}, {where['cores']} cores; {', '.join(tools)}. Made by `{document['command']}`: "
        f"{options['rounds']} rounds, milliseconds an image (p50), inputs where it computes; ratio: to SepViT-T "
        "rewritten in the same rounds of the same tier, with a 95 % interval.",
    ]
    names = dict.fromkeys(p["runtime"] for tier in document["tiers"].values() for p in tier["points"])
    for runtime in names:
        heads = [head for batch in options["batches"] for head in (f"batch {batch}, ms", "ratio")]
        lines += [
            *("", f"{runtime}:", ""),
            f"| tier | model | form | M parameters | G MACs | MB | {' | '.join(heads)} |",
            f"|---|---|---|---:|---:|---:|{'---:|---|' * len(options['batches'])}",
        ]
        for name, tier in document["tiers"].items():
            for row in tier["rows"]:
                if "CPU" in runtime or row["form"] != INT8_CPU:
                    figures = [cell for batch in options["batches"] for cell in cells(tier, row, runtime, batch)]
                    size = f"{row['parameters'] / 1e6:.1f} | {row['macs'] / 1e9:.2f} | {row['megabytes']:.1f}"
                    lines.append(f"| {name} | {row['model']} | {row['form']} | {size} | {' | '.join(figures)} |")
    failed = [f"- {what}: {why}" for tier in document["tiers"].values() for what, why in tier["failed"].items()]
    lines += ["", "Not measured:", "", *failed] if failed else []
    lines += [
        "",
        "Peers: FP32, of transformers and timm in their published sizes, exported, simplified and run as SepViT is; "
        f"every graph takes any batch. {ABSENT}",
    ]
    if document.get("blocks"):
        lines += [
            *("", "G MACs of the blocks of a stage, counted in the graphs; Twins by formula without timm:", ""),
            "| stage | SepViT x1 | exported | published | Swin x2 | published | Twins x2 | published |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for block in document["blocks"]:
            graph, formula = block["graph"], block["formula"]
            paper = formula["published"]
            giga = [graph.get(name, formula[name]) / 1e9 for name in ("sepvit", "rewritten", "swin", "twins")]
            figures = (giga[0], giga[1], paper["sepvit"], giga[2], paper["swin"], giga[3], paper["twins"])
            lines.append(f"| {block['stage']} | {' | '.join(f'{figure:.3f}' for figure in figures)} |")
        lines += ["", "In stage 4 the published SepViT block has a window token, and the model has none there."]
    return "\n".join(lines) + "\n"


def kept(document: dict[str, Any]) -> dict[str, Any]:
    """The tiers of an earlier run with the same options, machine and versions."""
    where = document["conditions"]
    path = RESULTS / folder_of(f"{where['device']}-{where['cores']}") / "peers.json"
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    if all(before.get(key) == document[key] for key in ("conditions", "options")):
        return before["tiers"]
    print(f"{path.name} has other options or versions: its tiers are not kept", file=sys.stderr)
    return {}


def versions() -> dict[str, str]:
    """Of what takes part, as far as it is installed."""
    found = tool_versions()
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiers", help=f"of {', '.join(TIERS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--quick", action="store_true", help="batch 1, one thread, 2 rounds, tiny alone; saves nothing")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.batches, given.threads = 2, "1", "1"
    tiers = given.tiers.split(",") if given.tiers else ["tiny"] if given.quick else list(TIERS)
    if unknown := set(tiers) - set(TIERS):
        parser.error(f"--tiers {','.join(sorted(unknown))}; expected {', '.join(TIERS)}")
    batches, threads = ([int(text) for text in option.split(",")] for option in (given.batches, given.threads))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    document: dict[str, Any] = {
        "command": "python benchmarks/peers.py" + " --quick" * given.quick,
        "conditions": asdict(machine(versions(), on_gpu=bool(gpu.devices()))),
        "options": {"rounds": given.rounds, "batches": batches, "threads": threads},
    }
    done = {} if given.quick else kept(document)
    with tempfile.TemporaryDirectory() as folder:
        document["blocks"] = blocks(Path(folder))
        for tier in tiers:
            print(f"{tier}: exporting", file=sys.stderr, flush=True)
            done[tier] = measured(tier, Path(folder), batches, threads, given.rounds)
            document["tiers"] = {name: done[name] for name in TIERS if name in done}
            if not given.quick:
                save("peers", document, markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
