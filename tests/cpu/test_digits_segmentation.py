"""The trained segmentation checkpoint: what the repository says of it is so."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sepvit_deploy.artifact import sha256
from sepvit_deploy.images import preprocess
from sepvit_deploy.masks import class_mask
from sepvit_deploy.model.checkpoint import TRAINING_ONLY, load_checkpoint
from sepvit_deploy.model.state_dict import read_state_dict
from sepvit_deploy.segmentation_scores import count, judged
from sepvit_deploy.spec import ModelSpec
from tests.repo.layers import ROOT

CHECKPOINT = ROOT / "models" / "sepvit_lite_fpn_digits.safetensors"
SPEC = ModelSpec("lite", "segment", (112, 112), 11, head="fpn")
RESULTS = "*/segmentation.json"
LEAST_MIOU = 0.6
"""Of 24 pictures: their interval is wide, and the card has the figure of 500."""


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import digits
    finally:
        sys.path.pop(0)
    return digits


@pytest.fixture(scope="module")
def miou(digits: ModuleType) -> Callable[[NDArray[np.float32]], float]:
    """Of logits of the first 24 test pictures."""
    masks = [np.asarray(mask) for _, mask in digits.masked_pictures("test", 24)]

    def of(logits: NDArray[np.float32]) -> float:
        found = [
            class_mask({"logits": logits}, index, input_size=SPEC.size, picture_size=mask.shape)
            for index, mask in enumerate(masks)
        ]
        records = [count(i, mask, own, None, 11) for i, (mask, own) in enumerate(zip(masks, found, strict=True))]
        return judged(records, 11)[0].miou.value

    return of


@pytest.fixture(scope="module")
def logits(digits: ModuleType) -> NDArray[np.float32]:
    model = load_checkpoint(CHECKPOINT, "lite", "segment", head="fpn")
    images = [preprocess(picture, SPEC.preprocessing) for picture, _ in digits.masked_pictures("test", 24)]
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(image)[None]).numpy() for image in images])


def test_the_checkpoint_finds_and_reads_digits(logits: NDArray[np.float32], miou: Callable[..., float]) -> None:
    assert logits.shape == (24, 11, 28, 28)
    assert miou(logits) > LEAST_MIOU


def test_other_classes_or_places_are_below_the_bar(logits: NDArray[np.float32], miou: Callable[..., float]) -> None:
    digit_later = np.concatenate([logits[:, :1], np.roll(logits[:, 1:], 1, axis=1)], axis=1)
    for planted in (digit_later, np.roll(logits, 4, axis=3), np.roll(logits, 1, axis=0)):
        assert miou(planted) < LEAST_MIOU - 0.2


def test_the_file_holds_what_inference_needs_in_half_precision() -> None:
    stored = read_state_dict(CHECKPOINT)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert not [key for key in stored if TRAINING_ONLY.fullmatch(key)]
    assert stored["decode_head.conv_seg.weight"].shape == (11, 128, 1, 1)
    assert CHECKPOINT.stat().st_size < 16e6


def test_the_card_tells_the_checkpoint_and_the_last_run(digits: ModuleType) -> None:
    card = CHECKPOINT.with_suffix(".md").read_text(encoding="utf-8")
    trained = json.loads(CHECKPOINT.with_suffix(".training.json").read_text(encoding="utf-8"))
    assert sha256(CHECKPOINT) == trained["sha256"]
    assert trained["sha256"] in card and f"{trained['minutes']} minutes" in card
    assert ModelSpec.from_dict(trained["model"]) == SPEC
    assert trained["classes"] == list(digits.MASK_CLASSES)
    assert trained["source_digits"] == digits.SPLITS
    (found,) = re.findall(r"^- mIoU on (\d+) test pictures, at their full size: ([\d.]+) %", card, re.MULTILINE)
    assert int(found[0]) == digits.MASKED_COUNTS["test"] and 100 * LEAST_MIOU < float(found[1]) < 99
    results = [json.loads(path.read_text("utf-8")) for path in (ROOT / "benchmarks" / "results").glob(RESULTS)]
    measured = {f"{100 * document['accuracy'][0]['miou']['value']:.2f}" for document in results}
    assert found[1] in measured
