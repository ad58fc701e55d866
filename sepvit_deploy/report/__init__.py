"""The report page: latencies, ratios, limits, accuracy, parity and ranges in one HTML file without a network.

`collect` finds the files, `html` makes the page of a `Material`, `write` puts it in a file.
"""

from sepvit_deploy.report.collect import Found, collect
from sepvit_deploy.report.material import Material, Part
from sepvit_deploy.report.page import html, write
from sepvit_deploy.report.rungs import Ladder, is_ladder, ladder

__all__ = [
    "Found",
    "Ladder",
    "Material",
    "Part",
    "collect",
    "html",
    "is_ladder",
    "ladder",
    "write",
]
