"""Comparing all that two stores hold: every row by checksums of tables, every large text by its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from jobstore.aio import in_thread
from jobstore.engines.base import Snapshot
from jobstore.operations import jobs, promotion
from jobstore.operations.promotion import TABLES, Key, Table, TextFile, key_of
from jobstore.promotion.pair import Pair, is_whole, measured
from jobstore.sql import Row


class TableSum(BaseModel):
    """What a table holds, the same in both stores."""

    model_config = ConfigDict(frozen=True)

    rows: int
    sha256: str
    """Of all rows in the order of their key."""


class Comparison:
    """What a comparison of two stores has found.

    Args:
        pair: The two, checked.
        source: What is expected.
        target: What is there.
    """

    def __init__(self, pair: Pair, source: Snapshot, target: Snapshot) -> None:
        self.tables: dict[str, TableSum] = {}
        """Those that are the same."""
        self.files = self.bytes = 0
        """Large texts that are the same."""
        self.differences: list[str] = []
        """Names of tables and paths of texts."""
        self.damaged: list[str] = []
        """Paths of texts that are missing or damaged in the source."""
        self._pair = pair
        self._source = source
        self._target = target

    async def compare(self) -> None:
        """Read everything on both sides."""
        for table in TABLES:
            await self._compare_table(table)
        await self._pair.each_file(self._target, "comparing large texts", self._compare_file)

    async def remove_what_differs(self) -> None:
        """Remove the large texts of the target that are not what they should be."""
        if paths := [found for found in self.differences if found not in self._pair.columns]:
            await in_thread(self._pair.target_outputs.remove, paths)

    async def _compare_table(self, table: Table) -> None:
        rows = await self._source.read(promotion.count, table) + await self._target.read(promotion.count, table)
        tell = self._pair.progress(f"comparing {table.name}", rows)
        expected = await self._sum(self._source, table, tell, lambda row: self._pair.fitted(row)[0])
        found = await self._sum(self._target, table, tell, lambda row: row)
        if found == expected:
            self.tables[table.name] = found
        else:
            self.differences.append(table.name)

    async def _sum(
        self, snapshot: Snapshot, table: Table, tell: Callable[[int], None], fit: Callable[[Row], Row]
    ) -> TableSum:
        names, count, digest = self._pair.columns[table.name], 0, hashlib.sha256()
        after: Key | None = None
        while rows := await snapshot.read(promotion.page, table, names, after):
            await in_thread(_add, digest, names, map(fit, rows))
            after = key_of(table, rows[-1])
            count += len(rows)
            tell(len(rows))
        return TableSum(rows=count, sha256=digest.hexdigest())

    async def _compare_file(self, file: TextFile) -> None:
        """Compare a large text with what its row says, or else with the source's."""
        text = await in_thread(measured, self._pair.target_outputs, file.path)
        if file.sha256 is None:
            other = await in_thread(measured, self._pair.source.backend.outputs, file.path)
            same = other is not None and text is not None and (text.size, text.sha256) == (other.size, other.sha256)
        else:
            same = is_whole(text, file)
        if text is not None and same:
            self.files += 1
            self.bytes += text.size or 0
        elif await self._is_damaged(file):
            self.damaged.append(file.path)
        else:
            self.differences.append(file.path)

    async def _is_damaged(self, file: TextFile) -> bool:
        """Whether a text that is not what it should be in the target is no better in the source."""
        if not await self._source.read(jobs.file_paths_named, [file.path]):
            return False  # it lies in its row there
        return not is_whole(await in_thread(measured, self._pair.source.backend.outputs, file.path), file)


def _add(digest: Any, names: Sequence[str], rows: Iterable[Row]) -> None:  # noqa: ANN401 - hashlib's type has no name
    """Add rows to a checksum. It takes a while: call it in a thread."""
    for row in rows:
        digest.update(json.dumps([row[name] for name in names], default=bytes.hex).encode() + b"\n")
