"""Caring for a database: checking it, and repairing it."""

from jobstore.health.checking import check
from jobstore.health.repairing import repair
from jobstore.health.report import Finding, Repair, Report, Salvaged
from jobstore.progress import Progress

__all__ = ["Finding", "Progress", "Repair", "Report", "Salvaged", "check", "repair"]
