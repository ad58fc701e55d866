"""Export: what the rewrites and the simplifier bring, and what an export costs.

    python benchmarks/export.py [--rounds 15] [--threads 1] [--batch 8] [--skip-cost]

Every graph holds the same weights. Latencies are of ONNX Runtime on the CPU, the graphs taking turns in one run; the
ratio is the median over rounds of (graph / graph as the paper writes the model), with a bootstrap 95 % interval. The
share of the limit is the graph's own floating-point operations over its time, over the rate of this machine's own
matrix products of 1024 and 2048 rows in the same run, runtime and threads; smaller ones, which fit the caches as no
layer of the model does, are recorded too. The time by operator is ONNX Runtime's own profile, in runs of their own: no
rewrite takes products, convolutions, GELU and softmax away, so their share of the first graph bounds what it can win.
Prints Markdown and writes results/<machine>/export.json and export.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxsim
from onnx import TensorProto, helper, numpy_helper

from sepvit_deploy import ModelSpec, audit, build_model, onnx_from_torch, rewrite, simplify
from sepvit_deploy.artifact import tool_versions
from sepvit_deploy.confidence import median_interval
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

from record import conditions, save

PRODUCTS = (256, 512, 1024, 2048)
LIMITING = (1024, 2048)
IRREDUCIBLE = ("MatMul", "FusedMatMul", "Gemm", "Conv", "Gelu", "BiasGelu", "Softmax")
PROFILED_RUNS = 8
BASELINE = "as the paper writes it"
OURS = "rewritten, onnxsim without Gemm passes"


def graphs() -> dict[str, onnx.ModelProto]:
    """SepViT-T in every form to compare, all with the same weights."""
    spec = ModelSpec("t", "classify", (224, 224), 1000)
    reference = build_model("t")
    plain = onnx_from_torch(reference, spec)
    rewritten = onnx_from_torch(rewrite(reference), spec)
    found = {
        BASELINE: plain,
        f"{BASELINE}, simplified": simplify(plain),
        "rewritten, exporter only": rewritten,
        "rewritten, onnxsim as it comes": onnxsim.simplify(rewritten)[0],
        OURS: simplify(rewritten),
    }
    try:
        import onnxslim
    except ImportError:
        print("onnxslim is not installed: its row is left out", file=sys.stderr)
    else:
        found["rewritten, onnxslim"] = onnxslim.slim(rewritten)
    return found


def product_runner(size: int, threads: int):
    """One square matrix product with a constant right side, as a linear layer has, in a session of its own."""
    import onnxruntime as ort

    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((size, size), dtype=np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [value("x", TensorProto.FLOAT, [size, size])],
        [value("y", TensorProto.FLOAT, [size, size])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((size, size), dtype=np.float32)
    return lambda: session.run(None, {"x": x})


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def latency(batch: int, threads: int, rounds: int) -> dict:
    """Interleave all graphs and the matrix products, and summarise."""
    found = graphs()
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    runs = {}
    for name, graph in found.items():
        runner = OnnxRuntimeRunner(graph, name=name, threads=threads)
        runs[name] = lambda runner=runner: runner.run(images)
    products = {size: product_runner(size, threads) for size in PRODUCTS}
    for run in (*runs.values(), *products.values()):
        for _ in range(3):
            run()
    times = {name: [] for name in runs}
    rates = {size: [] for size in PRODUCTS}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
        for size, run in products.items():
            repeats = max(1, (1024 // size) ** 3)
            rates[size].append(2 * size**3 * repeats / seconds(lambda run=run, n=repeats: [run() for _ in range(n)]))
    limit = max(float(np.median(rates[size])) for size in LIMITING)
    rows = []
    for name, graph in found.items():
        audited = audit(graph)
        mine = np.array(times[name])
        ratios = mine / np.array(times[BASELINE])
        rows.append(
            {
                "graph": name,
                "nodes": audited.nodes,
                "transposes": audited.operators.get("Transpose", 0),
                "reshapes": audited.operators.get("Reshape", 0),
                "gemms": audited.operators.get("Gemm", 0),
                "macs": audited.macs,
                "median_ms": 1000 * float(np.median(mine)),
                "ratio": float(np.median(ratios)),
                "ratio_95": median_interval(ratios),
                "share_of_limit": 2 * audited.macs * batch / float(np.median(mine)) / limit,
                "samples_ms": [round(1000 * t, 2) for t in mine],
            }
        )
    return {
        "batch": batch,
        "rounds": rounds,
        "product_gflops": {str(size): float(np.median(rate)) / 1e9 for size, rate in rates.items()},
        "limit_gflops": limit / 1e9,
        "operators_ms": {name: by_operator(found[name], images, threads) for name in (BASELINE, OURS)},
        "rows": rows,
    }


def by_operator(graph: onnx.ModelProto, images: np.ndarray, threads: int) -> dict[str, float]:
    """Milliseconds that each type of operator takes in one run: the medians over runs of each node, added up."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(PROFILED_RUNS):
            session.run(None, {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1000)
    total: dict[str, float] = {}
    for (operator, _), samples in taken.items():
        total[operator] = total.get(operator, 0.0) + float(np.median(samples[2:]))
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def cost() -> dict:
    """Wall time and memory of the command line itself, in processes of its own."""
    command = [sys.executable, "-c", "from sepvit_deploy.cli import main; main()"]
    helps = []
    for _ in range(7):
        helps.append(seconds(lambda: subprocess.run([*command, "--help"], capture_output=True, check=True)))
    with tempfile.TemporaryDirectory() as folder:
        export = [*command, "export", "--variant", "t", "--output", f"{folder}/t.onnx"]
        taken = seconds(lambda: subprocess.run(export, capture_output=True, check=True))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"help_s": float(np.median(helps)), "export_t_s": taken, "export_t_peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--skip-cost", action="store_true", help="leave out the export command's own time and memory")
    given = parser.parse_args()
    document = {"conditions": {**conditions(given.threads), "tools": tool_versions()}}
    if not given.skip_cost:
        document["cost"] = cost()
    document["latency"] = latency(given.batch, given.threads, given.rounds)
    print(markdown(document))
    save("export", document, markdown(document))


