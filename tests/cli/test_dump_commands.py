"""`jobstore dump` and `jobstore load`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import JobStore
from jobstore.formats import FORMATS
from jobstore.migrate import Migrator
from jobstore.operations.promotion import TABLES
from tests.processes.support import finish, run, spawn
from tests.promotion.support import fill, rows_of

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Act = Callable[..., Any]
Run = Callable[..., subprocess.CompletedProcess[bytes]]
NAMES = [table.name for table in TABLES]
ANOTHER = """
    import sys
    from pathlib import Path
    from jobstore.cli.dumping import written

    with written(Path(sys.argv[1])) as file:
        file.write(b"another")
        print("writing", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.db"
    Migrator(path).run()
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_holds_a_store_and_fills_another(
    command: Command, act: Act, tmp_path: Path, other: Path, name: str
) -> None:
    act(fill)
    folder = tmp_path / "dump"
    counts = command.json("dump", "--to", folder, "--format", name, "--texts", "inline")["tables"]
    assert list(counts) == NAMES
    assert {path.name for path in folder.iterdir()} == {f"{table}.{name}" for table in NAMES}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    loaded = command.json("load", folder, "--db", other)
    assert loaded == {"tables": counts}
    before = act(rows_of)
    command.database = other
    assert command.json("load", folder, "--db", other, "--skip-existing") == {"tables": dict.fromkeys(NAMES, 0)}

    async def look() -> dict[str, Any]:
        async with JobStore(other) as store:
            return await rows_of(store)

    assert asyncio.run(look()) == before


def test_one_table_goes_through_a_pipe(command: Command, run_process: Run, other: Path) -> None:
    job_id = command.enqueue("a prompt\nof two lines")
    done = run_process("dump", "background_jobs")
    assert json.loads(done.stdout)["prompt"] == "a prompt\nof two lines"
    assert done.stderr == b"jobstore: background_jobs: 1 row\n"
    loading = [sys.executable, "-m", "jobstore", "load", "-", "--table", "background_jobs", "--db", other]
    loaded = subprocess.run(loading, input=done.stdout, capture_output=True, check=True)
    assert loaded.stdout == b"background_jobs: 1 row\n"
    assert command.json("show", job_id, "--db", other)["prompt"] == "a prompt\nof two lines"


def test_one_table_may_be_a_file_whose_name_tells_the_format(command: Command, tmp_path: Path, other: Path) -> None:
    command.enqueue("p")
    path = tmp_path / "jobs.csv"
    assert command.ok("dump", "background_jobs", "--to", path) == "background_jobs: 1 row\n"
    assert path.read_text().startswith("id,session_id,")
    assert "of which table is" in command.misused("load", path, "--db", other)
    assert command.ok("load", path, "--table", "background_jobs", "--db", other) == "background_jobs: 1 row\n"
    assert "is not empty" in command.misused("load", path, "--table", "background_jobs", "--db", other)
    assert command.ok("load", path, "--table", "background_jobs", "--db", other, "--replace").endswith("1 row\n")


def test_a_bad_line_is_named(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "key_value_store.jsonl"
    path.write_text('{"key": "a", "updated_at": 1, "value": "1"}\nsecret\n')
    said = command.refused("load", path)
    assert "key_value_store, line 2: it is no JSON object" in said
    assert "secret" not in said


def test_what_is_there_stays_and_nothing_half_written_is_left(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    command.ok("dump", "--to", folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "is there already" in command.misused("dump", "--to", folder)
    (folder / "sessions.jsonl").unlink()
    assert "is there already" in command.misused("dump", "--to", folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == {
        path: data for path, data in before.items() if path.name != "sessions.jsonl"
    }


def test_a_place_that_is_no_folder_is_told(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for target in (file, file / "sessions.jsonl", tmp_path / ("x" * 300)):
        assert "cannot be used" in command.refused("dump", "sessions", "--to", target)


def test_what_another_dump_is_writing_is_left_alone(command: Command, tmp_path: Path) -> None:
    """Once it took the other's unfinished file for its own, and gave it the name of a whole one."""
    target = tmp_path / "sessions.jsonl"
    process = spawn(ANOTHER, target)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    command.ok("dump", "sessions", "--to", target)
    assert target.read_bytes() == b""  # as there are none
    assert finish(process, "\n")[0] == 0
    assert target.read_bytes() == b"another"
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
def test_a_full_disk_leaves_no_file(command: Command, tmp_path: Path) -> None:
    """The limit on the size of files is a full disk for one process alone."""
    for _ in range(3):
        command.enqueue("x" * 60_000)
    program = """
        import resource, signal, sys
        from jobstore.cli import app
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
        app(sys.argv[1:])
    """
    code, _, errors = run(program, "dump", "background_jobs", "--to", tmp_path / "dump", "--db", command.database)
    assert code == 1
    assert f"no room in {tmp_path / 'dump'}" in errors
    assert list((tmp_path / "dump").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dump", "sessions", "lanes", "--to", "x"], "lanes"),
        (["dump", "sessions", "pauses"], "name a folder"),
        (["dump", "sessions", "--format", "parquet"], "no Parquet"),
        (["dump", "sessions", "--format", "xml"], "must be one of jsonl, csv, parquet"),
        (["dump", "sessions", "--texts", "all"], "--texts"),
        (["load", "nowhere.jsonl", "--table", "jobs"], "of which table"),
        (["load", "a.jsonl", "b.jsonl", "--table", "sessions"], "--table"),
        (["load", "sessions.jsonl", "pauses.csv"], "of all files"),
        (["load", ".", "--skip-existing", "--replace"], "give one of them"),
        (["load", "."], "one file for each table"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in command.misused(*arguments)
    assert not (tmp_path / "x").exists() or list((tmp_path / "x").iterdir()) == []


def test_a_file_that_is_not_there_is_named(command: Command, tmp_path: Path) -> None:
    assert "sessions.jsonl" in command.refused("load", tmp_path / "sessions.jsonl")


def test_without_the_extra_parquet_says_what_to_install(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstore.formats.choosing.find_spec", lambda _name: None)
    said = command.misused("dump", "sessions", "--format", "parquet", "--to", tmp_path / "dump")
    assert 'pip install "jobstore[parquet]"' in said


def test_neither_command_imports_what_it_does_not_use() -> None:
    program = "import sys, jobstore, jobstore.cli, jobstore.formats; print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"
