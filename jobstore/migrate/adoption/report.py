"""What was found and done when a database of the old system was adopted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from jobstore.errors import SchemaMismatch

MAX_NOTES = 1000
"""How many rows are named. All are counted, and what is kept of each stands with it."""
MAX_KEY = 200
"""Characters of a row's key that are shown."""
REPORT_KEY = "jobstore.adoption"
"""Where the report is kept, in `key_value_store`."""


class Note(BaseModel):
    """Something of one row that could not come over as it was."""

    model_config = ConfigDict(frozen=True)

    table: str
    key: str
    """The row's id or key; of a file, its path."""
    what: str


class AdoptedTable(BaseModel):
    """What became of a table of the old system."""

    model_config = ConfigDict(frozen=True)

    rows: int
    adopted: int
    """Rows that are rows of the store now; the others are kept whole, in `adopted_leftovers`."""
    left_over: int
    """Rows of which something is kept beside: in the metadata of a job, the model settings of a session, or there."""


class Adoption(BaseModel):
    """The report of an adoption."""

    model_config = ConfigDict(frozen=True)

    adopted_at: datetime
    tables: dict[str, AdoptedTable]
    """By the name of the old table."""
    kept_tables: dict[str, str]
    """Tables that were left as they were, by their old names: what they are called now."""
    files: int
    """Output files that were copied."""
    bytes: int
    """Of those."""
    moved_texts: int
    """Prompts and responses that are too large for their rows, and are files now."""
    changed: dict[str, int]
    """What came over as something else: how many times."""
    noted: dict[str, int]
    """What could not come over, and is kept as it was: how many times."""
    notes: list[Note]
    """The first thousand of those."""
    let_go: list[str]
    """Indexes, triggers and views that went with the old tables, as SQL."""


def read_report(text: str) -> Adoption:
    """Return a report that was kept.

    Raises:
        SchemaMismatch: It is none.
    """
    with contextlib.suppress(ValidationError):  # it quotes its input
        return Adoption.model_validate_json(text)
    raise SchemaMismatch(f"what the store keeps as {REPORT_KEY} is no report any more: someone has changed it")


class Findings:
    """Collects what a report tells."""

    def __init__(self) -> None:
        self.kept_tables: dict[str, str] = {}
        self.let_go: list[str] = []
        self.files = self.bytes = self.moved_texts = 0
        self._rows: Counter[str] = Counter()
        self._adopted: Counter[str] = Counter()
        self._left_over: Counter[str] = Counter()
        self._changed: Counter[str] = Counter()
        self._noted: Counter[str] = Counter()
        self._notes: list[Note] = []

    def begin(self, table: str) -> None:
        """Tell of a table, which may be empty."""
        self._rows[table] += 0

    def row(
        self, table: str, key: str, changes: Iterable[str], problems: Iterable[str], leftovers: Mapping[str, object]
    ) -> None:
        """Tell what became of a row."""
        self._rows[table] += 1
        self._adopted[table] += 1
        self._left_over[table] += bool(leftovers)
        self._changed.update(f"{table}: {what}" for what in changes)
        for what in problems:
            self.note(table, key, what)

    def kept_whole(self, table: str, key: str, why: str) -> None:
        """Tell of a row that is no row of the store, and is kept aside."""
        self._rows[table] += 1
        self._left_over[table] += 1
        self.note(table, key, why)

    def changed(self, what: str) -> None:
        """Tell of a change that is no single row's."""
        self._changed[what] += 1

    def note(self, table: str, key: str, what: str) -> None:
        """Tell of something that could not come over."""
        self._noted[f"{table}: {what}"] += 1
        if len(self._notes) < MAX_NOTES:
            self._notes.append(Note(table=table, key=key[:MAX_KEY], what=what))

    def report(self, adopted_at: datetime) -> Adoption:
        """Return the report."""
        return Adoption(
            adopted_at=adopted_at,
            tables={
                table: AdoptedTable(rows=rows, adopted=self._adopted[table], left_over=self._left_over[table])
                for table, rows in self._rows.items()
            },
            kept_tables=self.kept_tables,
            files=self.files,
            bytes=self.bytes,
            moved_texts=self.moved_texts,
            changed=dict(sorted(self._changed.items())),
            noted=dict(sorted(self._noted.items())),
            notes=self._notes,
            let_go=self.let_go,
        )
