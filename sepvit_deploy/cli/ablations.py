"""What is printed of the paper's ablations: as variants, counted and published, and as engines, timed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from sepvit_deploy.cli.show import as_text, console, new_table, say
from sepvit_deploy.comparison import beside_paper
from sepvit_deploy.variants import (
    ABLATION_PAPER,
    ABLATION_ROWS,
    THROUGHPUT_ON,
    AblationRow,
    count_macs,
    count_parameters,
    variant_named,
)

if TYPE_CHECKING:
    from sepvit_deploy.latency import Results


def reproduced(row: AblationRow) -> bool:
    """Whether what we count is what the table prints, to its last digit."""
    variant = variant_named(row.variant)
    counted = round(count_parameters(variant) / 1e6, 1), round(count_macs(variant) / 1e9, 1)
    return counted == (row.millions, row.giga_macs)


def ablations() -> None:
    """Each row: its choices, counted figures, and the table's beside them."""
    numbers = ("M params (paper)", "G MACs (paper)", "img/s", "top-1 %")
    table = new_table(
        "SepViT-T in the paper's ablations", "variant", "table", "token", "patches", "GSA", *numbers, right=numbers
    )
    for row in ABLATION_ROWS:
        variant = variant_named(row.variant)
        table.add_row(
            row.variant,
            ", ".join(map(str, row.tables)),
            variant.representation,
            variant.embedding,
            "yes" if variant.grouped else "no",
            f"{count_parameters(variant) / 1e6:.3f} ({row.millions:.1f})",
            f"{count_macs(variant) / 1e9:.3f} ({row.giga_macs:.1f})",
            str(row.images_per_s),
            f"{row.top1:.1f}",
        )
    console().print(table)
    say(
        "token: what stands for a window in PWA; GSA: grouped windows. Parameters and MACs (224) are counted; the\n"
        f"rest is the paper's ({ABLATION_PAPER}): the figures in brackets, throughput ({THROUGHPUT_ON}) and\n"
        "ImageNet-1K top-1. No trained weights are public."
    )
    for row in ABLATION_ROWS:
        if not reproduced(row):
            say(f"{row.variant} does not count what is printed: {row.note}.")


def ablation_rows() -> list[dict[str, object]]:
    """The same as plain JSON."""
    rows: list[dict[str, object]] = []
    for row in ABLATION_ROWS:
        variant = variant_named(row.variant)
        published = asdict(row)
        rows.append(
            {
                "name": published.pop("variant"),
                "tables": published.pop("tables"),
                "label": published.pop("label"),
                "note": published.pop("note"),
                "representation": variant.representation,
                "embedding": variant.embedding,
                "grouped_windows": variant.grouped,
                "window_sides": variant.sides,
                "parameters": count_parameters(variant),
                "macs_224": count_macs(variant),
                "reproduced": reproduced(row),
                "published": {"source": ABLATION_PAPER, "throughput_on": THROUGHPUT_ON, **published},
            }
        )
    return rows


def measured(results: Results) -> None:
    """Engines of ablations beside the paper's throughput, where a run has any."""
    found = beside_paper(results)
    if not found:
        return
    numbers = ("batch", "images/s", "time over t", "interval", "paper's images/s", "its time over t")
    table = new_table("ablations", "engine", *numbers, right=numbers)
    for row in found:
        ours = row.over_t
        table.add_row(
            as_text(row.engine),
            str(row.batch),
            f"{row.images_per_s:.4g}",
            f"{ours.ratio:.3f}" if ours else "",
            f"{ours.low:.3f} to {ours.high:.3f}" if ours else "",
            str(row.paper_images_per_s),
            f"{row.paper_over_t:.3f}",
        )
    console().print(table)
    say(f"time over t: of SepViT-T in the same form; paper's: {ABLATION_PAPER}, {THROUGHPUT_ON}, not measured here")
