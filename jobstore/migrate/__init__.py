"""Brings a database's schema up to date, by hand: `python -m jobstore.migrate`."""

from __future__ import annotations

from jobstore.migrate.adoption import Adoption, recognise
from jobstore.migrate.sqlite import Migrator
from jobstore.migrate.steps import (
    POSTGRES_STEPS,
    SQLITE_STEPS,
    Result,
    Status,
    Step,
    check_applied,
    load_steps,
    pending_steps,
)

__all__ = [
    "POSTGRES_STEPS",
    "SQLITE_STEPS",
    "Adoption",
    "Migrator",
    "Result",
    "Status",
    "Step",
    "check_applied",
    "load_steps",
    "pending_steps",
    "recognise",
]
