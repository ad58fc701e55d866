"""Train SepViT-Lite on difficult pictures of handwritten digits (`benchmarks/digits.py`), on 2 CPU cores in an hour.

    python benchmarks/train_digits.py

Writes models/sepvit_lite_digits.safetensors, with the keys of the published checkpoints, and beside it
sepvit_lite_digits.training.json, from which `benchmarks/precision.py` fills the model card.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.artifact import sha256, tool_versions, written
from sepvit_deploy.images import preprocess
from sepvit_deploy.model.checkpoint import published_state_dict
from sepvit_deploy.model.sepvit import SepViT
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import variant_named

from digits import SEED, SPLITS, compose, pictures, source
from record import conditions

SPEC = ModelSpec("lite", "classify", (224, 224), 10)
BATCH = 16
STEPS = 2400
PEAK_RATE = 1e-3
WARM_UP = 50
RAMP = 0.6
"""Share of the steps over which the hardest pictures grow from plain to level 1. The learning rate stays at its peak
until then, and falls to nothing along half a cosine after it."""
WEIGHT_DECAY = 0.05
SMOOTHING = 0.05
MONITOR = 200
"""Calibration pictures that the progress is told on; the test set is never looked at here."""


class Batches(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Training batches: images (B, 3, 224, 224) and classes (B,), every one a new picture."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        torch.set_num_threads(1)
        digits = source("train")
        for step in range(self.steps):
            rng = np.random.default_rng((SEED, step))
            hardest = min(1.0, step / (RAMP * self.steps))
            chosen = rng.integers(0, len(digits.classes), BATCH)
            levels = hardest * rng.random((2, BATCH)).max(axis=0)
            images = [
                preprocess(compose(digits, int(index), rng, float(level)), SPEC.preprocessing)
                for index, level in zip(chosen, levels, strict=True)
            ]
            yield torch.from_numpy(np.stack(images)), torch.from_numpy(digits.classes[chosen])


def rate(step: int, steps: int) -> float:
    """Learning rate: a linear warm-up, the peak, then half a cosine."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    share = max(0.0, step / steps - RAMP) / (1 - RAMP)
    return PEAK_RATE * (0.5 + 0.5 * math.cos(math.pi * share))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases, norms and window tokens do not decay."""
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1 and not name.endswith("window_tokens")]
    kept = [p for name, p in model.named_parameters() if p.dim() == 1 or name.endswith("window_tokens")]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))


@torch.no_grad()
def share_right(model: nn.Module) -> float:
    """Top-1 on the hardest pictures of the calibration split, other ones than calibration uses."""
    model.eval()
    right = 0
    for picture, label in pictures("calibration", MONITOR, level=1.0, seed=1):
        logits = model(torch.from_numpy(preprocess(picture, SPEC.preprocessing))[None])
        right += int(logits.argmax()) == label
    model.train()
    return right / MONITOR


def draw_weights(model: nn.Module) -> None:
    """Initial weights of linear layers, and biases of 0; the rest as torch has it."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    monitor: Callable[[], dict[str, float]],
    *,
    monitor_every: int = 400,
    bfloat16: bool = False,
) -> list[dict[str, float]]:
    """Train ``model`` on ``batches``: ``steps`` pairs of images and targets.

    Args:
        loss_of: outputs and targets to the loss.
        monitor: figures to log, every ``monitor_every`` steps and after the last.
        bfloat16: compute products in bfloat16, in less than two thirds of the time on a CPU that has it.

    Returns:
        The log, a row for every 50 steps.
    """
    optimizer = optimizer_of(model)
    log: list[dict[str, float]] = []
    losses: list[float] = []
    began = time.monotonic()
    for step, (images, targets) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = model(images)
        loss = loss_of(outputs.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            row = {"step": step + 1, "loss": round(sum(losses) / len(losses), 4)}
            row["seconds"] = round(time.monotonic() - began, 1)
            if (step + 1) % monitor_every == 0 or step + 1 == steps:
                row |= monitor()
            log.append(row)
            losses.clear()
            print(row, flush=True)
    return log


def loader_of(batches: torch.utils.data.IterableDataset[Any]) -> Iterable[tuple[Tensor, Tensor]]:
    """``batches`` as a process beside the training makes them."""
    return torch.utils.data.DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=8)


def train(steps: int) -> tuple[SepViT, list[dict[str, float]]]:
    torch.manual_seed(SEED)
    model = SepViT(variant_named(SPEC.variant), SPEC.num_classes).train()
    draw_weights(model)

    def loss_of(logits: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(logits, classes, label_smoothing=SMOOTHING)

    log = fit(model, loader_of(Batches(steps)), steps, loss_of, lambda: {"monitor_top1": share_right(model)})
    return model.eval(), log


def store(output: Path, weights: dict[str, Tensor], facts: dict[str, Any], log: list[dict[str, float]]) -> None:
    """Write the weights, and beside them what the model card is filled from."""
    from safetensors.torch import save_file

    with written(output) as temporary:
        save_file({key: value.contiguous() for key, value in weights.items()}, temporary)
    facts |= {
        "sha256": sha256(output),
        "conditions": {key: value for key, value in conditions(None).items() if key in ("device", "cores")},
        "tools": tool_versions(),
        "log": log,
    }
    with written(output.with_suffix(".training.json")) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB in {facts['minutes']} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train SepViT-Lite on the digits.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=Path("models/sepvit_lite_digits.safetensors"))
    options = parser.parse_args()

    torch.set_flush_denormal(True)
    began = time.monotonic()
    model, log = train(options.steps)
    facts = {
        "command": "python benchmarks/train_digits.py",
        "model": SPEC.to_dict(),
        "seed": SEED,
        "source_digits": SPLITS,
        "steps": options.steps,
        "batch": BATCH,
        "peak_learning_rate": PEAK_RATE,
        "weight_decay": WEIGHT_DECAY,
        "label_smoothing": SMOOTHING,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    store(options.output, published_state_dict(model), facts, log)


if __name__ == "__main__":
    main()
