"""What is printed of the decode heads: parameters and MACs, counted and published."""

from __future__ import annotations

from dataclasses import asdict

from sepvit_deploy.cli.show import console, new_table, say
from sepvit_deploy.heads import PUBLISHED, count_segmentation_macs, count_segmentation_parameters
from sepvit_deploy.variants import PAPER, VARIANTS


def heads() -> None:
    """Each published model on ADE20K."""
    numbers = ("M params (paper)", "M to infer", "G MACs (paper)", "with attention", "mIoU %")
    table = new_table("segmentation: 150 classes, MACs at 2048x512", "variant", "head", *numbers, right=numbers)
    for (name, head), published in PUBLISHED.items():
        variant = VARIANTS[name]
        table.add_row(
            name,
            head,
            f"{count_segmentation_parameters(variant, head) / 1e6:.3f} ({published.parameters_m:.1f})",
            f"{count_segmentation_parameters(variant, head, published=False) / 1e6:.3f}",
            f"{count_segmentation_macs(variant, head, attention=False) / 1e9:.2f} ({published.macs_g})",
            f"{count_segmentation_macs(variant, head) / 1e9:.2f}",
            f"{published.miou:.1f}",
        )
    console().print(table)
    say(
        f"In brackets and mIoU: the paper's ({PAPER}); no trained weights are public. It counts the backbone's unused\n"
        "classifier and, of UperNet, the auxiliary head, which inference does not need; of MACs, convolutions and\n"
        "linear layers alone, not the two products of each attention."
    )


def head_rows() -> list[dict[str, object]]:
    """The same as plain JSON."""
    return [
        {
            "name": name,
            "head": head,
            "parameters": count_segmentation_parameters(VARIANTS[name], head),
            "parameters_to_infer": count_segmentation_parameters(VARIANTS[name], head, published=False),
            "macs_2048x512": count_segmentation_macs(VARIANTS[name], head, attention=False),
            "macs_2048x512_with_attention": count_segmentation_macs(VARIANTS[name], head),
            "published": {"source": PAPER, **asdict(published)},
        }
        for (name, head), published in PUBLISHED.items()
    ]
