"""What checks find and what a repair did, as frozen models that print as JSON."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from jobstore.models import Model


class Finding(Model):
    """What one check found."""

    name: str
    ok: bool
    summary: str
    """What was found, in a sentence."""
    remedy: str | None = None
    """What to do about it; None if all is well."""
    details: tuple[str, ...] = ()
    """One by one: the tables, rows or files that it is about. Never a text of a user."""


class Report(Model):
    """What all checks of a database found."""

    database: str
    """Without a password."""
    checked_at: datetime
    quick: bool
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every check found all well."""
        return all(finding.ok for finding in self.findings)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """What is wrong."""
        return tuple(finding for finding in self.findings if not finding.ok)


class Salvaged(Model):
    """How many rows of a damaged table were saved."""

    table: str
    saved: int
    lost: int
    """Rows that are known to have been there: an index, or a page that could not be read whole, still tells of them."""
    lost_keys: tuple[str, ...] = ()
    """Ids of some of them, where an index still knows them."""


class Repair(Model):
    """What a repair did."""

    database: str
    backup: Path | None
    """The copy that was made before; of a damaged file it is the file itself, with its log."""
    done: tuple[str, ...]
    """What was mended, one by one."""
    not_mended: tuple[str, ...]
    """What could not be."""
    tables: tuple[Salvaged, ...]
    """Of a damaged file: what was saved from it. Else empty."""
    report: Report
    """What a check found afterwards."""


def good(name: str, summary: str, *details: str) -> Finding:
    """Return that all is well."""
    return Finding(name=name, ok=True, summary=summary, details=details)


def bad(name: str, summary: str, remedy: str, *details: str) -> Finding:
    """Return that something is wrong."""
    return Finding(name=name, ok=False, summary=summary, remedy=remedy, details=details)


def some(names: list[str], shown: int = 5) -> list[str]:
    """Return the first of some names, and how many there are more."""
    return names if len(names) <= shown else [*names[:shown], f"… and {len(names) - shown:,} more"]