def markdown(document: dict) -> str:
    """The tables, with their conditions."""
    where, measured = document["conditions"], document["latency"]
    lines = [
        f"SepViT-T, ONNX Runtime {where['tools']['onnxruntime']} on {where['device']}, {where['threads']} thread(s), "
        f"batch {measured['batch']}, {measured['rounds']} interleaved rounds; limit: products of 1024 and 2048 rows, "
        f"{measured['limit_gflops']:.0f} GFLOP/s. Made by `python benchmarks/export.py`.",
        "",
        "| graph | nodes | Transpose | Reshape | Gemm | ratio | 95 % interval | of the limit |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in measured["rows"]:
        low, high = row["ratio_95"]
        lines.append(
            f"| {row['graph']} | {row['nodes']} | {row['transposes']} | {row['reshapes']} | {row['gemms']} | "
            f"{row['ratio']:.3f} | {low:.3f} to {high:.3f} | {row['share_of_limit']:.0%} |"
        )
    before, after = (
        1 - sum(taken.get(operator, 0.0) for operator in IRREDUCIBLE) / sum(taken.values())
        for taken in measured["operators_ms"].values()
    )
    lines += [
        "",
        f"Products, convolutions, GELU and softmax take {1 - before:.0%} of the first graph's time: a rewrite that "
        f"leaves them as fast as they are stays above that ratio here. "
        f"The rest takes {before:.0%}, and {after:.0%} of ours.",
    ]
    if "cost" in document:
        spent = document["cost"]
        lines += [
            "",
            "| command | time | peak memory |",
            "|---|---:|---:|",
            f"| `sepvit-deploy --help` | {spent['help_s']:.2f} s | |",
            f"| `sepvit-deploy export --variant t` | {spent['export_t_s']:.1f} s | "
            f"{spent['export_t_peak_gib']:.2f} GiB |",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
