"""batch-predict: images/s against 1, 2 and 3 workers, here and on a Ray cluster of three nodes, and what follows.

    python benchmarks/batch.py [--images 240] [--rounds 3]

SepViT-Lite (random weights) on ONNX Runtime, one thread a model, over photographs of 500 x 375 pixels. Here, workers
are threads that decode for one model; on Ray they are actors, each with a model and a thread that decodes. The three
nodes are processes of this machine, so beyond its cores they share them. All kinds take turns. Two rates of each: of
the whole command, and, by the times of the files, once every worker has done a part. Then a job of a billion images,
computed from what was measured. Prints Markdown and writes results/<machine>/batch.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from sepvit_deploy import pipeline
from sepvit_deploy.artifact import tool_versions
from sepvit_deploy.batch_predict.listing import Source, offsets, write_listing
from sepvit_deploy.batch_predict.parquet import Row, counts_of, write_part
from sepvit_deploy.batch_predict.parts import MOST_IMAGES, part_count
from sepvit_deploy.pipeline.batch import batch_predict

from record import conditions, save

PHOTO = Path(__file__).parents[1] / "examples" / "chelsea.jpg"
ADDRESS = "127.0.0.2"
"""Not 127.0.0.1, which Ray takes for the machine's own address, where nothing listens."""
WORKERS = (1, 2, 3)
PART = 8
LISTED = 100_000
BILLION = 10**9
CORES = 1000


def photographs(folder: Path, count: int) -> Path:
    """Crops of one photograph, each another, of the size that ImageNet's have on average."""
    rng = np.random.default_rng(0)
    with Image.open(PHOTO) as photo:
        whole = photo.convert("RGB").resize((750, 500))
    for k in range(count):
        path = folder / f"n{k % 10:04d}" / f"n{k % 10:04d}_{k:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        left, top = int(rng.integers(0, 250)), int(rng.integers(0, 125))
        whole.crop((left, top, left + 500, top + 375)).save(path, quality=90)
    return folder


@contextlib.contextmanager
def three_nodes() -> Iterator[str]:
    """The address of a cluster of three nodes, a processor each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    with contextlib.redirect_stdout(sys.stderr):
        for _ in range(3):
            cluster.add_node(
                num_cpus=1, node_ip_address=ADDRESS, object_store_memory=100 << 20, include_dashboard=False
            )
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def one_run(model: Path, images: Path, output: Path, workers: int, ray: str | None) -> dict[str, float]:
    """The two rates of a job."""
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    how = pipeline.Running(threads=1)
    done = batch_predict(model, str(images), output, part_images=PART, workers=workers, ray=ray, how=how)
    seconds = time.perf_counter() - start
    assert (done.images, done.failed, done.workers) == (done.made, 0, workers)
    times = sorted(path.stat().st_mtime for path in output.glob("part-*"))
    settled = workers if ray else 1
    steady = PART * (len(times) - settled) / (times[-1] - times[settled - 1])
    return {"seconds": seconds, "whole_per_s": done.images / seconds, "steady_per_s": steady}


def speed(work: Path, images: int, rounds: int) -> list[dict[str, Any]]:
    """Images a second of every kind of run, in turns."""
    model = work / "sepvit_lite.onnx"
    pipeline.export("lite", model)
    folder = photographs(work / "photographs", images)
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with three_nodes() as address:
        for turn in range(rounds):
            for where, ray in (("here", None), ("Ray", address)):
                for workers in WORKERS:
                    print(f"round {turn + 1}: {where}, {workers}", file=sys.stderr, flush=True)
                    run = one_run(model, folder, work / "out.parquet", workers, ray)
                    found.setdefault((where, workers), []).append(run)
    return [{"where": where, "workers": workers, "runs": runs} for (where, workers), runs in found.items()]


def costs(work: Path) -> dict[str, float]:
    """What a picture costs in bytes and seconds, besides being classified."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(MOST_IMAGES):
        classes = tuple(rng.choice(1000, 5, replace=False).tolist())
        scores = tuple(np.sort(rng.dirichlet(np.full(5, 0.5)))[::-1].tolist())
        rows.append(Row(f"train/n{k % 10:08d}/n{k % 10:08d}_{k:012d}.JPEG", classes, scores))
    part = work / "part-000000.parquet"
    begin = time.perf_counter()
    write_part(part, rows, {})
    written = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(200):
        counts_of(part)
    footer = (time.perf_counter() - begin) / 200
    names = work / "names"
    for k in range(LISTED):
        path = names / f"{k % 100}" / f"n{k:012d}.jpg"
        if k < 100:
            path.parent.mkdir(parents=True)
        path.touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    listing = write_listing(Source.parse(str(names)), work / "listing")
    listed = time.perf_counter() - begin
    begin = time.perf_counter()
    offsets(listing.file, MOST_IMAGES)
    cut = time.perf_counter() - begin
    return {
        "row_bytes": part.stat().st_size / MOST_IMAGES,
        "write_part_s": written,
        "footer_s": footer,
        "list_s_per_image": listed / LISTED,
        "offsets_s_per_image": cut / LISTED,
        "listing_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
        "name_bytes": len("train/n00000000/n00000000_000000000000.JPEG") + 1,
    }


