"""The formats that tables are dumped in: how rows become bytes, and bytes rows again, exactly."""

from jobstore.formats.base import Columns, Format, Kind, Numbered, RowReader, RowWriter
from jobstore.formats.choosing import FORMATS, codec_of

__all__ = ["FORMATS", "Columns", "Format", "Kind", "Numbered", "RowReader", "RowWriter", "codec_of"]
