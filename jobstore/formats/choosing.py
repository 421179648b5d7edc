"""Which format reads and writes how; what needs an extra is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import BinaryIO, NamedTuple, get_args

from jobstore.errors import InvalidArgument
from jobstore.formats.base import Columns, Format, RowReader, RowWriter
from jobstore.formats.csv import CsvWriter, read_csv
from jobstore.formats.jsonl import JsonLinesWriter, read_json_lines

FORMATS: tuple[Format, ...] = get_args(Format)


class Codec(NamedTuple):
    """How a format writes and reads rows of an open file. Both block."""

    writer: Callable[[BinaryIO, Columns], RowWriter]
    reader: Callable[[BinaryIO, Columns], RowReader]


def codec_of(name: Format) -> Codec:
    """Return how a format writes and reads.

    Raises:
        InvalidArgument: There is no such format, or an extra is not installed.
    """
    if name == "jsonl":
        return Codec(JsonLinesWriter, read_json_lines)
    if name == "csv":
        return Codec(CsvWriter, read_csv)
    if name != "parquet":
        raise InvalidArgument("format", f"must be one of {', '.join(FORMATS)}")
    if find_spec("pyarrow") is None:
        raise InvalidArgument("format", 'Parquet needs an extra: pip install "jobstore[parquet]"')
    from jobstore.formats.parquet import ParquetRowWriter, read_parquet  # noqa: PLC0415 - needs the extra

    return Codec(ParquetRowWriter, read_parquet)
