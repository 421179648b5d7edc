"""Caring for a database: copies of it, putting one back, and starting afresh.

All of it blocks: call it in a thread where an event loop runs.
"""

from jobstore.health.backups import Backup, backup
from jobstore.health.resetting import Reset, reset
from jobstore.health.restoring import Restored, restore

__all__ = ["Backup", "Reset", "Restored", "backup", "reset", "restore"]
