"""`jobstore check`: looks a database over, and repairs it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from jobstore.cli.options import AsJson, Db, Outputs
from jobstore.cli.progress import ProgressScreen
from jobstore.cli.screen import note, say, write_json, write_styled, write_table
from jobstore.health import Finding, Repair, Report
from jobstore.health import check as check_database
from jobstore.health import repair as repair_database


def check(
    *,
    db: Db = "",
    outputs: Outputs = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what takes no longer for a large database: less than a second.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Make a backup, then mend what can be mended. No other program may use the store."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a database and its large texts, or repair them.

    It changes nothing, and programs that use the store may go on meanwhile. With --repair it mends what it can; of a
    damaged file it saves every row that can be read into a new one, and keeps the damaged one. The exit code is 1 if
    anything is wrong, or still is after the repair.
    """
    if quick and repair:
        raise typer.BadParameter("give one of them", param_hint="'--quick' / '--repair'")
    with ProgressScreen(quiet=True) as screen:
        if repair:
            done = repair_database(db, outputs=outputs, tell=screen.show)
            report = done.report
        else:
            done, report = None, check_database(db, outputs=outputs, quick=quick, tell=screen.show)
    if as_json:
        write_json(_document(report) if done is None else done.model_dump(mode="json") | {"report": _document(report)})
    else:
        _show(report, done)
    if not report.ok:
        raise typer.Exit(1)


def _document(report: Report) -> dict[str, object]:
    return {"ok": report.ok, **report.model_dump(mode="json")}


def _show(report: Report, done: Repair | None) -> None:
    if done is not None:
        _show_repair(done)
    for finding in report.findings:
        _show_finding(finding)
    wrong = len(report.failed)
    say(f"{report.database}: {f'{wrong} of {len(report.findings)} checks failed' if wrong else 'all is well'}")


def _show_repair(done: Repair) -> None:
    if done.backup is not None:
        say(f"backup: {done.backup}")
    for line in done.done:
        say(f"mended: {line}")
    if done.tables:
        rows = [[found.table, f"{found.saved:,}", f"{found.lost:,}"] for found in done.tables]
        write_table(["table", "rows saved", "known to be lost"], rows)
    for line in done.not_mended:
        note(f"not mended: {line}")


def _show_finding(finding: Finding) -> None:
    mark = Text("✓", "green") if finding.ok else Text("✗", "bold red")
    write_styled(mark, f" {finding.name}: {finding.summary}")
    for detail in finding.details:
        say(f"    {detail}")
    if finding.remedy is not None and not finding.ok:
        say(f"  → {finding.remedy}")
