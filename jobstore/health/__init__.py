"""Caring for a database: checking and repairing it, copies of it, putting one back, starting afresh, writing it anew.

All of it blocks: call it in a thread where an event loop runs.
"""

from jobstore.health.backups import Backup, backup
from jobstore.health.checking import check
from jobstore.health.repairing import repair
from jobstore.health.report import Finding, Repair, Report, Salvaged
from jobstore.health.resetting import Reset, reset
from jobstore.health.restoring import Restored, restore
from jobstore.health.rewriting import write_anew
from jobstore.progress import Progress

__all__ = [
    "Backup",
    "Finding",
    "Progress",
    "Repair",
    "Report",
    "Reset",
    "Restored",
    "Salvaged",
    "backup",
    "check",
    "repair",
    "reset",
    "restore",
    "write_anew",
]
