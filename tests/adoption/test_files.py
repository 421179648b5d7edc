"""Files that old rows name: copied from anywhere if they are regular, and nothing else is ever opened."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobstore import DiskFull, JobStore
from jobstore.migrate import Adoption, Migrator
from tests.processes.support import PEAK_MEMORY, run

from .comparing import rows_of, tables_of
from .old_system import BEGIN, JOBS, OldSystem, newest

Adopt = Callable[[], Adoption]


@pytest.fixture
def adopt_naming(old: Path, adopt: Adopt) -> Callable[..., dict[str, Any]]:
    """Adopt a job that names a file; return its row, with its metadata and its attempts."""

    def run(named: Any, **values: Any) -> dict[str, Any]:  # noqa: ANN401
        system = OldSystem({"background_jobs": (*JOBS[:-1], "xml_path")})
        row = {"id": "job_1", "session_id": "s", "prompt": "p", "status": "completed", "created_at": BEGIN}
        system.tables["background_jobs"] = [{**row, "output_file_path": named, **values}]
        system.write(old)
        report = adopt()
        [job] = rows_of(old, "background_jobs", old=False)
        attempts = rows_of(old, "job_attempts", old=False)
        return {**job, "kept": json.loads(job["metadata"])["adopted"], "attempts": attempts, "report": report}

    return run


Naming = Callable[..., dict[str, Any]]


def _job_naming(path: Path) -> dict[str, Any]:
    row = {"id": "job_1", "session_id": "s", "prompt": "p", "status": "completed", "created_at": BEGIN}
    return {**row, "output_file_path": str(path)}


def copy_of(old: Path, relative: str) -> bytes:
    return (Path(f"{old}.outputs") / relative).read_bytes()


def test_a_file_is_copied_with_its_size_and_hash(old: Path, files: Path, adopt_naming: Naming) -> None:
    path = files / "out ä.xml"
    path.write_bytes("ä".encode() * 100_000)
    job = adopt_naming(str(path))
    assert copy_of(old, job["output_file_path"]) == path.read_bytes()
    assert job["output_bytes"] == 200_000
    assert job["output_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [attempt["output_file_path"] for attempt in job["attempts"]] == [job["output_file_path"]]
    assert job["kept"]["output_file_path"] == str(path)
    assert (job["report"].files, job["report"].bytes) == (1, 200_000)
    copy = Path(f"{old}.outputs") / job["output_file_path"]
    assert copy.stat().st_mode & 0o777 == 0o600


async def test_a_partial_of_a_job_that_failed_or_runs_is_its_attempts(old: Path, files: Path) -> None:
    system = newest(0, files)
    for status in ("failed", "running", "queued", "canceled"):
        (files / status).write_text(f"half of {status}", encoding="utf-8")
        system.tables["background_jobs"].append(
            {"id": f"job_{status}", "session_id": "session_0", "prompt": "p", "status": status, "created_at": BEGIN,
             "output_file_path": str(files / status)}
        )  # fmt: skip
    system.write(old)
    async with JobStore(old, migrate=True) as store:
        for status in ("failed", "running", "queued", "canceled"):
            assert await store.jobs.read_response(f"job_{status}") == f"half of {status}"


def test_of_a_response_and_another_file_neither_is_lost(old: Path, files: Path, adopt_naming: Naming) -> None:
    path = files / "out.xml"
    path.write_text("from the file", encoding="utf-8")
    job = adopt_naming(str(path), response="from the row")
    assert job["response"] == "from the row"
    assert job["output_file_path"] is None
    assert copy_of(old, job["attempts"][0]["output_file_path"]) == b"from the file"
    assert job["report"].noted == {"background_jobs: output_file_path names a file that differs from the response": 1}


def test_a_response_that_is_also_a_file_is_no_problem(files: Path, adopt_naming: Naming) -> None:
    path = files / "out.xml"
    path.write_text("the same", encoding="utf-8")
    job = adopt_naming(str(path), response="the same")
    assert job["response"] == "the same"
    assert job["report"].noted == {}


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_a_file_that_is_no_text_is_kept_and_can_be_read(old: Path, files: Path, status: str) -> None:
    path = files / "out.xml"
    path.write_bytes(b"caf\xe9 " * 100_000 + b"\xc3")
    system = newest(0, files)
    system.tables["background_jobs"] = [
        {"id": "job_1", "session_id": "session_0", "prompt": "p", "status": status, "created_at": BEGIN,
         "output_file_path": str(path)}
    ]  # fmt: skip
    system.write(old)
    async with JobStore(old, migrate=True) as store:
        assert await store.jobs.read_response("job_1") == "caf\\xe9 " * 100_000 + "\\xc3"
        first, last = await store.jobs.attempts("job_1")
        assert first.output_file_path is not None
        assert copy_of(old, first.output_file_path) == path.read_bytes()
        assert last.outcome == status
        assert await store.sweep() == 0


def test_where_two_files_are_named_the_first_that_is_there_counts(old: Path, files: Path, adopt_naming: Naming) -> None:
    path = files / "out.xml"
    path.write_text("older", encoding="utf-8")
    job = adopt_naming(str(files / "gone"), xml_path=str(path))
    assert copy_of(old, job["output_file_path"]) == b"older"
    assert job["kept"]["output_file_path_problem"] == "names a file that is missing"


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("missing", "names a file that is missing"),
        ("below a file", "names a file that is missing"),
        ("folder", "names no regular file"),
        ("pipe", "names no regular file"),
        ("/dev/zero", "names no regular file"),
        ("/proc/self/environ", "names no regular file"),
        ("link", "names a link: it is not followed"),
        ("link to nothing", "names a link: it is not followed"),
        ("database", "names the database itself"),
        ("hard link to the database", "names the database itself"),
        ("answers/out.xml", "names a path that is not absolute"),
        ("../out.xml", "names a path that is not absolute"),
        ("/src/a\0b", "names no path"),
        ("/" + "x" * 300, "names a file that cannot be read (File name too long)"),
        (b"/bin/sh", "names no path"),
    ],
)  # fmt: skip
def test_what_is_no_regular_file_is_never_opened_and_noted(
    old: Path,
    files: Path,
    adopt_naming: Naming,
    kind: Any,  # noqa: ANN401
    problem: str,
) -> None:
    (files / "file").write_text("x", encoding="utf-8")
    os.mkfifo(files / "pipe")
    (files / "link").symlink_to(files / "file")
    (files / "link to nothing").symlink_to(files / "nothing")
    sqlite3.connect(old).close()
    (files / "hard link to the database").hardlink_to(old)
    places = {
        "missing": files / "gone.xml", "below a file": files / "file" / "x", "folder": files, "database": old,
        **{name: files / name for name in ("pipe", "link", "link to nothing", "hard link to the database")},
    }  # fmt: skip
    named = places.get(kind, kind)
    job = adopt_naming(named if isinstance(named, bytes) else str(named))
    assert job["output_file_path"] is None
    assert job["kept"]["output_file_path_problem"] == problem
    assert job["report"].noted == {f"background_jobs: output_file_path {problem}": 1}
    assert job["report"].files == 0
    assert not Path(f"{old}.outputs").exists()


def test_a_file_that_may_not_be_read_is_noted(
    public_folder: Path,
    run_as_nobody: Callable[[str, Path], str],
) -> None:
    secret, database = public_folder / "secret.xml", public_folder / "old.db"
    secret.write_text("secret", encoding="utf-8")
    secret.chmod(0)
    system = OldSystem({"background_jobs": JOBS[:-1]}, {"background_jobs": [_job_naming(secret)]})
    system.write(database)
    public_folder.chmod(0o777)
    database.chmod(0o666)
    told = run_as_nobody("from jobstore.migrate import Migrator\nprint(Migrator(path).run().adoption.noted)", database)
    assert told == "{'background_jobs: output_file_path names a file that cannot be read (Permission denied)': 1}"


def test_dots_and_links_on_the_way_to_a_file_are_the_systems_business(
    old: Path, files: Path, adopt_naming: Naming
) -> None:
    (files / "out.xml").write_text("found", encoding="utf-8")
    (files.parent / "way").symlink_to(files)
    job = adopt_naming(str(files.parent / "way" / ".." / "answers" / "out.xml"))
    assert copy_of(old, job["output_file_path"]) == b"found"


HUGE = f"""{PEAK_MEMORY}
import sys
from pathlib import Path
from jobstore.migrate import Migrator

