"""`jobstore promote`: from a file to PostgreSQL and back, with what an operator sees of it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.promotion.support import migrate

if TYPE_CHECKING:
    from tests.cli.conftest import Command


@pytest.fixture
def server(fresh_database: str) -> str:
    """Return the URL of an empty store on PostgreSQL."""
    migrate(fresh_database)
    return fresh_database


@pytest.fixture
def filled(command: Command) -> Command:
    command.enqueue("small")
    command.enqueue("x" * 100_000)
    return command


def test_a_file_goes_to_a_server_and_comes_back(filled: Command, server: str, tmp_path: Path) -> None:
    texts, back = tmp_path / "texts", tmp_path / "back.db"
    migrate(back)
    shown = filled.ok("promote", "--from", filled.database, "--to", server, "--to-outputs", texts)
    assert re.search(r"^background_jobs +2 +[0-9a-f]{16}$", shown, re.MULTILINE)
    *_, last = shown.splitlines()
    assert "now holds all that" in last
    assert last.endswith("every row and 1 large texts, 100.0 kB, read back and compared")
    assert "already held all" in filled.ok("promote", "--from", filled.database, "--to", server, "--to-outputs", texts)
    document = filled.json("promote", "--from", server, "--to", back, "--from-outputs", texts)
    assert document["tables"]["background_jobs"]["rows"] == 2
    assert (document["files"], document["bytes"], document["changed"]) == (1, 100_000, True)
    listed = [filled.json("list", "--db", url)["items"] for url in (filled.database, server, back)]
    assert listed[0] == listed[1] == listed[2]


def test_a_line_tells_of_each_stage_where_nobody_looks_on(filled: Command, server: str, tmp_path: Path) -> None:
    done = filled("promote", "--from", filled.database, "--to", server, "--to-outputs", tmp_path / "texts", "--json")
    assert done.stderr.splitlines() == [
        "jobstore: copying background_jobs: 2 done",
        "jobstore: copying large texts: 1 done",
        "jobstore: comparing background_jobs: 4 done",
        "jobstore: comparing large texts: 1 done",
    ]


def test_a_terminal_shows_bars(
    filled: Command, server: str, tmp_path: Path, in_terminal: Callable[..., tuple[int, str]]
) -> None:
    texts = tmp_path / "texts"
    code, shown = in_terminal("promote", "--from", filled.database, "--to", server, "--to-outputs", texts)
    assert code == 0
    assert "━━━" in shown
    assert re.search(r"comparing large texts.*1/1", shown)


@pytest.mark.parametrize(
    ("missing", "told"), [("--to-outputs", "'--to-outputs': there are large texts"), ("--to", "Missing option '--to'")]
)
def test_what_is_missing_is_named_as_it_is_typed(
    filled: Command, server: str, tmp_path: Path, missing: str, told: str
) -> None:
    options = {"--from": filled.database, "--to": server, "--to-outputs": tmp_path / "texts"}
    del options[missing]
    assert told in filled.misused("promote", *(word for option in options.items() for word in option))


def test_it_names_the_command_that_makes_the_target(filled: Command, tmp_path: Path) -> None:
    said = filled.refused("promote", "--from", filled.database, "--to", tmp_path / "new.db")
    assert f"python -m jobstore.migrate --db {tmp_path / 'new.db'}" in said


def test_passwords_are_not_shown(filled: Command) -> None:
    said = filled.refused("promote", "--from", filled.database, "--to", "postgresql://me:s3cret@127.0.0.1:1/jobs")
    assert "postgresql://me@127.0.0.1:1/jobs" in said
    assert "s3cret" not in said


def test_interrupted_it_tells_how_to_go_on(filled: Command, server: str, tmp_path: Path) -> None:
    """Waits for a lock of this test's own when the signal comes."""
    arguments = ["--from", filled.database, "--to", server, "--to-outputs", tmp_path / "texts"]
    import psycopg

    with psycopg.connect(server) as holder:
        holder.execute("LOCK TABLE background_jobs IN EXCLUSIVE MODE")
        process = subprocess.Popen(
            [sys.executable, "-m", "jobstore", "promote", *map(str, arguments)], stderr=subprocess.PIPE, text=True
        )
        with psycopg.connect(server, autocommit=True) as looking:
            while not looking.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
                pass
        process.send_signal(signal.SIGINT)
        holder.rollback()
        _, said = process.communicate(timeout=60)
    assert "jobstore: interrupted: run the same command again to go on" in said
    assert process.returncode != 0
    filled.ok("promote", *arguments)
