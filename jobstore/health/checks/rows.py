"""Checks of the rows: what holds of every job and attempt, who holds leases, who works."""

from __future__ import annotations

from collections.abc import Sequence

from jobstore.health.encoding import text_rules
from jobstore.health.report import Finding, bad, good
from jobstore.health.subject import SQLiteSubject, Subject
from jobstore.operations import invariants
from jobstore.operations import promotion as promoting
from jobstore.operations.invariants import JSON_RULES, RULES, Rule
from jobstore.operations.migrations import store_id
from jobstore.operations.registering import live_workers


def sessions(subject: Subject) -> Finding:
    """Check the sessions and their files."""
    return _by_rules(subject, "sessions", ("sessions", "included_files", "excluded_files"), RULES)


def jobs(subject: Subject) -> Finding:
    """Check that every job is in a state that it can be in."""
    return _by_rules(subject, "jobs", ("background_jobs",), RULES)


def attempts(subject: Subject) -> Finding:
    """Check that every attempt is in a state that it can be in."""
    return _by_rules(subject, "attempts", ("job_attempts",), RULES)


def json(subject: Subject) -> Finding:
    """Check that what should be JSON is JSON."""
    return _by_rules(subject, "json", tuple(rule.table for rule in JSON_RULES), JSON_RULES)


def encoding(subject: SQLiteSubject) -> Finding:
    """Check that every text is one."""
    rules = text_rules(subject.connection, subject.steps)
    return _by_rules(subject, "encoding", tuple(rule.table for rule in rules), rules)


def identity(subject: Subject) -> Finding:
    """Check that the database knows which store it is."""
    name = subject.read(store_id)
    if not name:
        return bad("identity", "the database does not say which store it is", subject.remedy)
    return good("identity", f"store {name}")


def promotion(subject: Subject) -> Finding:
    """Check that the store was not left half filled from another."""
    state = subject.read(promoting.state)
    if state is not None and not state.finished:
        remedy = "run the same `jobstore promote` again"
        return bad("promotion", f"it is being filled from store {state.source_id}, which was not finished", remedy)
    return good("promotion", "no copying into this store is unfinished")


def leases(subject: Subject) -> Finding:
    """Check that leases which ended were noticed."""
    overdue = subject.read(invariants.count_overdue)
    if overdue:
        return bad(
            "leases",
            f"leases that ended more than a minute ago, and nobody has claimed since: {overdue:,}",
            f"start a worker, or {subject.remedy}",
        )
    holders = subject.read(promoting.holders)
    return good("leases", f"jobs that run, each with its lease: {sum(holders.values()):,}")


def workers(subject: Subject) -> Finding:
    """Tell which workers live."""
    live = subject.read(live_workers)
    names = [f"{worker.id} on {worker.host}, process {worker.pid}" for worker in live]
    return good("workers", f"workers that live: {len(live)}", *names)


def _by_rules(subject: Subject, name: str, tables: tuple[str, ...], rules: Sequence[Rule]) -> Finding:
    """Check some tables, each in one pass."""
    problems: list[str] = []
    for table in tables:
        own = [rule for rule in rules if rule.table == table]
        broken = subject.read(invariants.count_broken, table, own)
        problems += [_described(subject, rule, broken[rule.name]) for rule in own if rule.name in broken]
    if problems:
        return bad(name, f"rules that rows break: {len(problems)}", subject.remedy, *problems)
    checked = sum(rule.table in tables for rule in rules)
    return good(name, f"rules that all rows keep: {checked}")


def _described(subject: Subject, rule: Rule, count: int) -> str:
    keys = ", ".join(subject.read(invariants.keys_broken, rule))
    return f"{rule.name}: {rule.meaning}: {count:,} ({keys}{', …' if count > invariants.SHOWN else ''})"
