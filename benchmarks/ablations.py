"""SepViT-T and the paper's ablations of it, taking turns in one run: our times beside the paper's throughput.

    python benchmarks/ablations.py [--batches 1,8] [--threads 1] [--seconds 3] [--samples 100] [--forms fp32,int8,torch]

Weights are random, which changes no time; each file is compared with its reference as it is exported. Forms: FP32, INT8
for a CPU, and eagerly in torch, as the paper timed its rows (on a V100, in FP32, at batch 192). A ratio is the time of
a variant over that of SepViT-T in the same form, in the same rounds. Files are kept in --work and made once.

Prints Markdown and writes results/<machine>/ablations.json, with every sample, and ablations.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from sepvit_deploy import pipeline
from sepvit_deploy.artifact import written
from sepvit_deploy.comparison import beside_paper
from sepvit_deploy.latency import Results, write_results
from sepvit_deploy.variants import (
    ABLATION_PAPER,
    ABLATION_ROWS,
    THROUGHPUT_ON,
    ablation_row,
    count_macs,
    count_parameters,
    variant_named,
)

from record import RESULTS, folder_of

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("t", *(row.variant for row in ABLATION_ROWS if row.variant != "t"))
FORMS = ("fp32", "int8", "torch")


def main() -> None:
    """Make the files, time them, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(NAMES))
    parser.add_argument("--forms", default="fp32,int8")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time of each point")
    parser.add_argument("--samples", type=int, default=100, help="least runs of each point")
    parser.add_argument("--work", type=Path, default=Path("ablations-work"))
    options = parser.parse_args()
    names, forms = options.variants.split(","), options.forms.split(",")
    if unknown := [*({*names} - {*NAMES}), *({*forms} - {*FORMS})]:
        parser.error(f"{', '.join(unknown)}; expected variants of {', '.join(NAMES)} and forms of {', '.join(FORMS)}")
    options.work.mkdir(parents=True, exist_ok=True)
    sources = [source for name in names for source in made(name, forms, options.work)]
    print("measuring", file=sys.stderr, flush=True)
    results = pipeline.bench(
        sources,
        [int(text) for text in options.batches.split(",")],
        how=pipeline.Running(threads=options.threads),
        seconds=options.seconds,
        least=options.samples,
        command=shlex.join(["python", "benchmarks/ablations.py", *sys.argv[1:]]),
        warn=lambda text: print(f"warning: {text}", file=sys.stderr),
    )
    folder = RESULTS / folder_of(f"{results.machine.device}-{results.machine.cores}")
    folder.mkdir(parents=True, exist_ok=True)
    write_results(results, folder / "ablations.json")
    with written(folder / "ablations.md") as temporary:
        temporary.write_text(markdown(results), encoding="utf-8")
    print(markdown(results))
    if results.failures or results.interrupted:
        sys.exit("not every point was measured")


def made(name: str, forms: list[str], work: Path) -> list[str]:
    """The engines of a variant: files, made unless they are there, and its name in torch."""
    fp32, int8, scales = (work / f"sepvit_{name}{end}" for end in (".onnx", "_int8.onnx", ".scales.json"))
    if not fp32.exists() and {*forms} & {"fp32", "int8"}:
        print(f"{name}: exporting", file=sys.stderr, flush=True)
        pipeline.export(name, fp32)
    if "int8" in forms and not int8.exists():
        print(f"{name}: calibrating", file=sys.stderr, flush=True)
        count = sum(1 for picture in EXAMPLES.iterdir() if picture.suffix == ".jpg")
        pipeline.calibrate(fp32, EXAMPLES, scales, samples=count)
        pipeline.quantize(fp32, int8, precision="int8", scales=scales, target="cpu")
    engines = {"fp32": str(fp32), "int8": str(int8), "torch": f"{pipeline.TORCH}{name}"}
    return [engines[form] for form in forms]


def markdown(results: Results) -> str:
    """A table for each form, ours beside theirs."""
    machine, versions = results.machine, results.machine.versions
    loads = [point.conditions.load.high for point in results.points if point.conditions.load]
    lines = [
        f"{machine.device}, {machine.cores} cores, {results.engines[0].threads} thread(s), ONNX Runtime "
        f"{versions['onnxruntime']}, torch {versions['torch']}; load up to {max(loads, default=0):.1f}; "
        f"{results.seconds:g} s and {results.least} runs or more of each point. Made by `{results.command}`.",
        "",
        "| variant | tables | in the paper's words | form | batch | M parameters | G MACs | p50 ms | images/s | "
        "time over t | 95 % interval | paper's images/s | paper's time over t |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for found in beside_paper(results):
        engine, point = results.engine(found.engine), results.point(found.engine, found.batch)
        row, variant, ours = ablation_row(engine.variant), variant_named(engine.variant), found.over_t
        assert row is not None
        assert point is not None
        form = "torch, FP32" if engine.kind == "torch" else engine.precision.upper()
        cells = (
            engine.variant,
            ", ".join(map(str, row.tables)),
            row.label,
            form,
            str(found.batch),
            f"{count_parameters(variant) / 1e6:.3f}",
            f"{count_macs(variant) / 1e9:.3f}",
            f"{point.p50_ms:.1f}",
            f"{found.images_per_s:.1f}",
            f"{ours.ratio:.3f}" if ours else "1",
            f"{ours.low:.3f} to {ours.high:.3f}" if ours else "",
            str(found.paper_images_per_s),
            f"{found.paper_over_t:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Time over t: of SepViT-T in the same form, batch and rounds. Parameters and MACs: counted, of the model as "
        f"the paper writes it. The paper's: {ABLATION_PAPER}, {THROUGHPUT_ON}; none of it was measured here.",
        "",
        *(f"- {row.variant}: {row.note}." for row in ABLATION_ROWS if row.note),
        *(f"- {note}" for note in results.notes if not note.startswith("the work of")),  # no limit is shown here
        *(f"- {failure.engine} at batch {failure.batch} failed: {failure.error}" for failure in results.failures),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
