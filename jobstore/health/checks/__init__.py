"""The checks, each a function that looks at one thing and says what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jobstore.health.checks import files, pages, rows, schema, texts
from jobstore.health.report import Finding


class Check(NamedTuple):
    """A check and its name."""

    name: str
    look: Callable[[Any], Finding]
    quick: bool = False
    """Whether it takes no longer for a large database."""


SHARED_CHECKS: Sequence[Check] = (
    Check("identity", rows.identity, quick=True),
    Check("promotion", rows.promotion, quick=True),
    Check("leases", rows.leases, quick=True),
    Check("workers", rows.workers, quick=True),
    Check("sessions", rows.sessions),
    Check("jobs", rows.jobs),
    Check("attempts", rows.attempts),
    Check("outputs", texts.folder, quick=True),
    Check("texts", texts.whole),
    Check("orphans", texts.orphans),
)
"""Of any database."""

FILE_CHECKS: Sequence[Check] = (
    Check("library", files.library, quick=True),
    Check("permissions", files.permissions, quick=True),
    Check("filesystem", files.filesystem, quick=True),
    Check("disk", files.disk, quick=True),
    Check("log", pages.log),
    Check("integrity", pages.integrity),
)
"""Of an SQLite file whose rows cannot be read, too."""

SQLITE_CHECKS: Sequence[Check] = (
    *FILE_CHECKS,
    Check("storage", pages.storage, quick=True),
    Check("foreign-keys", pages.foreign_keys),
    Check("migrations", schema.migrations, quick=True),
    Check("schema", schema.schema, quick=True),
    Check("encoding", rows.encoding),
    Check("json", rows.json),
    *SHARED_CHECKS,
)
"""Of an SQLite file, in the order in which they are made: what lies deeper first."""
