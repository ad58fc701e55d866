"""The competition that `peers.py` times, in the sizes that the papers publish, checked, with random weights.

Swin (arXiv 2103.14030), PVTv2 (2106.13797), DeiT (2012.12877) and ConvNeXt (2201.03545) of `transformers`; Twins-SVT
(2104.13840) of `timm`, where it loads: it needs a torchvision of this very torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sepvit_deploy.errors import CheckFailed, MissingDependency

SIZE = (224, 224)
CLASSES = 1000


@dataclass(frozen=True)
class Peer:
    """A model as its paper publishes it: millions of parameters, and G multiply-accumulates at 224 pixels."""

    name: str
    parameters_m: float
    giga_macs: float
    build: Callable[[], Any]


class Logits(torch.nn.Module):
    """A classifier, images to logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.model(images)
        return found if isinstance(found, torch.Tensor) else found.logits


def swin(channels: int, depths: tuple[int, ...]) -> Any:
    from transformers import SwinConfig, SwinForImageClassification

    heads = [channels // 32 * 2**stage for stage in range(4)]
    config = SwinConfig(embed_dim=channels, depths=list(depths), num_heads=heads, window_size=7, num_labels=CLASSES)
    return SwinForImageClassification(config)


def pvt_v2_b2() -> Any:
    from transformers import PvtV2Config, PvtV2ForImageClassification

    sizes: dict[str, Any] = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "mlp_ratios": [8, 8, 4, 4]}
    heads = [1, 2, 5, 8]
    return PvtV2ForImageClassification(PvtV2Config(num_attention_heads=heads, num_labels=CLASSES, **sizes))


def deit_s() -> Any:
    """Without distillation it is a ViT."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 12, "intermediate_size": 1536}
    config = ViTConfig(num_attention_heads=6, num_labels=CLASSES, **sizes)
    return ViTForImageClassification(config)


def convnext_t() -> Any:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes: dict[str, Any] = {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}
    return ConvNextForImageClassification(ConvNextConfig(num_labels=CLASSES, **sizes))


def twins_svt(size: str) -> Any:
    """Its attention is written out, as everywhere here.

    Raises:
        MissingDependency: timm is not there, or does not load.
    """
    try:
        import timm
        from timm.layers import set_fused_attn
    except (ImportError, RuntimeError) as error:  # torchvision of another torch: RuntimeError
        raise MissingDependency(
            f"timm does not load ({error})", hint="it needs a torchvision built for this torch"
        ) from error
    set_fused_attn(False)
    return timm.create_model(f"twins_svt_{size}", pretrained=False, num_classes=CLASSES)


SWIN_T = Peer("Swin-T", 28.3, 4.5, lambda: swin(96, (2, 2, 6, 2)))
TWINS_B = Peer("Twins-SVT-B", 56.0, 8.6, lambda: twins_svt("base"))
"""The one with SepViT-T's channels."""
TWINS_L = Peer("Twins-SVT-L", 99.2, 15.1, lambda: twins_svt("large"))
TIERS: dict[str, tuple[str, tuple[Peer, ...]]] = {
    "tiny": (
        "t",
        (
            SWIN_T,
            Peer("Twins-SVT-S", 24.0, 2.9, lambda: twins_svt("small")),
            Peer("PVTv2-B2", 25.4, 4.0, pvt_v2_b2),
            Peer("DeiT-S", 22.1, 4.6, deit_s),
            Peer("ConvNeXt-T", 28.6, 4.5, convnext_t),
        ),
    ),
    "small": ("s", (Peer("Swin-S", 49.6, 8.7, lambda: swin(96, (2, 2, 18, 2))), TWINS_B)),
    "base": (
        "b",
        (
            Peer("Swin-B", 87.8, 15.4, lambda: swin(128, (2, 2, 18, 2))),
            TWINS_L,
        ),
    ),
    "lite": ("lite", ()),
}
"""SepViT's variant of each tier, and its peers."""


def random_model(peer: Peer) -> Logits:
    """The peer with weights drawn as `build_model` draws ours: no part of it is invisible in its outputs."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Logits(peer.build()).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
            elif parameter.dim() == 1:
                parameter.normal_(mean=1.0, std=0.1)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.requires_grad_(False)


def as_exported(model: Logits) -> Logits:
    """Write attention out as products and softmax, as SepViT's is: SDPA exports with a guard against NaN around it.

    Torch counts no product inside SDPA on a CPU, either. In ONNX Runtime there both are equally quick.
    """
    if hasattr(model.model, "set_attn_implementation"):  # of transformers
        model.model.set_attn_implementation("eager")
    return model


def require_as_published(peer: Peer, parameters: int, macs: int) -> None:
    """Refuse a peer that is not what its paper publishes, to the last digit.

    Raises:
        CheckFailed: parameters or multiply-accumulates differ by more than 0.1 M or 0.1 G.
    """
    found = {"M parameters": (parameters / 1e6, peer.parameters_m), "G MACs": (macs / 1e9, peer.giga_macs)}
    for what, (have, want) in found.items():
        if abs(have - want) > 0.1:
            raise CheckFailed(f"{peer.name} has {have:.2f} {what}", expected=f"{want}, as it is published")


def counted_macs(model: torch.nn.Module) -> int:
    """Multiply-accumulates of one image, by torch: products and convolutions as they run."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, *SIZE))
    return counter.get_total_flops() // 2
