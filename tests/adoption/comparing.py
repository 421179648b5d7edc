"""Comparing what an old database held with what the store holds that it became: every row, every value, every text.

Written from what is known of the old system, not from how it is adopted.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COLUMN_OF = {"start_time": "started_at", "end_time": "finished_at", "tokens_sent": "input_tokens",
             "tokens_received": "output_tokens"}  # fmt: skip
TIMES = {"created_at", "updated_at", "start_time", "end_time"}
SAME = {"id", "session_id", "status", "status_message", "error_message", "model_used", "task_type", "api_type",
        "tokens_sent", "tokens_received", "cleared"}  # fmt: skip
FILES = ("output_file_path", "xml_path")
STATE_KEYS = {"cached_state": ("project_hash", "key"), "key_value_store": ("key",)}
YEAR_2200 = 7_258_118_400


class OldText(bytes):
    """A TEXT, whatever its bytes are."""


def exact(value: Any) -> Any:  # noqa: ANN401
    """Return what tells exactly which value it was, as JSON."""
    if isinstance(value, OldText):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"text_base64": base64.b64encode(value).decode()}
    if isinstance(value, bytes):
        return {"blob_base64": base64.b64encode(value).decode()}
    if value in {float("inf"), float("-inf")}:
        return {"real": str(value)}
    return value


def shown(value: Any) -> str | None:  # noqa: ANN401
    """Return a value as a name that can be one, or None."""
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return None if value is None else str(value).replace("\0", "\\x00") or None


def rows_of(path: Path, table: str, *, old: bool) -> list[Row]:
    """Return the rows of a table in their order; of the old one with texts as they are, byte by byte."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        if old:
            connection.text_factory = OldText
        [(without_rowid,)] = connection.execute(f"SELECT wr FROM pragma_table_list('{table}')").fetchall()
        cursor = connection.execute(f"SELECT * FROM {table} {'' if without_rowid else 'ORDER BY rowid'}")
        names = [column[0].lower() for column in cursor.description]
        return [dict(zip(names, values, strict=True)) for values in cursor]


def tables_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
        return {name for (name,) in connection.execute(sql)}


def assert_nothing_is_lost(old: Path, new: Path, outputs: Path | None = None) -> None:
    """Compare all tables of an old database, as its backup holds them, with the store."""
    outputs = outputs or Path(f"{new}.outputs")
    there = tables_of(old)
    jobs = iter(rows_of(new, "background_jobs", old=False))
    copies: dict[str, list[str]] = {}
    for attempt in rows_of(new, "job_attempts", old=False):
        copies.setdefault(attempt["job_id"], []).append(attempt["output_file_path"])
    for table in ("background_jobs", "gemini_requests"):
        for row in rows_of(old, table, old=True) if table in there else []:
            job = next(jobs)
            assert_job(row, job, outputs)
            for name in FILES:
                if is_to_be_copied(row.get(name), new):
                    assert_file_is_there(row[name], outputs, [*copies.get(job["id"], []), job["output_file_path"]])
    assert next(jobs, None) is None
    if "sessions" in there:
        assert_sessions(rows_of(old, "sessions", old=True), rows_of(new, "sessions", old=False))
    for table in {"included_files", "excluded_files"} & there:
        assert_files(rows_of(old, table, old=True), new, table)
    for table in STATE_KEYS.keys() & there:
        assert_states(rows_of(old, table, old=True), new, table)
    assert_other_tables(old, new, there)


def assert_job(old: Row, job: Row, outputs: Path) -> None:
    metadata = json.loads(job["metadata"])
    kept = metadata_kept(metadata)
    for name, value in old.items():
        if name in kept:
            assert kept[name] == exact(value), name
        elif name == "metadata":
            assert_metadata(exact(value), job["metadata"], metadata)
        elif value is not None and value != b"":
            assert_value(name, exact(value), job, outputs)


def metadata_kept(metadata: Row) -> Row:
    names = sorted((name for name in metadata if name.startswith("adopted")), key=len)
    return metadata[names[-1]] if names and isinstance(metadata[names[-1]], dict) else {}


def assert_metadata(old: Any, text: str, metadata: Row) -> None:  # noqa: ANN401
    """A JSON object is there as it was written, with one key more or none; nothing is an empty object."""
    if old is None or not old.strip():
        assert set(metadata) <= {"adopted"}
        return
    before = json.loads(old)
    assert {name: metadata[name] for name in before} == before
    assert len(metadata) - len(before) in {0, 1}
    assert text.startswith(old.rstrip()[:-1].rstrip()) or not before


