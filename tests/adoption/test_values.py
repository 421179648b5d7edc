"""Single values that no column should hold, and what becomes of each."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobstore import DatabaseCorrupt
from jobstore.migrate import Adoption

from .comparing import OldText, rows_of
from .old_system import BEGIN, JOBS, loose, names_of

Adopt = Callable[[], Adoption]
MILLISECONDS = BEGIN * 1000


@pytest.fixture
def adopt_job(old: Path, adopt: Adopt) -> Callable[..., dict[str, Any]]:
    """Adopt a job of some values in a table without types; return its row, with its metadata and attempts."""

    def run(**values: Any) -> dict[str, Any]:  # noqa: ANN401
        row = {"id": "job_1", "prompt": "p", "status": "completed", "created_at": BEGIN, **values}
        with closing(sqlite3.connect(old)) as connection, connection:
            connection.execute(f"CREATE TABLE background_jobs ({', '.join(loose(JOBS))})")
            assert set(row) <= set(names_of(JOBS))
            bound = ", ".join("CAST(? AS TEXT)" if isinstance(value, OldText) else "?" for value in row.values())
            connection.execute(f"INSERT INTO background_jobs ({', '.join(row)}) VALUES ({bound})", (*row.values(),))
        report = adopt()
        [job] = rows_of(old, "background_jobs", old=False)
        metadata = json.loads(job["metadata"])
        attempts = rows_of(old, "job_attempts", old=False)
        return {**job, "kept": metadata.get("adopted", {}), "attempts": attempts, "report": report}

    return run


@pytest.mark.parametrize(
    ("value", "milliseconds", "is_kept"),
    [
        (BEGIN, MILLISECONDS, False),
        (MILLISECONDS + 123, MILLISECONDS + 123, False),
        (BEGIN + 0.25, MILLISECONDS + 250, True),
        (float(MILLISECONDS), MILLISECONDS, True),
        (str(BEGIN), MILLISECONDS, True),
        (f" {MILLISECONDS} ", MILLISECONDS, True),
        ("2023-11-14 22:13:20", MILLISECONDS, True),
        ("2023-11-15T00:13:20+02:00", MILLISECONDS, True),
        (1, 1000, False),
        (7_258_118_400, 7_258_118_400_000, False),
    ],
)
def test_times_in_seconds_and_in_milliseconds(
    adopt_job: Callable[..., dict[str, Any]],
    value: Any,  # noqa: ANN401
    milliseconds: int,
    is_kept: bool,  # noqa: FBT001
) -> None:
    job = adopt_job(created_at=value)
    assert job["created_at"] == milliseconds
    assert ("created_at" in job["kept"]) == is_kept


@pytest.mark.parametrize(
    "value",
    [-BEGIN, 7_258_118_401, 99_999_999_999, 7_258_118_400_001, 2**63 - 1, 1e300, float("inf"), "soon", "", b"\x01",
     "99999-01-01", "1e9", "٣", "0001-01-01", OldText(b"\xff")],
)  # fmt: skip
def test_what_is_no_time_is_kept_and_another_stands_in(
    adopt_job: Callable[..., dict[str, Any]],
    value: Any,  # noqa: ANN401
) -> None:
    job = adopt_job(created_at=value, start_time=BEGIN + 5)
    assert job["created_at"] == MILLISECONDS + 5000
    assert "created_at" in job["kept"]
    assert job["report"].noted == {"background_jobs: created_at is no time": 1}


def test_without_any_time_it_is_that_of_the_adoption(adopt_job: Callable[..., dict[str, Any]]) -> None:
    job = adopt_job(created_at=0)
    assert job["created_at"] == job["finished_at"] == round(job["report"].adopted_at.timestamp() * 1000)
    assert job["kept"] == {"created_at": 0}


@pytest.mark.parametrize(
    ("value", "text", "kept"),
    [
        (42, "42", 42),
        (1.5, "1.5", 1.5),
        (b"bytes", "bytes", {"blob_base64": "Ynl0ZXM="}),
        (b"\xff\x00", "\\xff\0", {"blob_base64": "/wA="}),
        (OldText(b"caf\xe9"), "caf\\xe9", {"text_base64": "Y2Fm6Q=="}),
        (float("-inf"), "-inf", {"real": "-inf"}),
    ],
)
def test_prompts_and_responses_that_are_no_texts_are_readable_and_kept(
    adopt_job: Callable[..., dict[str, Any]],
    value: Any,  # noqa: ANN401
    text: str,
    kept: Any,  # noqa: ANN401
) -> None:
    job = adopt_job(prompt=value, response=value)
    assert (job["prompt"], job["response"]) == (text, text)
    assert job["kept"] == {"prompt": kept, "response": kept}


def test_texts_with_nul_and_of_every_kind_come_over_as_they_are(adopt_job: Callable[..., dict[str, Any]]) -> None:
    text = "\0 a \U0001f600 \u2028 \ud7ff é é"
    job = adopt_job(prompt=text, response=text, status_message=text, error_message=text)
    assert {job[name] for name in ("prompt", "response", "status_message", "error_message")} == {text}
    assert job["kept"] == {}


@pytest.mark.parametrize(("size", "is_moved"), [(65_536, False), (65_537, True), (3_000_000, True)])
def test_texts_that_are_too_large_for_their_rows_become_files(
    old: Path,
    adopt_job: Callable[..., dict[str, Any]],
    size: int,
    is_moved: bool,  # noqa: FBT001
) -> None:
    job = adopt_job(prompt="x" * size, response="y" * size)
    assert (job["prompt_file_path"] is not None, job["output_file_path"] is not None) == (is_moved, is_moved)
    assert job["prompt_bytes"] == size
    assert job["report"].moved_texts == 2 * is_moved
    assert Path(f"{old}.outputs").exists() == is_moved
    assert not Path(f"{old}.adopting").exists()


@pytest.mark.parametrize(
    "text", ["{", "[1]", '"x"', "null", "NaN", '{"a": NaN}', '{"a": "\\ud800"}', "1" * 5000, "[" * 5000]
)
def test_metadata_that_is_no_object_is_kept_under_a_key_of_its_own(
    adopt_job: Callable[..., dict[str, Any]], text: str
) -> None:
    job = adopt_job(metadata=text)
    assert json.loads(job["metadata"]) == {"adopted": {"metadata": text}}


@pytest.mark.parametrize("text", [' {"a" : 1.50, "big": 12345678901234567890.10}\n', "{ }", '{"a": {"b": [null]}}'])
def test_metadata_stays_as_it_is_written(adopt_job: Callable[..., dict[str, Any]], text: str) -> None:
    job = adopt_job(metadata=text)
    assert job["metadata"] == (text if text.strip(" {}\n") else "{}")


@pytest.mark.parametrize(
    ("value", "number"), [(3, 3), ("3", 3), (3.0, 3), (-1, None), (3.5, None), ("many", None), (b"3", None)]
)
def test_numbers_of_tokens(
    adopt_job: Callable[..., dict[str, Any]],
    value: Any,  # noqa: ANN401
    number: int | None,
) -> None:
    job = adopt_job(tokens_sent=value)
    assert job["input_tokens"] == number
    assert ("tokens_sent" in job["kept"]) == (value != 3 or type(value) is not int)


@pytest.mark.parametrize(
    ("value", "cleared"), [(1, 1), (0, 0), ("true", 1), ("0", 0), (None, 0), (7, 0), ("maybe", 0), (b"1", 0)]
)
def test_flags(
    adopt_job: Callable[..., dict[str, Any]],
    value: Any,  # noqa: ANN401
    cleared: int,
) -> None:
    assert adopt_job(cleared=value)["cleared"] == cleared


def test_an_end_that_a_running_job_had_and_a_start_that_a_waiting_one_had_are_kept(
    adopt_job: Callable[..., dict[str, Any]],
) -> None:
    job = adopt_job(status="queued", start_time=BEGIN + 1, end_time=BEGIN + 2, response="half")
    assert (job["status"], job["finished_at"], job["started_at"]) == ("idle", None, MILLISECONDS + 1000)
    assert job["kept"] == {"status": "queued", "end_time": BEGIN + 2}
    assert job["response"] == "half"
    assert [(one["outcome"], job["attempts_used"]) for one in job["attempts"]] == [("released", 0)]


def test_ids_that_are_none_or_hold_what_no_id_may(old: Path, adopt: Adopt) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE background_jobs (id, prompt, status)")
        ids = [None, "", "a\0b", 5, "5", b"5", "x" * 500, "../../etc"]
        connection.executemany("INSERT INTO background_jobs VALUES (?, ?, 'failed')", [(i, "y" * 70_000) for i in ids])
    adopt()
    found = [row["id"] for row in rows_of(old, "background_jobs", old=False)]
    assert len(set(found)) == 8
    assert found[2:4] == ["a\\x00b", "5"]
    assert found[6:] == ["x" * 500, "../../etc"]
    assert {path.parent.parent.name for path in Path(f"{old}.outputs").rglob("*.txt")} == {"prompts"}


def test_of_values_with_one_key_the_latest_counts_and_the_others_are_kept(old: Path, adopt: Adopt) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE background_jobs (id, prompt, status)")
        connection.execute("CREATE TABLE cached_state (project_directory, project_hash, key, value, updated_at)")
        connection.executemany(
            "INSERT INTO cached_state VALUES (?, ?, 'k', ?, ?)",
            [("/p", "h", "1", BEGIN), ("/p/", "g", "2", MILLISECONDS + 5), (None, "h", "3", "x"), (None, None, "4", 1)],
        )
    report = adopt()
    values = {row["value"] for row in rows_of(old, "cached_state", old=False)}
    assert values == {"2", "3", "4"}
    assert report.noted["cached_state: another row of the same key counts"] == 1


def test_state_that_names_its_project_by_hash_alone_finds_it_among_the_sessions(old: Path, adopt: Adopt) -> None:
    hashes = {"/p": "old", "/q": hashlib.sha256(b"/q").hexdigest()}
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE sessions (id, project_directory, project_hash)")
        connection.execute("CREATE TABLE cached_state (project_hash, key, value)")
        for directory, digest in hashes.items():
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", (directory, directory, digest))
            connection.execute("INSERT INTO cached_state VALUES (?, 'k', '1')", (digest,))
    adopt()
    found = {row["project_directory"]: row["project_hash"] for row in rows_of(old, "cached_state", old=False)}
    assert found == {directory: hashlib.sha256(directory.encode()).hexdigest() for directory in hashes}


def test_a_text_and_the_same_text_as_json_can_still_be_told_apart(old: Path, adopt: Adopt) -> None:
    values = ["dark", '"dark"', "5", 5, None, "null", b"5", " [1]"]
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE background_jobs (id, prompt, status)")
        connection.execute("CREATE TABLE key_value_store (key, value)")
        connection.executemany("INSERT INTO key_value_store VALUES (?, ?)", enumerate(values))
    adopt()
    store = {row["key"]: row["value"] for row in rows_of(old, "key_value_store", old=False)}
    assert [store[str(number)] for number in range(len(values))] == [
        '"dark"', '"dark"', "5", "5", "null", "null", "5", " [1]",
    ]  # fmt: skip
    left = [json.loads(row["kept"]) for row in rows_of(old, "adopted_leftovers", old=False)]
    assert left == [
        {"key": 0}, {"key": 1, "value": '"dark"'}, {"key": 2}, {"key": 3, "value": 5}, {"key": 4, "value": None},
        {"key": 5}, {"key": 6, "value": {"blob_base64": "NQ=="}}, {"key": 7},
    ]  # fmt: skip


def test_damage_is_told_and_nothing_is_changed(old: Path, adopt: Adopt) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE background_jobs (id, prompt, status)")
        connection.executemany(
            "INSERT INTO background_jobs VALUES (?, ?, 'idle')", [(i, "p" * 900) for i in range(200)]
        )
        [(pages,)] = connection.execute("PRAGMA page_count").fetchall()
    with old.open("r+b") as file:
        file.seek(4096 * (pages // 2))
        file.write(b"\xff" * 4096)
    before = old.read_bytes()
    with pytest.raises(DatabaseCorrupt):
        adopt()
    assert old.read_bytes() == before
