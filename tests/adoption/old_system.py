"""Databases of the old system, in the versions that its users have."""

from __future__ import annotations

import json
import random
import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SESSIONS = (
    "id TEXT PRIMARY KEY", "name TEXT NOT NULL", "project_directory TEXT", "project_hash TEXT",
    "task_description TEXT", "search_term TEXT", "title_regex TEXT", "content_regex TEXT",
    "negative_title_regex TEXT", "negative_content_regex TEXT", "is_regex_active INTEGER DEFAULT 1",
    "codebase_structure TEXT", "created_at INTEGER", "updated_at INTEGER", "model_used TEXT",
    "search_selected_files_only INTEGER DEFAULT 0",
)  # fmt: skip
FILES = (
    "id INTEGER PRIMARY KEY AUTOINCREMENT", "session_id TEXT NOT NULL", "path TEXT NOT NULL",
    "UNIQUE (session_id, path)", "FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE",
)  # fmt: skip
CACHED_STATE = (
    "id INTEGER PRIMARY KEY AUTOINCREMENT", "project_directory TEXT", "project_hash TEXT NOT NULL",
    "key TEXT NOT NULL", "value TEXT", "updated_at INTEGER", "UNIQUE (project_hash, key)",
)  # fmt: skip
KEY_VALUE_STORE = ("key TEXT PRIMARY KEY", "value TEXT", "updated_at INTEGER")
JOBS = (
    "id TEXT PRIMARY KEY", "session_id TEXT NOT NULL", "prompt TEXT NOT NULL",
    "status TEXT NOT NULL DEFAULT 'idle'", "start_time INTEGER", "end_time INTEGER", "output_file_path TEXT",
    "status_message TEXT", "tokens_received INTEGER DEFAULT 0", "tokens_sent INTEGER DEFAULT 0",
    "chars_received INTEGER DEFAULT 0", "last_update INTEGER", "created_at INTEGER NOT NULL", "updated_at INTEGER",
    "cleared INTEGER DEFAULT 0", "api_type TEXT DEFAULT 'gemini'", "task_type TEXT DEFAULT 'xml_generation'",
    "model_used TEXT", "max_output_tokens INTEGER", "response TEXT", "error_message TEXT", "metadata TEXT",
    "project_directory TEXT", "FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE",
)  # fmt: skip

WAITING = ("idle", "preparing", "created", "queued")
RUNNING = ("running", "acknowledged_by_worker")
ENDED = ("completed", "failed", "canceled")
BEGIN = 1_700_000_000
"""Seconds: when the old system began."""

Row = dict[str, Any]


@dataclass
class OldSystem:
    """What one version of the old system had, and what it held. `tables` is by the names that it used."""

    definitions: dict[str, Sequence[str]]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    jobs_table: str = "background_jobs"

    def write(self, path: Path, *pragmas: str) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}").fetchall()
            for table, columns in self.definitions.items():
                connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            for table, rows in self.tables.items():
                insert(connection, table, rows)
            for script in self.scripts:
                connection.execute(script)


