"""Brings a database's schema up to date, by hand: `python -m jobstore.migrate`."""

from __future__ import annotations

from jobstore.migrate.runner import Migrator, Result, Status
from jobstore.migrate.steps import Step, check_applied, load_steps, pending_steps

__all__ = ["Migrator", "Result", "Status", "Step", "check_applied", "load_steps", "pending_steps"]
