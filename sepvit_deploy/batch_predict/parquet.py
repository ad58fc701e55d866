"""Rows of pictures as a Parquet file, and what its footer tells."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepvit_deploy.artifact import written
from sepvit_deploy.optional import require


@dataclass(frozen=True)
class Row:
    """One picture: its classes, best first, or why it has none.

    Attributes:
        image: name relative to the folder.
        labels: of the classes; None where classes have no names.
    """

    image: str
    classes: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[str, ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Counts:
    """Rows of a part, and how many of them hold an error."""

    images: int
    failed: int


def schema(metadata: Mapping[str, str]) -> Any:
    """The table's columns; ``class``, ``label`` and ``score`` are the first of the lists beside them."""
    pa = require("pyarrow", extra="batch")
    return pa.schema(
        [
            pa.field("image", pa.string(), nullable=False),
            pa.field("class", pa.int64()),
            pa.field("label", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("classes", pa.list_(pa.int64())),
            pa.field("labels", pa.list_(pa.string())),
            pa.field("scores", pa.list_(pa.float32())),
            pa.field("error", pa.string()),
        ],
        metadata=dict(metadata),
    )


def write_part(path: Path, rows: Sequence[Row], metadata: Mapping[str, str]) -> Counts:
    """Write a part, whole or not at all: a hidden file beside it, flushed to the disk, then renamed.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    pa, parquet = require("pyarrow", extra="batch"), require("pyarrow.parquet", extra="batch")
    lists = [None if row.error is not None else row for row in rows]
    columns = {
        "image": [row.image for row in rows],
        "class": [row and row.classes[0] for row in lists],
        "label": [row.labels[0] if row and row.labels else None for row in lists],
        "score": [row and row.scores[0] for row in lists],
        "classes": [row and row.classes for row in lists],
        "labels": [row and row.labels for row in lists],
        "scores": [row and row.scores for row in lists],
        "error": [row.error for row in rows],
    }
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns, schema=schema(metadata)), buffer, compression="zstd")
    with written(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return Counts(len(rows), sum(row is None for row in lists))


def counts_of(path: Path) -> Counts | None:
    """What the footer of a part says; None where it is no whole Parquet file of our columns."""
    pa, parquet = require("pyarrow", extra="batch"), require("pyarrow.parquet", extra="batch")
    try:
        with parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema({})):
                return None
            footer = file.metadata
            groups = [footer.row_group(k).column(footer.num_columns - 1) for k in range(footer.num_row_groups)]
            clean = sum(errors.statistics.null_count for errors in groups)  # the last column is error
            return Counts(footer.num_rows, footer.num_rows - clean)
    except (pa.ArrowException, OSError, AttributeError):  # statistics are None where a writer kept none
        return None
