"""The formats that tables are dumped in: how rows become bytes, and bytes rows again, exactly."""

from jobstore.formats.base import Columns, Format, Kind, Numbered, RowReader, RowWriter
from jobstore.formats.choosing import FORMATS, reader_of, writer_of

__all__ = ["FORMATS", "Columns", "Format", "Kind", "Numbered", "RowReader", "RowWriter", "reader_of", "writer_of"]