def insert(connection: sqlite3.Connection, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        names = ", ".join(row)
        connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", (*row.values(),))


def without(columns: Sequence[str], *names: str) -> tuple[str, ...]:
    return tuple(column for column in columns if column.split()[0] not in names)


def renamed(columns: Sequence[str], old: str, new: str) -> tuple[str, ...]:
    return tuple(new + column[len(old) :] if column.split()[0] == old else column.replace(old, new)
                 if column.startswith("UNIQUE") else column for column in columns)  # fmt: skip


def loose(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns alone, without types and constraints: any of them holds anything."""
    return tuple(column.split()[0] for column in columns if column.split()[0] not in {"UNIQUE", "FOREIGN"})


def names_of(columns: Sequence[str]) -> list[str]:
    return list(loose(columns))


def newest(jobs: int, files: Path, seed: int = 0) -> OldSystem:
    """The latest version: every table and every column, with as many jobs as wanted and a few output files."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    system = OldSystem(
        {
            "migrations": ("id INTEGER PRIMARY KEY AUTOINCREMENT", "name TEXT UNIQUE", "applied_at INTEGER"),
            "meta": ("key TEXT PRIMARY KEY", "value TEXT"),
            "db_diagnostic_logs": (
                "id INTEGER PRIMARY KEY AUTOINCREMENT", "timestamp INTEGER", "error_type TEXT",
                "error_message TEXT", "additional_info TEXT",
            ),
            "sessions": SESSIONS,
            "included_files": FILES,
            "excluded_files": FILES,
            "cached_state": CACHED_STATE,
            "key_value_store": KEY_VALUE_STORE,
            "background_jobs": JOBS,
        }
    )  # fmt: skip
    sessions = [session(number) for number in range(5)]
    system.tables = {
        "migrations": [
            {"name": "consolidated_migrations.sql", "applied_at": BEGIN},
            {"name": "add_tokens_sent_column", "applied_at": BEGIN + 5},
        ],
        "meta": [{"key": "version", "value": "7"}],
        "db_diagnostic_logs": [{"timestamp": BEGIN, "error_type": "lock", "error_message": "database is locked"}],
        "sessions": sessions,
        "included_files": [
            {"session_id": one["id"], "path": path} for one in sessions for path in ("z.py", "ä b.py", "a.py")
        ],
        "excluded_files": [{"session_id": sessions[0]["id"], "path": "secret.env"}],
        "cached_state": [
            state(number, key, value)
            for number in range(2)
            for key, value in (("tabs", '["a.py"]'), ("theme", "dark"), ("note", '"quoted"'), ("empty", ""))
        ],
        "key_value_store": [
            {"key": "window", "value": '{"w": 1.50,  "h":2}', "updated_at": BEGIN},
            {"key": "plain", "value": "not JSON {", "updated_at": (BEGIN + 1) * 1000},
        ],
        "background_jobs": [job(number, sessions, files, chance) for number in range(jobs)],
    }
    system.scripts = [
        "CREATE INDEX idx_background_jobs_status ON background_jobs (status)",
        "CREATE TRIGGER touched AFTER UPDATE ON sessions BEGIN UPDATE meta SET value = 8; END",
    ]
    return system


def session(number: int) -> Row:
    return {
        "id": f"session_{number}",
        "name": f"Session {number}",
        "project_directory": f"/src/project {number % 2}",
        "project_hash": f"{number % 2:08x}",
        "task_description": f"Do what is to be done, number {number}: äöü",
        "search_term": "needle",
        "title_regex": r"^\w+$",
        "content_regex": "",
        "negative_title_regex": None,
        "negative_content_regex": "x",
        "is_regex_active": number % 2,
        "codebase_structure": "src/\n  main.py",
        "created_at": BEGIN + number,
        "updated_at": (BEGIN + number + 9) * (1000 if number == 3 else 1),
        "model_used": "gemini-pro" if number else None,
        "search_selected_files_only": 1 - number % 2,
    }


def state(number: int, key: str, value: str) -> Row:
    directory = f"/src/project {number}"
    return {
        "project_directory": directory,
        "project_hash": f"{number:08x}",
        "key": key,
        "value": value,
        "updated_at": BEGIN + 3,
    }


def job(number: int, sessions: Sequence[Row], files: Path, chance: random.Random) -> Row:
    """Return a job as the old system would have left it; every 50th has its answer in a file."""
    status = (*WAITING, *RUNNING, *ENDED, "completed", "completed")[number % 11]
    created = BEGIN + number // 3
    ended = status in ENDED
    row: Row = {
        "id": f"job_{uuid.UUID(int=chance.getrandbits(128), version=4)}",
        "session_id": sessions[number % len(sessions)]["id"],
        "prompt": f"Prompt {number}: " + ("größer " * 12_000 if number % 500 == 7 else "what now?"),
        "status": status,
        "start_time": None if status in WAITING else created + 1,
        "end_time": created + 7 if ended else None,
        "status_message": f"step {number}",
        "tokens_received": number,
        "tokens_sent": number * 2,
        "chars_received": number * 3,
        "last_update": created + 6 - number % 2,
        "created_at": created,
        "updated_at": (created + 6) * (1000 if number % 10 == 3 else 1),
        "cleared": int(number % 13 == 0),
        "api_type": "claude",
        "task_type": f"task {number % 4}",
        "model_used": "model",
        "max_output_tokens": 4096,
        "response": f"Answer {number}" if status == "completed" else None,
        "error_message": "it broke" if status == "failed" else None,
        "metadata": METADATA[number % len(METADATA)],
        "project_directory": "/src/project 0",
    }
    if number % 50 == 10:
        path = files / f"output {number}.xml"
        if number % 100 == 10:
            path.write_text(f"<answer>{number} ä</answer>" * 100, encoding="utf-8")
        row |= {"output_file_path": str(path), "response": None}
    return row


METADATA = (
    None,
    "",
    json.dumps({"priority": 5, "temperature": 0.70, "targetField": "plan"}),
    '{"jobPriorityForWorker": "3", "modelUsed": "other",  "jobTypeForWorker": "x" , "big": 1e400}'.replace(
        "1e400", "1.50"
    ),
    "{broken",
    "[1, 2]",
    "{}",
)


def variants(files: Path, jobs: int) -> dict[str, OldSystem]:
    """Return the versions of the old system, each with something of everything."""
    return {
        "newest": newest(jobs, files),
        "xml_path": _with_xml_path(newest(jobs, files, 1)),
        "gemini_requests": _gemini_requests(newest(jobs, files, 2)),
        "file_path": _with_file_path(newest(jobs, files, 3)),
        "both paths": _with_both_paths(newest(jobs, files, 4)),
        "few columns": _with_few_columns(newest(jobs, files, 5)),
        "no constraints": _loose(newest(jobs, files, 6)),
        "more of everything": _with_more(newest(jobs, files, 7)),
        "jobs alone": _jobs_alone(newest(jobs, files, 8)),
    }


def _change(system: OldSystem, table: str, columns: Sequence[str], name: str | None = None) -> OldSystem:
    """Give a table other columns, and its rows only what these have."""
    name = name or table
    kept = set(names_of(columns))
    rows = [{key: value for key, value in row.items() if key in kept} for row in system.tables.pop(table)]
    del system.definitions[table]
    system.definitions[name], system.tables[name] = columns, rows
    return system


def _with_xml_path(system: OldSystem) -> OldSystem:
    for row in system.tables["background_jobs"]:
        row["xml_path"] = row.pop("output_file_path", None)
    columns = renamed(without(JOBS, "tokens_sent"), "output_file_path", "xml_path")
    return _change(system, "background_jobs", columns)


def _gemini_requests(system: OldSystem) -> OldSystem:
    system.scripts = []
    system.jobs_table = "gemini_requests"
    columns = without(JOBS, "tokens_sent", "project_directory", "updated_at", "api_type", "task_type")
    return _change(system, "background_jobs", columns, "gemini_requests")


def _with_file_path(system: OldSystem) -> OldSystem:
    for table in ("included_files", "excluded_files"):
        for row in system.tables[table]:
            row["file_path"] = row.pop("path")
        _change(system, table, renamed(FILES, "path", "file_path"))
    return _change(system, "background_jobs", without(JOBS, "project_directory"))


def _with_both_paths(system: OldSystem) -> OldSystem:
    columns = ("id INTEGER PRIMARY KEY", "session_id TEXT", "path TEXT", "file_path TEXT")
    for number, row in enumerate(system.tables["included_files"]):
        row["file_path"] = "other" if number % 3 == 2 else row["path"]
        row["path"] = None if number % 3 == 1 else row["path"]
    return _change(system, "included_files", columns)


def _with_few_columns(system: OldSystem) -> OldSystem:
    _change(system, "sessions", ("id TEXT", "project_directory TEXT", "task_description TEXT"))
    _change(system, "cached_state", ("project_hash TEXT", "key TEXT", "value TEXT"))
    _change(system, "key_value_store", ("key TEXT", "value TEXT"))
    for table in ("migrations", "meta", "db_diagnostic_logs", "excluded_files"):
        del system.definitions[table], system.tables[table]
    system.scripts = []
    return _change(system, "background_jobs", ("id TEXT", "prompt TEXT", "status TEXT"))


def _loose(system: OldSystem) -> OldSystem:
    for table in tuple(system.tables):
        system.definitions[table] = loose(system.definitions[table])
    jobs = system.tables["background_jobs"]
    jobs += [dict(jobs[0]), dict(jobs[1], id=None), dict(jobs[2], session_id="session_gone")]
    system.tables["cached_state"] += [dict(system.tables["cached_state"][0], value='"later"', updated_at=BEGIN + 99)]
    system.tables["included_files"] += [dict(system.tables["included_files"][0])]
    return system


def _with_more(system: OldSystem) -> OldSystem:
    """Columns and tables that nobody knows, and some with names that the store needs."""
    system.definitions["background_jobs"] = (*JOBS[:-1], "favourite TEXT", "rating REAL", JOBS[-1])
    for number, row in enumerate(system.tables["background_jobs"]):
        row |= {"favourite": f"yes {number}", "rating": number / 3}
    system.definitions["sessions"] = (*SESSIONS, "colour TEXT")
    for row in system.tables["sessions"]:
        row["colour"] = "blue"
    system.definitions |= {
        "lanes": ("number INTEGER",),
        "adopted_leftovers": ("number INTEGER",),
        "pets": ("name TEXT", "session_id TEXT REFERENCES sessions (id)"),
    }
    system.tables |= {
        "lanes": [{"number": 7}],
        "adopted_leftovers": [{"number": 8}],
        "pets": [{"name": "Rex", "session_id": "session_1"}],
    }
    system.scripts += [
        "CREATE VIEW outputs AS SELECT output_file_path, chars_received FROM background_jobs",
        "CREATE VIEW workers AS SELECT 1",
        "CREATE INDEX sessions_by_project ON pets (name)",
    ]
    return system


def _jobs_alone(system: OldSystem) -> OldSystem:
    system.tables = {"background_jobs": system.tables["background_jobs"]}
    system.definitions = {"background_jobs": JOBS[:-1]}
    system.scripts = []
    return system
