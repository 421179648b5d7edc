"""Makes checks one after the other, whatever happens to one of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from jobstore.clock import Clock
from jobstore.errors import JobStoreError
from jobstore.health.checks import Check
from jobstore.health.report import Finding, bad
from jobstore.outputs import Outputs, Place, unchecked_outputs
from jobstore.progress import Progress, Tell


def run_checks(subject: Any, checks: Sequence[Check], tell: Tell) -> list[Finding]:  # noqa: ANN401 - of its engine
    """Make checks one after the other; one that fails is a finding like any other."""
    findings = []
    for done, entry in enumerate(checks):
        tell(Progress("checks", done, len(checks)))
        findings.append(_looked(entry, subject))
    tell(Progress("checks", len(checks), len(checks)))
    return findings


def open_texts(place: Place | None, name: str, clock: Clock) -> Outputs | None:
    """Return where large texts lie, whosoever they are; None if nobody has said.

    Raises:
        OutputError: The library for it is missing.
    """
    return None if place is None else unchecked_outputs(place, name, clock)


def _looked(entry: Check, subject: Any) -> Finding:  # noqa: ANN401
    try:
        return entry.look(subject)
    except Exception as error:  # noqa: BLE001 - whatever damage does to a check, it is told, and the others are made
        reason = str(error) if isinstance(error, sqlite3.Error | OSError | JobStoreError) else type(error).__name__
        return bad(entry.name, f"it could not be looked at: {reason}", subject.unreadable)