def assert_value(name: str, value: Any, job: Row, outputs: Path) -> None:  # noqa: ANN401
    if name in {"prompt", "response"}:
        assert value == text_of(job, name, outputs), name
    elif name in TIMES:
        assert type(value) is int
        assert job[COLUMN_OF.get(name, name)] == milliseconds(value), name
    elif name == "last_update":
        assert milliseconds(value) == job["updated_at"]
    else:
        assert name in SAME, f"{name} is lost"
        assert job[COLUMN_OF.get(name, name)] == value, name


def milliseconds(value: int) -> int:
    return value * 1000 if value <= YEAR_2200 else value


def text_of(job: Row, name: str, outputs: Path) -> str | None:
    path = job["prompt_file_path" if name == "prompt" else "output_file_path"]
    return job[name] if path is None else (outputs / path).read_bytes().decode()


def is_to_be_copied(named: Any, database: Path) -> bool:  # noqa: ANN401
    """Whether what a row names is a regular file on a disk, by an absolute path that is no link."""
    if not isinstance(named, OldText) or not named.startswith(b"/") or b"\0" in named:
        return False
    path = Path(named.decode(errors="surrogateescape"))
    try:
        return path.is_file() and not path.is_symlink() and path.parts[1] != "proc" and not path.samefile(database)
    except OSError:
        return False


def assert_file_is_there(named: OldText, outputs: Path, copies: list[str]) -> None:
    """A file that a row names was copied byte by byte."""
    original = Path(named.decode(errors="surrogateescape")).read_bytes()
    assert original in [(outputs / copy).read_bytes() for copy in copies if copy]


def assert_sessions(old: list[Row], new: list[Row]) -> None:
    made = [row for row in new if "made_for" in json.loads(row["model_settings"]).get("adopted", {})]
    adopted = [row for row in new if row not in made]
    for before, after in zip(old, adopted, strict=True):
        kept = json.loads(after["model_settings"]).get("adopted", {})
        for name, value in before.items():
            if name in kept:
                assert kept[name] == exact(value)
            elif value is not None and value != b"":
                now = after[name]
                assert now == (milliseconds(value) if name.endswith("_at") else exact(value)), name


def leftovers_of(new: Path, table: str) -> Iterator[tuple[list[Any], Row]]:
    if "adopted_leftovers" in tables_of(new):
        for row in rows_of(new, "adopted_leftovers", old=False):
            if row["table_name"] == table:
                yield json.loads(row["row_key"]), json.loads(row["kept"])


def assert_files(old: list[Row], new: Path, table: str) -> None:
    """Each row is there, or kept whole; what else it held is kept; the order of a session's paths is the same."""
    left = list(leftovers_of(new, table))
    there = sorted(rows_of(new, table, old=False), key=lambda row: row["position"])
    orders: dict[str, list[str]] = {}
    for row in old:
        everything = {name: exact(value) for name, value in row.items() if value is not None}
        session = shown(row["session_id"]) or "without-session"
        path = shown(row.get("path")) or shown(row.get("file_path"))
        paths = orders.setdefault(session, [])
        if not path or path in paths:  # no path, or once more the same
            assert any(kept == everything for _, kept in left)
            continue
        paths.append(path)
        rest = {name: value for name, value in everything.items() if value not in [session, path, ""]}
        assert any(key == [session, path] and rest.items() <= kept.items() for key, kept in left) or not rest
    for session, paths in orders.items():
        assert [row["path"] for row in there if row["session_id"] == session] == paths


def assert_states(old: list[Row], new: Path, table: str) -> None:
    """Each value is there as JSON of the same meaning, or kept whole because another of the same key counts."""
    left = list(leftovers_of(new, table))
    there = {tuple(row[name] for name in STATE_KEYS[table]): row for row in rows_of(new, table, old=False)}
    for row in old:
        everything = {name: exact(value) for name, value in row.items() if value is not None}
        if any(kept == everything for _, kept in left):
            continue
        assert any(
            key[-1] == (shown(row["key"]) or "") and _holds(now, everything, kept)
            for key, now in there.items()
            for kept in [one for shown, one in left if tuple(shown) == key] or [{}]
        ), everything


def _holds(now: Row, old: Row, kept: Row) -> bool:
    """Whether a row of the store, with what is kept beside it, holds all that an old one did."""
    for name, value in old.items():
        if name in kept:
            if kept[name] != value:
                return False
        elif name == "value":
            if now["value"] != value and json.loads(now["value"]) != value:
                return False
        elif value != "" and now.get(name) != (milliseconds(value) if name == "updated_at" else value):
            return False
    return True


def assert_other_tables(old: Path, new: Path, there: set[str]) -> None:
    """Tables that are nothing of the store's are as they were, under their name or `old_` before it."""
    known = {"sessions", "included_files", "excluded_files", "background_jobs", "gemini_requests", *STATE_KEYS}
    for table in there - known:
        name = table if f"old_{table}" not in tables_of(new) else f"old_{table}"
        assert rows_of(new, name, old=True) == rows_of(old, table, old=True)