before = peak_memory()
print(Migrator(Path(sys.argv[1])).run().adoption.bytes)
print(peak_memory() - before)
"""


def test_a_huge_file_is_copied_in_bounded_memory(old: Path, files: Path) -> None:
    path = files / "huge.xml"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    OldSystem({"background_jobs": JOBS[:-1]}, {"background_jobs": [_job_naming(path)]}).write(old)
    code, output, errors = run(
        HUGE,
        old,
    )
    assert code == 0, errors
    copied, grown = map(int, output.split())
    assert copied == 200_000_000
    assert grown < 50_000  # KiB


def test_without_room_for_a_file_nothing_is_changed_and_it_goes_on_when_there_is(
    old: Path, files: Path, adopt: Adopt
) -> None:
    system = newest(30, files)
    (files / "large").write_bytes(b"x" * 3_000_000)
    system.tables["background_jobs"][20]["output_file_path"] = str(files / "large")
    system.write(old)
    before = sorted(tables_of(old))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(DiskFull):
            Migrator(old).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tables_of(old)) == before
    for backup in old.parent.glob("*.backup-*"):
        backup.unlink()
    adopt()
    with closing(sqlite3.connect(old)) as connection:
        named = connection.execute("SELECT count(DISTINCT output_file_path) FROM job_attempts").fetchone()[0]
    assert len(list(Path(f"{old}.outputs").rglob("*.txt"))) == named + sum(
        row["prompt_file_path"] is not None for row in rows_of(old, "background_jobs", old=False)
    )
