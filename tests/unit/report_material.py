"""Material of a report that looks as real ones do: four engines on a GPU, a ladder, a scale table."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from sepvit_deploy.comparison import Crossover, Ratio
from sepvit_deploy.gpu import Device
from sepvit_deploy.latency import (
    Accuracy,
    Conditions,
    Engine,
    Failure,
    Machine,
    Point,
    Range,
    Rates,
    Results,
    Work,
)
from sepvit_deploy.report import Material, Part, ladder
from sepvit_deploy.scales import read_scales

ROOT = Path(__file__).parents[2]
BATCHES = (1, 2, 4, 8, 16, 32, 64)
HOSTILE = '</script><img src=x onerror="alert(1)">\'&'
"""A name that would be a program where it is not escaped."""
BLOCKS = [
    f"stage{stage}.{name}"
    for stage, count in enumerate((1, 2, 6, 2))
    for name in ["embed", *(f"block{k}" for k in range(count))]
]
GPU = Device(0, "NVIDIA L4", "8.9", 58, 23 << 30, 192, 48 << 20, 49152, 102400, 512, False, True, "12.8")


def point(engine: str, batch: int, ms: float, *, rounds: int = 20, runs: int = 15, **more: Any) -> Point:
    """Samples about ``ms``, with the long tail of real ones."""
    rng = random.Random(f"{engine} {batch}")
    samples = tuple(
        ms * (1 + rng.gauss(0, 0.012) + (rng.random() < 0.03) * rng.random() * 0.3) for _ in range(rounds * runs)
    )
    return Point(engine, batch, samples, (runs,) * rounds, **more)


def engine(name: str, precision: Any, **more: Any) -> Engine:
    macs = {
        "fp32": {"FP32": 4_520_000_000},
        "fp16": {"FP16": 4_520_000_000},
        "int8": {"INT8": 3_900_000_000, "FP16": 620_000_000},
    }
    products = {"fp32": {"FP32": 69}, "fp16": {"FP16": 69}, "int8": {"INT8": 51, "FP16": 18}}
    facts: dict[str, Any] = {
        "kind": "plan",
        "file": f"sepvit_t.{precision}.plan",
        "sha256": "3f" * 32,
        "bytes": {"fp32": 125_000_000, "fp16": 63_000_000, "int8": 34_000_000}[precision],
        "variant": "t",
        "runtime": "TensorRT",
        "builder_version": "10.16.0",
        "threads": None,
        "cuda_graph": True,
        "products": products[precision],
        "work": Work(macs[precision], 60_000_000, 600_000),
        "blocks_ms": {},
        "precision_shares": {},
        "accuracy": None,
    }
    return Engine(name=name, precision=precision, **(facts | more))


def results(batches: tuple[int, ...] = BATCHES, **more: Any) -> Results:
    """One run of FP32, FP16, INT8 and torch."""
    rng = random.Random(1)
    blocks = {
        name: {b: scale * (0.02 + 0.05 * rng.random()) for b in BLOCKS}
        for name, scale in (("fp16", 1.0), ("int8", 0.72))
    }
    engines = (
        engine("sepvit_t.fp32.plan", "fp32", accuracy=Accuracy("imagenet-val", "imagenet-val", 50_000, 41_310)),
        engine(
            "sepvit_t.fp16.plan",
            "fp16",
            blocks_ms=blocks["fp16"],
            precision_shares={"FP16": 0.94, "FP32": 0.06},
            accuracy=Accuracy("imagenet-val", "imagenet-val", 50_000, 41_295),
        ),
        engine(
            "sepvit_t.int8.plan",
            "int8",
            blocks_ms=blocks["int8"],
            precision_shares={"INT8": 0.61, "FP16": 0.33, "FP32": 0.06},
            accuracy=Accuracy("imagenet-val", "imagenet-val", 50_000, 40_890),
        ),
        engine(
            "torch-compile:t",
            "fp32",
            kind="torch-compile",
            file="torch:t",
            runtime="torch.compile, CUDA",
            builder_version=None,
            sha256=None,
            bytes=None,
            cuda_graph=False,
            accuracy=Accuracy("imagenet-val", "imagenet-val", 50_000, 41_312),
        ),
    )
    times = {
        "sepvit_t.fp32.plan": (1.35, 1.02),
        "sepvit_t.fp16.plan": (0.78, 0.36),
        "sepvit_t.int8.plan": (0.98, 0.235),
        "torch-compile:t": (3.1, 1.16),
    }
    points = []
    for index, name in enumerate(times):
        fixed, each = times[name]
        for batch in batches:
            rng = random.Random(f"{name}{batch}c")
            hot = name == "sepvit_t.fp32.plan" and batch >= 32
            seen = Conditions(
                looks=120,
                load=Range(0.4, 0.9, 1.6),
                steal=0.002,
                cpu_mhz=Range(2900.0, 3100.0, 3400.0),
                gpu_sm_mhz=Range(1620.0 if hot else 2010.0, 2040.0, 2040.0),
                gpu_memory_mhz=Range(6251.0, 6251.0, 6251.0),
                gpu_power_w=Range(48.0, 60.0 + index, 71.8),
                gpu_temperature_c=Range(51.0, 58.0, 64.0),
                throttled={"power cap": 0.18} if hot else {},
            )
            ms = fixed + each * batch ** (0.985 if name != "torch-compile:t" else 0.97)
            points.append(
                point(
                    name,
                    batch,
                    ms,
                    pace_ms=(0.5,) * 20,
                    settled=not (name == "torch-compile:t" and batch == 1),
                    conditions=seen,
                )
            )
    facts: dict[str, Any] = {
        "command": "sepvit-deploy bench --engine sepvit_t.fp32.plan --engine sepvit_t.fp16.plan "
        "--engine sepvit_t.int8.plan --engine torch:t --batch 1,2,4,8,16,32,64 --output results.json",
        "started": "2026-05-04T09:12:44",
        "boundary": "compute",
        "seconds": 3.0,
        "least": 100,
        "machine": Machine(
            "NVIDIA L4",
            "Linux 6.8, x86_64",
            "Intel Xeon 2.20 GHz",
            16,
            GPU,
            "570.86.15",
            {"Python": "3.12.3", "sepvit-deploy": "0.1.0", "TensorRT": "10.16.0", "torch": "2.13.0"},
        ),
        "pace": "a product of two 4096 x 4096 matrices in FP16",
        "engines": engines,
        "points": tuple(points),
        "rates": (
            Rates("TensorRT", {"FP32": 28e12, "FP16": 96e12, "INT8": 190e12}, 265e9),
            Rates("torch.compile, CUDA", {"FP32": 26e12}, 262e9),
        ),
        "failures": (),
        "interrupted": False,
        "notes": ("Clocks were not locked: the driver did not allow it.",),
    }
    return Results(**(facts | more))


def part(found: Results, name: str = "results.json") -> Part:
    """A run with what follows from it."""
    return Part.of(name, found)


def climb_document() -> dict[str, Any]:
    """What `check --json` prints of four rungs."""
    inner = [f"stage{stage}.block{k}" for stage, count in enumerate((1, 2, 6, 2)) for k in range(count)]

    def compared(against: str, start: float, fall: float, least: float, agreement: float) -> dict[str, Any]:
        rng = random.Random(f"{against}{start}")
        names = [*inner, "logits"]
        return {
            "against": against,
            "tolerance": {"relative": 1e-4, "sqnr_db": least, "top1_agreement": 0.99},
            "tensors": [
                {
                    "name": name,
                    "max_difference": 1e-4,
                    "relative": 1e-5,
                    "sqnr_db": start - fall * k + rng.random() * 2,
                    "cosine": 0.999,
                    "finite": True,
                }
                for k, name in enumerate(names)
            ],
            "worst": {},
            "outputs": ["logits"],
            "top1_agreement": agreement,
            "flipped": 0,
            "flips": [],
            "first_out": None,
        }

    def step(rung: str, runner: str, what: str, first: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        return {
            "rung": rung,
            "runner": runner,
            "what": what,
            "first": first,
            "before": before,
            "excused": False,
            "passed": True,
        }

    exact = compared("torch", 118, 0.4, 80, 1.0)
    return {
        "reference": "torch",
        "images": 64,
        "source": "imagenet-val",
        "steps": [
            step("rewritten", "rewritten", "model", exact, exact),
            step("onnx", "sepvit_t.onnx", "model", compared("torch", 114, 0.5, 80, 1.0), exact),
            step("precision", "sepvit_t.int8.onnx", "model", compared("torch", 34, 0.6, 10, 0.984), exact),
            step(
                "engine",
                "sepvit_t.int8.plan",
                "runtime",
                compared("torch", 33, 0.6, 10, 0.984),
                compared("precision", 41, 0.4, 10, 0.992),
            ),
        ],
        "floor": None,
        "verdict": "agrees",
        "failed": None,
        "passed": True,
        "block": None,
        "left_out": "",
    }


def material(**more: Any) -> Material:
    """Everything that a page can show."""
    facts: dict[str, Any] = {
        "parts": (part(results()),),
        "ladders": {"check.json": ladder(climb_document())},
        "scales": {"digits.scales.json": read_scales(ROOT / "calib" / "digits.scales.json")},
        "command": "sepvit-deploy report build --html report.html",
    }
    return Material(**(facts | more))


def hostile() -> Material:
    """The same with every name a program."""
    engines = (
        engine(
            HOSTILE,
            "fp16",
            file=HOSTILE,
            runtime=HOSTILE,
            precision_shares={HOSTILE: 1.0},
            blocks_ms={HOSTILE: 1.0},
            accuracy=Accuracy(HOSTILE, HOSTILE, 10, 9),
        ),
    )
    found = results(
        engines=engines,
        points=(
            point(HOSTILE, 1, 1.0, conditions=Conditions(looks=1, throttled={HOSTILE: 1.0})),
            point(HOSTILE, 8, 5.0),
        ),
        machine=Machine(HOSTILE, HOSTILE, HOSTILE, 1, None, None, {HOSTILE: HOSTILE}),
        command=HOSTILE,
        pace=HOSTILE,
        notes=(HOSTILE,),
        failures=(Failure(HOSTILE, 2, HOSTILE),),
        rates=(Rates(HOSTILE, {"FP16": 1e12}, None),),
    )
    climbed = climb_document() | {"source": HOSTILE, "verdict": HOSTILE, "reference": HOSTILE}
    climbed["steps"][0] |= {"rung": HOSTILE, "runner": HOSTILE}
    scales = next(iter(material().scales.values()))
    scales.tensors[HOSTILE] = scales.tensors["images"]
    return Material(
        (
            Part(
                HOSTILE,
                found,
                (Ratio(HOSTILE, HOSTILE, 1, 1.0, 0.9, 1.1, False),),
                (Crossover(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 2, HOSTILE),),
            ),
        ),
        {HOSTILE: ladder(climbed)},
        {HOSTILE: scales},
        HOSTILE,
    )