def billion(rows: list[dict[str, Any]], cost: dict[str, float]) -> dict[str, float]:
    """A job of a billion images, from what was measured of one core and of one picture."""
    alone = next(row for row in rows if row["where"] == "Ray" and row["workers"] == 1)
    rate = median(run["steady_per_s"] for run in alone["runs"])
    parts = part_count(BILLION, MOST_IMAGES)
    return {
        "core_images_per_s": rate,
        "core_hours": BILLION / rate / 3600,
        "parts": parts,
        "output_gb": BILLION * cost["row_bytes"] / 1e9,
        "part_mb": MOST_IMAGES * cost["row_bytes"] / 1e6,
        "part_minutes": MOST_IMAGES / rate / 60,
        "listing_gb": BILLION * cost["name_bytes"] / 1e9,
        "listing_minutes": BILLION * (cost["list_s_per_image"] + cost["offsets_s_per_image"]) / 60,
        "resume_footers_minutes": parts * cost["footer_s"] / 60,
    }


def markdown(document: dict[str, Any]) -> str:
    """The table, and the job of a billion images."""
    where, cost, found = document["conditions"], document["costs"], document["billion"]
    text = f"""# batch-predict: images/s against workers

{where["device"]}, {where["cores"]} cores; SepViT-Lite, FP32, ONNX Runtime, one thread a model;
{document["images"]} JPEGs of 500 x 375, parts of {PART}; medians of {document["rounds"]} rounds in which all kinds took
turns, and their range. Steady: once every worker has done a part.

| where | workers | images/s, steady | against 1 worker | images/s, whole command | seconds |
|---|---:|---:|---:|---:|---:|
"""
    base: dict[str, float] = {}
    for row in document["speed"]:
        steady = [run["steady_per_s"] for run in row["runs"]]
        base.setdefault(row["where"], median(steady))
        kind = "here: threads that decode" if row["where"] == "here" else "Ray: actors on three nodes"
        text += (
            f"| {kind} | {row['workers']} | {median(steady):.1f} ({min(steady):.1f} to {max(steady):.1f}) "
            f"| {median(steady) / base[row['where']]:.2f} | {median(run['whole_per_s'] for run in row['runs']):.1f} "
            f"| {median(run['seconds'] for run in row['runs']):.1f} |\n"
        )
    days = found["core_hours"] / 24 / CORES
    listed = f"{1e6 * cost['list_s_per_image']:.1f} µs to list (local disk, cached)"
    part = f"{found['part_mb']:.2f} MB and {found['part_minutes']:.1f} core-minutes each"
    large = f"{65536 * cost['row_bytes'] / 1e6:.0f} MB each"
    most = 65536 / found["core_images_per_s"] / 60
    return (
        text
        + f"""
Here the one model is the limit, and a thread decodes quickly enough for it: `--threads` gives it more cores. The three
nodes are processes of this one machine of {where["cores"]} cores, which other programs share, so this shows what the
cluster costs and not how far it goes: more actors than cores bring little. What is lost to the start (Ray's connection,
a process and a model for each actor) does not grow with the job.

## A billion images, computed

Of one picture: a row of {cost["row_bytes"]:.0f} bytes (five classes, zstd), a name of {cost["name_bytes"]:.0f} bytes,
{listed}, {found["core_images_per_s"]:.1f} images/s an actor.

| quantity | value | from |
|---|---:|---|
| machine time | {found["core_hours"]:,.0f} core-hours | the rate of one actor; on {CORES:,} cores {days:.1f} days |
| output | {found["output_gb"]:.0f} GB | rows |
| parts | {found["parts"]:,} of {MOST_IMAGES} images | {part} |
| listing (`_images`) | {found["listing_gb"]:.0f} GB | names, in one file that is read in slices |
| listing the folder | {found["listing_minutes"]:.0f} min | one process; network storage takes many times that |
| looking at what is done | {found["resume_footers_minutes"]:.0f} min | a footer of each part, at every start |

What breaks first, in this order:

1. The listing: one process walks every folder, at every start, and network storage answers far slower than this disk.
   Split the job by folders, an output each: a hundred jobs of ten million images.
2. The number of files: {found["parts"]:,} in one folder is much for a reader, which opens each. `--part 65536` makes it
   {part_count(BILLION, 65536):,}, of {large}, and a kill then costs up to {most:.0f} core-minutes a worker.
3. Reading the pictures: at 100 kB each, 100 TB in {days:.1f} days are {1e5 / (days * 86400):.1f} GB/s from the storage.
4. The head of the cluster: a record of each missing part goes through it at the start. Other memory does not grow with
   the job: listing {LISTED:,} names took {cost["listing_rss_kib"] / 1024:.0f} MiB.

Made by `python benchmarks/batch.py`.
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    document: dict[str, Any] = {"conditions": {**conditions(1), "tools": tool_versions()}}
    document |= {"images": given.images, "rounds": given.rounds}
    with tempfile.TemporaryDirectory() as folder:
        document["costs"] = costs(Path(folder))
        document["speed"] = speed(Path(folder), given.images, given.rounds)
    document["billion"] = billion(document["speed"], document["costs"])
    text = markdown(document)
    print(text)
    save("batch", document, text)


if __name__ == "__main__":
    main()
