"""Shows what was found and done, or would be, in a database of the old system."""

from __future__ import annotations

from jobstore.cli.screen import one_line, say, size_of, write_heading, write_json, write_table
from jobstore.migrate import Adoption

MAX_NOTES = 20
"""How many rows are named on a screen."""


def show_report(name: str, adoption: Adoption | None, *, as_json: bool) -> None:
    """Show a report that was kept."""
    if as_json:
        write_json({"database": name, "adoption": adoption})
    elif adoption is None:
        say(f"{name} was not adopted from the old system")
    else:
        show_adoption(adoption)


def show_adoption(adoption: Adoption) -> None:
    """Show a report: tables, what changed, what was noted, and the first of the rows that were."""
    rows = [
        [name, f"{table.rows:,}", f"{table.adopted:,}", f"{table.left_over:,}"]
        for name, table in adoption.tables.items()
    ]
    write_table(["table", "rows", "adopted", "with leftovers"], rows)
    texts = f"{adoption.moved_texts:,} large texts of rows are files now"
    say(f"{adoption.files:,} output files, {size_of(adoption.bytes)}; {texts}")
    for old, new in adoption.kept_tables.items():
        say(f"kept as it was: {old}" if old == new else f"kept as it was: {old}, now called {new}")
    for sql in adoption.let_go:
        say(f"let go with the old tables: {one_line(sql)}")
    _show_counts("changed", adoption.changed)
    _show_counts("noted", adoption.noted)
    _show_notes(adoption)


def _show_counts(heading: str, counts: dict[str, int]) -> None:
    if counts:
        write_heading(heading.capitalize())
        write_table(["times", "what"], [[f"{count:,}", what] for what, count in counts.items()], may_be_cut=["what"])


def _show_notes(adoption: Adoption) -> None:
    if not adoption.notes:
        return
    write_heading("Rows")
    shown = adoption.notes[:MAX_NOTES]
    write_table(
        ["table", "row", "what"], [[note.table, note.key, note.what] for note in shown], may_be_cut=["row", "what"]
    )
    others = sum(adoption.noted.values()) - len(shown)
    if others > 0:
        say(f"and {others:,} more: jobstore migrate --report --json names a thousand")
