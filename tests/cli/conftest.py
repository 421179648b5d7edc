"""Fixtures of the command's tests: a migrated database, and ways to call the command."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner, Result

from jobstore import JobStore
from jobstore.cli import app
from jobstore.migrate import Migrator

T = TypeVar("T")


class Command:
    """Calls the command in this process, on one database."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.environment = {"JOBSTORE_URL": str(database), "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}

    def __call__(self, *args: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(
            app, list(map(str, args)), input=stdin, env=self.environment, catch_exceptions=False, prog_name="jobstore"
        )

    def ok(self, *args: object, stdin: bytes | None = None) -> str:
        result = self(*args, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *args: object) -> Any:  # noqa: ANN401 - whatever the document is
        return json.loads(self.ok(*args, "--json"))

    def refused(self, *args: object, stdin: bytes | None = None) -> str:
        """Return the one line on the standard error of something that is wrong with the data."""
        result = self(*args, stdin=stdin)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("jobstore: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    def misused(self, *args: object, stdin: bytes | None = None) -> str:
        """Return what is said of a wrong usage, without frames and line breaks."""
        result = self(*args, stdin=stdin)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        return " ".join(result.stderr.replace("│", " ").split())

    def enqueue(self, prompt: str = "p", *options: object, task_type: str = "task", api_type: str = "api") -> str:
        return self.ok("enqueue", "--task-type", task_type, "--api-type", api_type, *options, "--", prompt).strip()


@pytest.fixture
def migrated(database: Path) -> Path:
    Migrator(database).run()
    return database


@pytest.fixture
def command(migrated: Path) -> Command:
    return Command(migrated)


@pytest.fixture
def act(migrated: Path) -> Callable[[Callable[[JobStore], Awaitable[T]]], T]:
    """Do something with the open store, as another program would."""

    def run(action: Callable[[JobStore], Awaitable[T]]) -> T:
        async def work() -> T:
            async with JobStore(migrated) as store:
                return await action(store)

        return asyncio.run(work())

    return run


@pytest.fixture
def environment(migrated: Path) -> dict[str, str]:
    return {**os.environ, "JOBSTORE_URL": str(migrated), "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def run_process(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the command in a process of its own."""

    def run(*args: object, module: str = "jobstore", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", module, *map(str, args)]
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, timeout=60, check=False)

    return run


@pytest.fixture
def in_terminal(environment: dict[str, str]) -> Callable[..., tuple[int, str]]:
    """Run the command in a terminal of 90 columns; return its exit code and what was shown."""
    pty = pytest.importorskip("pty", reason="Windows has no pseudo terminals")
    environment |= {"TERM": "xterm-256color", "COLUMNS": "90"}
    del environment["NO_COLOR"]

    def run(*args: object) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "jobstore", *map(str, args)]
        with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # how Linux tells that the last program has left the terminal
                while part := os.read(ours, 65536):
                    shown += part
            os.close(ours)
        return process.returncode, shown.decode()

    return run
