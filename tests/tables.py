"""Columns as the bytes of a Parquet file or of an Arrow stream."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def arrow(opened: Callable[..., Any] = pyarrow.ipc.new_stream, **columns: Any) -> bytes:
    """Two rows at a time; ``opened``: pyarrow.ipc.new_file for a file."""
    table, sink = pyarrow.table(columns), io.BytesIO()
    with opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()
