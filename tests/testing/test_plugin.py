"""The fixtures that pytest finds wherever jobstore is installed, in a run of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
from jobstore import JobStatus, JobStore
from jobstore.testing import FakeClock, LLMServer, assert_enqueued, drain
from jobstore.workers import JobContext, Worker


MARK
async def test_store_and_clock(jobstore_store: JobStore, jobstore_clock: FakeClock) -> None:
    job = await jobstore_store.jobs.enqueue("p", task_type="t", api_type="a")
    assert await assert_enqueued(jobstore_store, task_type="t") == job
    await jobstore_store.jobs.claim("w", lease=30)
    jobstore_clock.advance(31)
    [again] = await jobstore_store.jobs.claim("w")
    assert again.attempt == 2


MARK
async def test_server(jobstore_llm_server: LLMServer) -> None:
    assert jobstore_llm_server.url.startswith("http://127.0.0.1:")
"""


@pytest.mark.parametrize(
    ("mark", "options"),
    [
        pytest.param("", ["-o", "asyncio_mode=auto"], id="pytest-asyncio, auto"),
        pytest.param("@pytest.mark.asyncio", [], id="pytest-asyncio, strict"),
    ],
)
def test_the_fixtures_are_there_without_a_word(tmp_path: Path, mark: str, options: list[str]) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS.replace("MARK", mark))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "jobstore.testing.plugin", "-p", "no:jobstore", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_run_without_them_imports_nothing_more_than_the_package() -> None:
    code = "import sys, jobstore.testing.plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jobstore.workers", "starlette", "uvicorn", "psycopg", "obstore"} & set(loaded)
