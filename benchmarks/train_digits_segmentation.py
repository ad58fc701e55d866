"""Train SepViT-Lite with Semantic FPN to find and read a digit, pixel by pixel, on one CPU core in under an hour.

    python benchmarks/train_digits_segmentation.py

Pictures and masks are those of `benchmarks/digits.py`; the backbone starts from models/sepvit_lite_digits.safetensors,
which knows digits of that size: halved, they would train four times as quickly and come to less. Writes models/sepvit_lite_fpn_digits.safetensors in float16, with a segmentation
toolbox's keys and nothing that inference does not need, and beside it sepvit_lite_fpn_digits.training.json, from which
`benchmarks/segmentation.py` fills the model card.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_digits import WEIGHT_DECAY, fit, loader_of, store

from sepvit_deploy.images import preprocess
from sepvit_deploy.masks import class_mask
from sepvit_deploy.model.checkpoint import TRAINING_ONLY, our_name, published_state_dict
from sepvit_deploy.model.segmentation import SepViTSegmenter
from sepvit_deploy.model.sepvit import SepViTBackbone
from sepvit_deploy.model.state_dict import read_state_dict
from sepvit_deploy.segmentation_scores import count, judged
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import variant_named

from digits import MASK_CLASSES, SEED, SIDE, SPLITS, compose_masked, masked_pictures, source

SPEC = ModelSpec("lite", "segment", (SIDE, SIDE), len(MASK_CLASSES), head="fpn")
CLASSIFIER = Path("models/sepvit_lite_digits.safetensors")
BATCH = 4
STEPS = 900
PEAK_RATE = 5e-4
RAMP = 0.2
"""Share of the steps over which the hardest pictures grow from plain to level 1; the backbone has seen such ones."""
MONITOR = 60
"""Calibration pictures that the progress is told on; the test set is never looked at here."""


class Batches(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Training batches: images (B, 3, 224, 224) and labels (B, 224, 224), every one a new picture."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        torch.set_num_threads(1)
        digits = source("train")
        for step in range(self.steps):
            # The third number keeps these pictures apart from those that the classifier was trained on.
            rng = np.random.default_rng((SEED, step, 1))
            hardest = min(1.0, step / (RAMP * self.steps))
            levels = hardest * rng.random((2, BATCH)).max(axis=0)
            chosen = rng.integers(0, len(digits.classes), BATCH)
            pairs = [compose_masked(digits, int(k), rng, float(v)) for k, v in zip(chosen, levels, strict=True)]
            images = [preprocess(picture, SPEC.preprocessing) for picture, _ in pairs]
            labels = [np.asarray(mask).astype(np.int64) for _, mask in pairs]
            yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


@torch.no_grad()
def warm_start(backbone: SepViTBackbone, checkpoint: Path, images: Tensor) -> None:
    """Take the classifier's weights: all but its window tokens, last norm and head.

    What only the dense backbone has is made to change little, as seen on ``images`` (B, 3, 224, 224): the norm after
    each stage gives back the mean and deviation that it takes away, and the last stage's attention, which pointwise
    attention with one window doubles, is halved.
    """
    stored = {our_name(key): value for key, value in read_state_dict(checkpoint).items()}
    left = {name for name in stored if name.endswith(".window_tokens") or name.partition(".")[0] in ("norm", "head")}
    missing, unexpected = backbone.load_state_dict({n: v for n, v in stored.items() if n not in left}, strict=False)
    new = [name for name in missing if ".pwa." not in name and name.partition(".")[0] not in ("norms", "norm", "head")]
    if new or unexpected:
        raise SystemExit(f"{checkpoint} does not fit the backbone: {', '.join([*new, *unexpected])}")
    for block in backbone.stages[-1].blocks:
        block.attention.proj.weight.mul_(0.5)
    x = images
    for stage, norm in zip(backbone.stages, backbone.norms, strict=True):
        x = stage(x)
        norm.weight.fill_(x.std(dim=-1, correction=0).mean())
        norm.bias.fill_(x.mean())
        x = norm(x).permute(0, 3, 1, 2)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel of the input, the logits resized to it as inference resizes them."""
    return F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False), labels)


@torch.no_grad()
def mean_iou(model: nn.Module) -> float:
    """Mean IoU on the hardest pictures of the calibration split, other ones than calibration uses, at their full size."""
    model.eval()
    records = []
    for number, (picture, mask) in enumerate(masked_pictures("calibration", MONITOR, level=1.0, seed=1)):
        logits = model(torch.from_numpy(preprocess(picture, SPEC.preprocessing))[None]).numpy()
        found = class_mask({"logits": logits}, 0, input_size=SPEC.size, picture_size=(SIDE, SIDE))
        records.append(count(number, np.asarray(mask), found, None, SPEC.num_classes))
    model.train()
    return judged(records, SPEC.num_classes)[0].miou.value


def train(steps: int, classifier: Path) -> tuple[SepViTSegmenter, list[dict[str, float]]]:
    torch.manual_seed(SEED)
    model = SepViTSegmenter(variant_named(SPEC.variant), "fpn", SPEC.num_classes).train()
    warm_start(model.backbone, classifier, next(iter(Batches(steps)))[0])
    log = fit(
        model,
        loader_of(Batches(steps)),
        steps,
        loss_of,
        lambda: {"monitor_miou": round(mean_iou(model), 4)},
        peak=PEAK_RATE,
        monitor_every=150,
        bfloat16=True,
    )
    return model.eval(), log


def main() -> None:
    parser = argparse.ArgumentParser(description="Train SepViT-Lite with Semantic FPN on the digits.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER, help="checkpoint that the backbone starts from")
    parser.add_argument("--output", type=Path, default=Path("models/sepvit_lite_fpn_digits.safetensors"))
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    began = time.monotonic()
    model, log = train(options.steps, options.classifier)
    weights = {
        key: value.half() for key, value in published_state_dict(model).items() if not TRAINING_ONLY.fullmatch(key)
    }
    facts = {
        "command": "python benchmarks/train_digits_segmentation.py",
        "model": SPEC.to_dict(),
        "classes": MASK_CLASSES,
        "seed": SEED,
        "source_digits": SPLITS,
        "steps": options.steps,
        "batch": BATCH,
        "peak_learning_rate": PEAK_RATE,
        "weight_decay": WEIGHT_DECAY,
        "computed_in": "bfloat16, one thread",
        "stored_as": "float16",
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    store(options.output, weights, facts, log)


if __name__ == "__main__":
    main()
