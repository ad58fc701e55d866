"""What the paper reports of other models beside SepViT, as numbers: each model's latency and ImageNet-1K top-1.

All of it is the authors' (arXiv 2203.15380v4): on a T4 with TensorRT at batch 8, read off a plot, so the milliseconds
are exact to about 0.2. None of it was measured by this package. SepViT's own figures are in `variants`.
"""

from __future__ import annotations

from dataclasses import dataclass

BATCH = 8
WHERE = f"T4, TensorRT, batch {BATCH}"


@dataclass(frozen=True)
class Family:
    """Models of one name, the smallest first.

    Attributes:
        points: of each, milliseconds of a batch and top-1 in percent.
    """

    name: str
    points: tuple[tuple[float, float], ...]


PEERS: tuple[Family, ...] = (
    Family("DeiT", ((11.4, 79.8), (31.0, 81.8))),
    Family("PVT", ((20.7, 79.8), (30.0, 81.2), (43.2, 81.7))),
    Family("Twins-SVT", ((18.8, 81.7), (38.9, 83.2), (48.3, 83.7))),
    Family("CSWin", ((30.3, 82.7), (52.0, 83.6), (76.1, 84.2))),
    Family("PVT-v2", ((37.9, 82.0), (54.1, 83.2), (75.5, 83.6))),
    Family("Shuffle", ((29.4, 82.5), (43.8, 83.5), (63.2, 84.0))),
    Family("RegionViT", ((29.6, 82.6), (36.5, 83.1), (47.6, 83.2))),
    Family("PoolFormer", ((14.9, 80.3), (21.8, 81.4), (28.2, 82.1), (38.2, 82.5))),
)
