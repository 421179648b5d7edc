"""Whatever a row holds, each format gives it back."""

from __future__ import annotations

import io
import tracemalloc
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobstore.formats import Columns, Format, codec_of
from jobstore.sql import Row

COLUMNS: Columns = {"id": "text", "count": "integer", "cost": "number", "text": "text"}

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["", "\0", "a\0b", "\\N", "\\", "\\\\N", '"', '""', "\r", "\n", "\r\n", "\u2028", ",", " ", "'", "\ufeff", "NULL"]
)
integers = st.integers(-(2**63), 2**63 - 1)
rows = st.fixed_dictionaries(
    {
        "id": texts,
        "count": st.none() | integers,
        "cost": st.none() | st.floats(allow_nan=False),
        "text": st.none() | texts,
    }
)
every_format = pytest.mark.parametrize("name", get_args(Format))


def written(name: Format, parts: list[list[Row]]) -> io.BytesIO:
    file = io.BytesIO()
    writer = codec_of(name).writer(file, COLUMNS)
    for part in parts:
        writer.write(part)
    writer.finish()
    file.seek(0)
    return file


@every_format
@settings(deadline=None)
@given(parts=st.lists(st.lists(rows, min_size=1, max_size=5), max_size=3))
def test_rows_come_back_the_same_in_their_order(name: Format, parts: list[list[Row]]) -> None:
    found = [numbered.row for numbered in codec_of(name).reader(written(name, parts), COLUMNS)]
    assert found == [row for part in parts for row in part]


@every_format
def test_memory_does_not_grow_with_the_rows(name: Format) -> None:
    """Reading and writing take as much for ten times as many rows."""

    def peak(parts: int) -> int:
        row = {"id": "x", "count": 1, "cost": 0.5, "text": "y" * 1000}
        tracemalloc.start()
        try:
            sink = _Sink()
            writer = codec_of(name).writer(sink, COLUMNS)  # type: ignore[arg-type]
            for _ in range(parts):
                writer.write([row] * 500)
            writer.finish()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)
    assert peak(20) < 2 * peak(4) + 500_000


class _Sink(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def __init__(self) -> None:
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: object) -> int:
        size = len(memoryview(data))  # type: ignore[arg-type]
        self._position += size
        return size
