"""Every reference model by its variant, task and head, and random weights that leave no part of it invisible."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from sepvit_deploy.errors import OptionError
from sepvit_deploy.heads import Head, OutputKind, require_head
from sepvit_deploy.model.segmentation import SepViTSegmenter
from sepvit_deploy.model.sepvit import SepViT, SepViTBackbone
from sepvit_deploy.variants import Task, Variant, variant_named

Reference = SepViT | SepViTBackbone | SepViTSegmenter


def reference(
    variant: Variant, task: Task, num_classes: int, *, head: Head | None = None, output: OutputKind = "logits"
) -> Reference:
    """The model as the paper writes it, with torch's own initial weights.

    Raises:
        OptionError: no such task or head, or a number of classes below 1.
    """
    if task not in get_args(Task):
        raise OptionError(f"there is no task {task!r}", expected=", ".join(get_args(Task)))
    if num_classes < 1:
        raise OptionError(f"--num-classes {num_classes}", expected="1 or more")
    if task == "segment":
        return SepViTSegmenter(variant, require_head(head), num_classes, output)
    return SepViT(variant, num_classes) if task == "classify" else SepViTBackbone(variant, num_classes)


def build_model(
    variant: str,
    task: Task = "classify",
    *,
    num_classes: int = 1000,
    head: Head | None = None,
    output: OutputKind = "logits",
    seed: int = 0,
) -> Reference:
    """Build the reference model with random weights, in evaluation mode, float32, on the CPU.

    Random weights are drawn so that no part of the model is invisible in its outputs: linear layers and convolutions
    keep the variance of what they take, window tokens, biases and running means are not zero. They are the same for
    the same seed.

    Args:
        variant: its name, see `variants`.
        num_classes: width of the head.
        head: of segmentation.
        seed: of the random weights; the global random state is left alone.

    Raises:
        OptionError: no such variant, task or head, or a number of classes below 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = reference(variant_named(variant), task, num_classes, head=head, output=output)
        draw_weights(model)
    return model.eval()


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Replace every weight and running statistic of ``model`` by a random one."""
    for name, parameter in model.named_parameters():
        if name.endswith("window_tokens"):
            parameter.normal_(std=0.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.05)
        elif parameter.dim() == 1:
            parameter.normal_(mean=1.0, std=0.1)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.normal_(std=0.2).abs_().add_(1)
