"""Checks of the schema: which steps were applied, and whether what they made is still there."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence

from jobstore.errors import SchemaMismatch
from jobstore.health.report import Finding, bad, good
from jobstore.health.schema import compare, read_schema, steps_had, wanted_schema
from jobstore.health.subject import SQLiteSubject
from jobstore.migrate import Step, check_applied, pending_steps
from jobstore.models import AppliedMigration
from jobstore.operations.migrations import applied

REPAIR = "run `jobstore check --repair`"


def migrations(subject: SQLiteSubject) -> Finding:
    """Check the steps that were applied against those of this version."""
    records = subject.read(applied)
    names = {record.name for record in records}
    lost = [step.name for step in _had(subject, names) if step.name not in names]
    if lost and names <= {step.name for step in subject.steps}:
        return bad("migrations", f"steps that were applied and are not recorded: {len(lost)}", REPAIR, *lost)
    command = f"python -m jobstore.migrate --db {shlex.quote(str(subject.path))}"
    return compare_steps(subject.steps, records, command)


def compare_steps(steps: list[Step], records: list[AppliedMigration], command: str) -> Finding:
    """Say how the steps that were applied compare with those of this version; `command` applies what is pending."""
    try:
        check_applied(steps, records)
    except SchemaMismatch as error:
        return bad("migrations", str(error), "install the version of jobstore that this database was migrated with")
    pending = [step.name for step in pending_steps(steps, records)]
    if pending:
        return bad("migrations", f"steps that are pending: {len(pending)}", f"run `{command}`", *pending)
    return good("migrations", f"steps that were applied, none of them changed since: {len(records)}")


def schema(subject: SQLiteSubject) -> Finding:
    """Check that all that the applied steps have made is there, as they made it."""
    wanted = wanted_schema(_had(subject, {record.name for record in subject.read(applied)}) or subject.steps)
    found = compare(read_schema(subject.connection), wanted)
    notes = [f"not jobstore's own: {name}" for name in found.extra]
    if found.differences:
        return bad(
            "schema",
            f"missing or changed, of what the migrations made: {len(found.differences)}",
            REPAIR,
            *map(str, found.differences),
            *notes,
        )
    return good("schema", "every table, column, index, trigger and CHECK is there", *notes)


def _had(subject: SQLiteSubject, recorded: Collection[str]) -> Sequence[Step]:
    return steps_had(subject.steps, recorded, read_schema(subject.connection))
