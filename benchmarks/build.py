"""Builds: size and seconds of the engine of every variant, task and precision, by TensorRT-RTX without a GPU.

    python benchmarks/build.py [--variants lite,t,s,b]

Weights are random and INT8 is calibrated on the example pictures: neither changes what is built, nor how long it takes.
Every engine is built from the file alone, in a process of its own; the seconds are the builder's, parsing included.
Prints Markdown and writes results/<machine>/build.json and build.md.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx

from sepvit_deploy import ModelSpec, build_model, onnx_from_torch, rewrite, simplify
from sepvit_deploy.artifact import tool_versions
from sepvit_deploy.building import BuildRequest, Profile
from sepvit_deploy.calibrate import calibrate
from sepvit_deploy.engine import engine_from_onnx
from sepvit_deploy.image_sets import image_set
from sepvit_deploy.precision import fp16_from_fp32, int8_from_fp32
from sepvit_deploy.variants import VARIANTS

from record import conditions, save

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZE = (224, 224)
REQUESTS = (
    BuildRequest("rtx", (Profile(1, 8, 32),), compute_capabilities=("8.6",)),
    BuildRequest(
        "rtx", (Profile(1, 1, 1), Profile(8, 8, 8), Profile(32, 32, 32)), compute_capabilities=("8.6", "12.0")
    ),
)


def main() -> None:
    """Build, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    names = parser.parse_args().variants.split(",")
    rows = []
    for name in names:
        for task in ("classify", "dense"):
            for precision, graph in graphs(ModelSpec(name, task, SIZE, 1000)):
                content = graph.SerializeToString()
                for request in REQUESTS:
                    facts = engine_from_onnx(content, request, name=f"{name} {task}", precision=precision)
                    assert facts.plan is not None
                    rows.append(
                        {
                            "variant": name,
                            "task": task,
                            "precision": precision,
                            "onnx_bytes": len(content),
                            "profiles": [str(profile) for profile in request.profiles],
                            "compute_capabilities": request.compute_capabilities,
                            "plan_bytes": len(facts.plan),
                            "build_s": facts.facts.build_seconds,
                            "matmuls": facts.facts.network.matmuls,
                            "convolutions": facts.facts.network.convolutions,
                            "builder_version": facts.facts.builder_version,
                        }
                    )
                    print(name, task, precision, len(request.profiles), f"{rows[-1]['build_s']:.1f} s", flush=True)
    document = {
        "schema": 1,
        "command": "python benchmarks/build.py",
        "conditions": conditions(None) | {"tools": tool_versions()},
        "rows": rows,
    }
    text = markdown(document)
    print(text)
    save("build", document, text)


def graphs(spec: ModelSpec) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The FP32, FP16 and INT8 file of a model with random weights, by precision."""
    model = rewrite(build_model(spec.variant, spec.task, num_classes=spec.num_classes), spec.size)
    fp32 = simplify(onnx_from_torch(model, spec))
    yield "fp32", fp32
    yield "fp16", fp16_from_fp32(fp32).model
    digest = hashlib.sha256(fp32.SerializeToString()).hexdigest()
    count = sum(1 for path in EXAMPLES.iterdir() if path.suffix == ".jpg")
    table = calibrate(fp32, image_set(EXAMPLES, samples=count), spec.preprocessing, graph_sha256=digest)
    yield "int8", int8_from_fp32(fp32, table, graph_sha256=digest).model


def markdown(document: dict) -> str:
    """The table as Markdown."""
    where, rows = document["conditions"], document["rows"]
    lines = [
        f"TensorRT-RTX {rows[0]['builder_version']} on {where['device']}, {where['cores']} cores, no GPU. "
        f"Made by `{document['command']}`.",
        "",
        "| variant | task | precision | ONNX MB | engine MB | build s | 3 profiles MB | build s | products |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for one, three in zip(rows[::2], rows[1::2], strict=True):
        named = {"FLOAT": "FP32", "HALF": "FP16"}
        counts = ", ".join(f"{count} {named.get(kind, kind)}" for kind, count in sorted(one["matmuls"].items()))
        lines.append(
            f"| {one['variant']} | {one['task']} | {one['precision'].upper()} | {one['onnx_bytes'] / 1e6:.1f} | "
            f"{one['plan_bytes'] / 1e6:.1f} | {one['build_s']:.1f} | {three['plan_bytes'] / 1e6:.1f} | "
            f"{three['build_s']:.1f} | {counts} |"
        )
    lines += [
        "",
        f"One profile ({rows[0]['profiles'][0]}) for compute capability {rows[0]['compute_capabilities'][0]}; three "
        f"({'; '.join(rows[1]['profiles'])}) for {' and '.join(rows[1]['compute_capabilities'])}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
