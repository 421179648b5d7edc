"""Parquet, for programs that analyse. It needs an extra, `jobstore[parquet]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from jobstore.errors import LoadError
from jobstore.formats.base import Columns, Numbered, check_columns, checked
from jobstore.sql import Row

READ_ROWS = 100
"""Rows that are in memory at a time."""
# A column of large strings may hold more than 2 GiB in a group of rows.
_TYPES = {"integer": pa.int64(), "number": pa.float64(), "text": pa.large_string()}


class ParquetRowWriter:
    """Writes a group of rows at a time."""

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        self._writer.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=self._schema))

    def finish(self) -> None:
        """Write where the groups are."""
        self._writer.close()


def read_parquet(file: BinaryIO, columns: Columns) -> Iterator[Numbered]:
    """Yield the rows of a file.

    Raises:
        LoadError: It is no Parquet file of such rows.
    """
    number = 0
    try:
        source = pq.ParquetFile(file)
        check_columns(0, source.schema_arrow.names, columns)
        for batch in source.iter_batches(batch_size=READ_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield checked(number, row, columns)
    except pa.ArrowException as error:
        raise LoadError(f"it is no whole Parquet file ({type(error).__name__})", number + 1) from error
