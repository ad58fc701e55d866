"""What every benchmark does with its figures: their conditions, and a place for the results of this machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from sepvit_deploy.artifact import written
from sepvit_deploy.conditions import machine

RESULTS = Path(__file__).parent / "results"


def conditions(threads: int | None = None) -> dict[str, object]:
    """What the figures depend on: processor, cores, threads, load."""
    here = machine({}, on_gpu=False)
    return {
        "device": here.device,
        "cores": here.cores,
        "threads": threads or "the runtime's choice",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def folder_of(machine: str) -> str:
    """A folder's name for a machine: ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def save(name: str, document: dict[str, Any], markdown: str) -> None:
    """Write results/<machine>/NAME.json and NAME.md; the machine is in ``document["conditions"]``."""
    where = document["conditions"]
    target = RESULTS / folder_of(f"{where['device']}-{where['cores']}") / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    with written(target) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with written(target.with_suffix(".md")) as temporary:
        temporary.write_text(markdown, encoding="utf-8")
