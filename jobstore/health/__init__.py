"""Caring for a database: copies of it, putting one back, starting afresh, and writing its file anew.

All of it blocks: call it in a thread where an event loop runs.
"""

from jobstore.health.backups import Backup, backup
from jobstore.health.resetting import Reset, reset
from jobstore.health.restoring import Restored, restore
from jobstore.health.rewriting import write_anew

__all__ = ["Backup", "Reset", "Restored", "backup", "reset", "restore", "write_anew"]
