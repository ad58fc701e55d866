"""Train SepViT-Lite with Semantic FPN to find and read a digit, pixel by pixel, on one CPU core in under an hour.

    python benchmarks/train_digits_segmentation.py

Pictures and masks are those of `benchmarks/digits.py`, halved to 112 x 112 pixels; the backbone starts from
models/sepvit_lite_digits.safetensors. Writes models/sepvit_lite_fpn_digits.safetensors in float16, with a segmentation
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
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.images import preprocess
from sepvit_deploy.masks import class_mask
from sepvit_deploy.model.checkpoint import TRAINING_ONLY, our_name, published_state_dict
from sepvit_deploy.model.segmentation import SepViTSegmenter
from sepvit_deploy.model.state_dict import read_state_dict
from sepvit_deploy.segmentation_scores import count, judged
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import variant_named

from digits import MASK_CLASSES, SEED, SIDE, SPLITS, Source, compose_masked, masked_pictures, source
from train_digits import BATCH, PEAK_RATE, WEIGHT_DECAY, fit, loader_of, store

SPEC = ModelSpec("lite", "segment", (112, 112), len(MASK_CLASSES), head="fpn")
CLASSIFIER = Path("models/sepvit_lite_digits.safetensors")
STEPS = 1500
RAMP = 0.2
"""Share of the steps over which the hardest pictures grow from plain to level 1; the backbone has seen such ones."""
MONITOR = 100
"""Calibration pictures that the progress is told on; the test set is never looked at here."""


class Batches(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Training batches: images (B, 3, 112, 112) and labels (B, 112, 112), every one a new picture."""

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
            pairs = [self.example(digits, rng, float(level)) for level in levels]
            images, labels = zip(*pairs, strict=True)
            yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))

    @staticmethod
    def example(
        digits: Source, rng: np.random.Generator, level: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """One input, and its labels: a pixel is the digit's where that covers at least half of it."""
        picture, mask = compose_masked(digits, int(rng.integers(len(digits.classes))), rng, level)
        number = int(np.asarray(mask).max())
        shape = mask.point([255 * (value > 0) for value in range(256)])
        halved = np.asarray(shape.resize(SPEC.size[::-1], Image.Resampling.BOX))
        return preprocess(picture, SPEC.preprocessing), np.where(halved >= 128, number, 0).astype(np.int64)


def warm_start(backbone: nn.Module, checkpoint: Path) -> None:
    """Take the classifier's weights: all but its window tokens, last norm and head.

    What only the dense backbone has keeps its initial values: a norm after each stage, and pointwise attention in the
    blocks of the last stage.
    """
    stored = {our_name(key): value for key, value in read_state_dict(checkpoint).items()}
    left = {name for name in stored if name.endswith(".window_tokens") or name.partition(".")[0] in ("norm", "head")}
    missing, unexpected = backbone.load_state_dict({n: v for n, v in stored.items() if n not in left}, strict=False)
    new = [name for name in missing if ".pwa." not in name and name.partition(".")[0] not in ("norms", "norm", "head")]
    if new or unexpected:
        raise SystemExit(f"{checkpoint} does not fit the backbone: {', '.join([*new, *unexpected])}")


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel of the input, the logits resized to it as inference resizes them."""
    return F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False), labels)


@torch.no_grad()
def mean_iou(model: nn.Module) -> float:
    """Mean IoU on the hardest pictures of the calibration split, others than calibration uses, at their full size."""
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
    warm_start(model.backbone, classifier)
    log = fit(
        model,
        loader_of(Batches(steps)),
        steps,
        loss_of,
        lambda: {"monitor_miou": round(mean_iou(model), 4)},
        monitor_every=250,
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
