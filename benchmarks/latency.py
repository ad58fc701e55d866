"""Latency of the model that this repository trains, in every form that runs here: results, page and picture.

    python benchmarks/latency.py [--batches 1,2,4,8] [--threads 1] [--work latency-work]

SepViT-Lite trained on the digits, in FP32, in INT8 for a CPU and for TensorRT (the rest of it in FP32, so that a CPU
runs it as a GPU would), and eagerly in torch; its accuracy on the test pictures is kept with each. All engines take
turns in one run of `sepvit-deploy bench`. Writes results/<machine>/latency.json with every sample and latency.md, the
page of it in the folder of --work, and, where a Chromium is installed, a picture of the page, report.png.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from sepvit_deploy.comparison import crossovers, ratios
from sepvit_deploy.latency import Results, read_results

from record import RESULTS, folder_of

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "models" / "sepvit_lite_digits.safetensors"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1200, 1480
"""Of the picture: the head, the findings, latency and throughput."""


def main() -> None:
    """Make the files, time them, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--work", type=Path, default=Path("latency-work"))
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(WEIGHTS, work)
    subprocess.run([sys.executable, ROOT / "benchmarks" / "digits.py", "--output", work / "digits"], check=True)

    def cli(line: str) -> str:
        return printed(line.split(), work)

    cli(f"export --variant lite --weights {WEIGHTS.name} --output digits.onnx")
    cli("calibrate digits.onnx --images digits/calibration")
    lower = "quantize digits.onnx --precision int8 --scales digits.scales.json"
    cli(f"{lower} --target cpu --output digits_int8_cpu.onnx")
    cli(f"{lower} --rest fp32 --output digits_int8.onnx")
    command = f"bench --engine torch:lite:{WEIGHTS.name}"
    for name in ("digits", "digits_int8", "digits_int8_cpu"):
        evaluated = cli(f"evaluate {name}.onnx --images digits/test --json")
        (work / f"{name}.evaluated.json").write_text(evaluated, encoding="utf-8")
        command += f" --engine {name}.onnx --accuracy {name}.evaluated.json"
    cli(f"{command} --batch {options.batches} --threads {options.threads} --output latency.json")
    cli("report latency.json digits.scales.json --html report.html")
    results = read_results(work / "latency.json")
    folder = RESULTS / folder_of(f"{results.machine.device}-{results.machine.cores}")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "latency.json", folder)
    (folder / "latency.md").write_text(markdown(results), encoding="utf-8")
    picture(work / "report.html", folder / "report.png")
    print(markdown(results))


def printed(words: list[str], work: Path) -> str:
    """What a command prints, typed in a folder; the benchmark ends where it fails."""
    program = [sys.executable, "-c", "import sys; from sepvit_deploy.cli import main; sys.exit(main())"]
    done = subprocess.run([*program, *words], cwd=work, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"sepvit-deploy {words[0]} ended with {done.returncode}")
    return done.stdout


def picture(page: Path, target: Path) -> None:
    """The upper part of a page as a PNG."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        print(f"no picture: none of {', '.join(BROWSERS)} is installed", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        sheet = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        sheet.goto(page.resolve().as_uri())
        sheet.wait_for_selector("html[data-drawn]")
        sheet.screenshot(path=target, clip={"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT})
        browser.close()


def markdown(results: Results) -> str:
    """The points and what follows from them."""
    machine = results.machine
    threads, versions = results.engines[0].threads, machine.versions
    lines = [
        f"{machine.device}, {machine.cores} cores, {threads} thread(s), ONNX Runtime {versions['onnxruntime']}, "
        f"torch {versions['torch']}. Made by `python benchmarks/latency.py`.",
        "",
        "| engine | batch | p50 ms | p90 ms | p99 ms | images/s | of limit | over torch's time | 95 % interval |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    over = {(ratio.engine, ratio.batch): ratio for ratio in ratios(results)}
    for engine in results.engines:
        name = engine.name.split(":")[0] + " eager" if engine.kind == "torch" else engine.name
        for point in results.curve(engine.name):
            limit = results.limit_ms(point)
            ratio = over.get((engine.name, point.batch))
            lines.append(
                f"| {name} | {point.batch} | {point.p50_ms:.1f} | {point.quantile_ms(0.9):.1f} | "
                f"{point.quantile_ms(0.99):.1f} | {point.images_per_s:.1f} | "
                f"{f'{limit / point.p50_ms:.0%}' if limit else ''} | {f'{ratio.ratio:.3f}' if ratio else '1'} | "
                f"{f'{ratio.low:.3f} to {ratio.high:.3f}' if ratio else ''} |"
            )
    return "\n".join([*lines, "", *(f"- {found.sentence}" for found in crossovers(results))]) + "\n"


if __name__ == "__main__":
    main()
