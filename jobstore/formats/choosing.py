"""Which format reads and writes how; what needs an extra is imported when it is used."""

from __future__ import annotations

from importlib.util import find_spec
from typing import BinaryIO, get_args

from jobstore.errors import InvalidArgument
from jobstore.formats.base import Columns, Format, RowReader, RowWriter
from jobstore.formats.csv import CsvWriter, read_csv
from jobstore.formats.jsonl import JsonLinesWriter, read_json_lines

FORMATS: tuple[Format, ...] = get_args(Format)


def writer_of(name: Format, file: BinaryIO, columns: Columns) -> RowWriter:
    """Return what writes rows to a file. It blocks.

    Raises:
        InvalidArgument: There is no such format, or an extra is not installed.
    """
    if name == "jsonl":
        return JsonLinesWriter(file, columns)
    if name == "csv":
        return CsvWriter(file, columns)
    _require_parquet(name)
    from jobstore.formats.parquet import ParquetRowWriter  # noqa: PLC0415 - needs the extra

    return ParquetRowWriter(file, columns)


def reader_of(name: Format, file: BinaryIO, columns: Columns) -> RowReader:
    """Return what reads the rows of a file.

    Raises:
        InvalidArgument: There is no such format, or an extra is not installed.
    """
    if name == "jsonl":
        return read_json_lines(file, columns)
    if name == "csv":
        return read_csv(file, columns)
    _require_parquet(name)
    from jobstore.formats.parquet import read_parquet  # noqa: PLC0415 - needs the extra

    return read_parquet(file, columns)


def _require_parquet(name: str) -> None:
    if name != "parquet":
        raise InvalidArgument("format", f"must be one of {', '.join(FORMATS)}")
    if find_spec("pyarrow") is None:
        raise InvalidArgument("format", 'Parquet needs an extra: pip install "jobstore[parquet]"')
