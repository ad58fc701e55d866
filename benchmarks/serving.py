"""The embedded server under load: what it reaches of the bare runner, and that it loses nothing.

    python benchmarks/serving.py [--quick] [--work serving-work]

Each bar is measured on a server process of its own, `sepvit-deploy serve`, over loopback, on a machine that the clients
share with it. Writes results/<machine>/serving.json and serving.md.

- throughput: 32 clients in a closed loop on the digits model, in turns with the bare runner in a process of its own at
  the mixture of batches that the server formed in that turn.
- memory: requests of every kind, bad ones included, on a graph of two nodes; resident memory read along the way.
- fuzz: requests drawn by hypothesis, half broken in their meaning, half in their bytes.
- overload: ten times the rate that the closed loop reached, as pictures, arrivals Poisson.
- termination: SIGTERM while clients send on connections that they keep.

--quick takes a tenth of each, to try the script.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from record import conditions, save
from served import digits_model, picture, tiny_model
from serving_bars import bare, fuzz, memory, overload, termination, throughput

TURNS, TURN_S = 7, 8.0
REQUESTS, DRAWS, OVERLOAD_S, KILLS = 100_000, 10_000, 60.0, 20


def main() -> None:
    """Measure each bar, and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--work", type=Path, default=Path("serving-work"))
    options = arguments.parse_args()
    share = 0.1 if options.quick else 1.0
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    digits, tiny = digits_model(work), tiny_model(work / "tiny.onnx")
    found: dict[str, Any] = {"conditions": conditions(1) | {"onnxruntime": onnxruntime.__version__}}
    found["throughput"] = show("throughput", throughput(digits, max(int(TURNS * share), 2), TURN_S * share**0.5))
    found["overload"] = show("overload", overload(digits, work, found["throughput"], OVERLOAD_S * share))
    found["termination"] = show("termination", termination(digits, work, max(int(KILLS * share), 3)))
    found["fuzz"] = show("fuzz", fuzz(tiny, picture(work), int(DRAWS * share)))
    found["memory"] = show("memory", memory(tiny, picture(work), int(REQUESTS * share)))
    if not options.quick:
        save("serving", found, markdown(found))
    print(markdown(found))


def show(name: str, row: dict[str, Any]) -> dict[str, Any]:
    print(f"{name}: {json.dumps(row)}", file=sys.stderr, flush=True)
    return row


def markdown(found: dict[str, Any]) -> str:
    """The bars, what was reached, and whether that is enough."""
    where = found["conditions"]
    rows = [bar(found[name]) for name, bar in BARS.items()]
    lines = [
        f"`sepvit-deploy serve`, ONNX Runtime {where['onnxruntime']} on {where['device']}, {where['cores']} cores that "
        "the clients share; one thread for the model. Made by `python benchmarks/serving.py`.",
        "",
        "| what | asked | reached | |",
        "|---|---|---|---|",
        *(f"| {what} | {asked} | {got} | {'yes' if good else '**no**'} |" for what, asked, got, good in rows),
        "",
        "Throughput, overload and termination on SepViT-Lite trained on the digits, in FP32; memory and fuzz on a "
        "graph of two nodes, where the server is all that a request costs.",
    ]
    return "\n".join(lines) + "\n"


def of_throughput(row: dict[str, Any]) -> Bar:
    low, high = row["ratio_interval"]
    return (
        f"{row['clients']} clients against the bare runner at the batches formed",
        "at least 0.90",
        f"{row['ratio']:.3f} ({low:.3f} to {high:.3f}); {row['images_per_s']:.0f} images/s, mean batch "
        f"{row['mean_batch']:.1f}",
        row["ratio"] >= 0.9,
    )


def of_memory(row: dict[str, Any]) -> Bar:
    growth = row["median_second_half"] / row["median_first_half"] - 1
    codes = ", ".join(f"{code}: {count:,}" for code, count in row["codes"].items())
    return (
        f"resident memory over {row['requests']:,} requests of nine kinds, a third of them bad",
        "second half at most 2 % over the first",
        f"{growth:+.1%}: {row['mib_after_a_tenth']:.0f} MiB after a tenth, {row['mib_at_the_end']:.0f} at the end; "
        f"{codes}",
        growth < 0.02 and row["as_expected"],
    )


def of_fuzz(row: dict[str, Any]) -> Bar:
    codes = ", ".join(f"{code}: {count:,}" for code, count in row["statuses"].items())
    return (
        f"{row['requests']:,} requests of hypothesis, half broken in meaning, half in bytes",
        "no 5xx, no crash, no whole request without an answer",
        f"{row['wrong_count']} wrong, {row['tracebacks']} tracebacks; {codes}",
        row["alive"] and not row["wrong_count"] and not row["tracebacks"],
    )


def of_overload(row: dict[str, Any]) -> Bar:
    in_time = row["within_deadline"][0]  # of what was answered or given up
    return (
        f"ten times the load for {row['seconds']:.0f} s ({row['rate_per_s']:.0f} pictures/s, Poisson)",
        f"right or 503; 99 % of the accepted within {row['deadline_ms']:.0f} ms",
        f"{row['answered']:,} right, {row['refused']:,} refused at once, {row['late']:,} accepted and given up, "
        f"{row['lost']} lost or wrong; {in_time:.1%} in time, p99 {row['p99_ms'] or 0:.0f} ms",
        not row["lost"] and in_time >= 0.99 and not row["tracebacks"],
    )


def of_termination(row: dict[str, Any]) -> Bar:
    others = {kind: count for kind, count in row["requests"].items() if kind != "answered"}
    return (
        f"SIGTERM under the load of {row['clients']} clients, {row['times']} times",
        "every accepted request answered, exit code 0",
        f"{row['requests'].get('answered', 0):,} answered, "
        + (", ".join(f"{kind}: {count}" for kind, count in others.items()) or "none lost")
        + f"; exit codes {', '.join(f'{code}: {count}' for code, count in row['exit_codes'].items())}",
        not others and row["exit_codes"] == {"0": row["times"]},
    )


Bar = tuple[str, str, str, bool]
"""What was measured, what is asked, what was reached, and whether that is enough."""
BARS: dict[str, Callable[[dict[str, Any]], Bar]] = {
    "throughput": of_throughput,
    "memory": of_memory,
    "fuzz": of_fuzz,
    "overload": of_overload,
    "termination": of_termination,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        print(bare(Path(sys.argv[2]), {int(k): v for k, v in json.loads(sys.argv[3]).items()}, float(sys.argv[4])))
    else:
        main()
