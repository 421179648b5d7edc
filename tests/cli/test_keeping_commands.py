"""`jobstore backup`, `restore` and `reset`, as an operator sees them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobstore import JobStore
from tests.promotion.support import migrate

if TYPE_CHECKING:
    from tests.cli.conftest import Command

LARGE = "x" * 100_000


@pytest.fixture
def filled(command: Command) -> Command:
    command.enqueue("small")
    command.enqueue(LARGE)
    return command


def backups_of(command: Command) -> list[Path]:
    return sorted(command.database.parent.glob("*.backup-*Z"))


def test_a_copy_is_made_told_of_and_put_back(filled: Command) -> None:
    shown = filled.ok("backup")
    [made] = backups_of(filled)
    assert shown == f"backed up to {made}, with 1 large texts, 100.0 kB, and read back\n"
    filled.enqueue("later")
    shown = filled.ok("restore", made).splitlines()
    assert shown[0].startswith(f"what was there is kept as {filled.database}.backup-before-restore-")
    assert shown[1].startswith(f"its large texts are kept in {filled.database}.backup-before-restore-")
    assert shown[2] == f"restored {filled.database} with 1 large texts, 100.0 kB"
    assert len(filled.json("list")["items"]) == 2


def test_as_json_and_into_a_folder_of_which_some_are_kept(filled: Command, tmp_path: Path) -> None:
    documents = [filled.json("backup", tmp_path / "copies", "--compress", "--keep", 2) for _ in range(3)]
    assert documents[2]["removed"] == [documents[0]["path"]]
    assert (documents[2]["texts"], documents[2]["bytes"], documents[2]["damaged"]) == (1, 100_000, [])
    restored = filled.json("restore", documents[2]["path"], "--db", tmp_path / "other.db")
    assert (restored["path"], restored["kept"]) == (str(tmp_path / "other.db"), None)


def test_progress_is_told_where_nobody_looks_on(filled: Command) -> None:
    stages = [line.split(":")[1].strip() for line in filled("backup").stderr.splitlines()]
    assert stages == ["copying the database", "copying large texts", "reading large texts back"]


def test_texts_that_are_lost_are_named_and_the_exit_code_says_so(filled: Command) -> None:
    [lost] = [path for path in Path(f"{filled.database}.outputs").rglob("*.txt") if path.is_file()]
    lost.unlink()
    done = filled("backup")
    assert done.exit_code == 1
    assert f"missing or damaged in the store: prompts/{lost.parent.name}/{lost.name}" in done.stderr
    [made] = backups_of(filled)
    refused = filled("restore", made)
    assert refused.exit_code == 1
    assert "--leave-damaged" in refused.stderr
    assert filled("restore", made, "--leave-damaged").exit_code == 0


def test_a_reset_asks_for_the_name(filled: Command) -> None:
    refused = filled("reset", stdin=b"another\n")
    assert refused.exit_code == 2
    assert "'another' is not jobs.db: nothing was deleted" in refused.stderr
    assert filled("reset", stdin=b"").exit_code == 1
    assert backups_of(filled) == []
    done = filled("reset", stdin=b"jobs.db\n")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{filled.database} is empty now"
    [made] = backups_of(filled)
    assert f"backed up to {made}" in done.stderr
    assert filled.json("list")["items"] == []


def test_with_yes_it_does_not_ask(filled: Command) -> None:
    document = filled.json("reset", "--yes")
    assert document["backup"]["path"] == str(backups_of(filled)[0])


def test_nothing_is_done_to_a_database_that_is_in_use(filled: Command) -> None:
    filled.ok("backup")
    [made] = backups_of(filled)

    async def attempt() -> list[tuple[int, str]]:
        async with JobStore(filled.database):
            results = [await asyncio.to_thread(filled, *words) for words in (("restore", made), ("reset", "--yes"))]
            return [(result.exit_code, result.stderr) for result in results]

    for code, errors in asyncio.run(attempt()):
        assert code == 1
        assert f"{filled.database} is open in" in errors
        assert "stop the programs that use it" in errors


def test_on_postgresql_only_a_reset_is_done(command: Command, fresh_database: str) -> None:
    migrate(fresh_database)
    for words in (("backup",), ("restore", command.database)):
        refused = command(*words, "--db", fresh_database)
        assert refused.exit_code == 2
        assert "pg_dump" in refused.stderr
        assert "jobstore promote" in refused.stderr
    name = fresh_database.partition("?")[0].rpartition("/")[2]
    done = command("reset", "--db", fresh_database, stdin=f"{name}\n".encode())
    assert done.exit_code == 0, done.stderr
    assert "no backup is made on PostgreSQL: run pg_dump before" in done.stderr
