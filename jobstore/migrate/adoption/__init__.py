"""Adopts a database of the old system: turns it into a store, and loses nothing of it."""

from jobstore.migrate.adoption.converting import Conversion
from jobstore.migrate.adoption.intent import Intent
from jobstore.migrate.adoption.recognising import OldDatabase, recognise
from jobstore.migrate.adoption.report import REPORT_KEY, AdoptedTable, Adoption, Note, read_report
from jobstore.migrate.adoption.texts import Nowhere, OutputsOnDemand, Texts

__all__ = [
    "REPORT_KEY",
    "AdoptedTable",
    "Adoption",
    "Conversion",
    "Intent",
    "Note",
    "Nowhere",
    "OldDatabase",
    "OutputsOnDemand",
    "Texts",
    "read_report",
    "recognise",
]
