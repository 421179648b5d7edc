"""The benchmarks run: small here, so that they do not rot. Their figures are read by people, never asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("group_commit.py", ["--jobs", "128", "--rounds", "1"], "lone caller, median"),
        ("claim_time.py", ["--jobs", "10000"], "not filtered"),
        (
            "workers.py",
            ["--jobs", "128", "--rounds", "1", "--wakes", "10", "--cancels", "5", "--idle", "1"],
            "an idle worker's process",
        ),
        ("streams.py", ["--streams", "8", "--size", "20000", "--rounds", "5"], "answers that are not whole: 0"),
        ("postgres.py", ["--jobs", "128", "--rounds", "1", "--wakes", "10"], "handler in another process"),
    ],
)
def test_the_benchmark_runs_and_prints_its_ratios(script: str, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, HERE / script, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
    assert said in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--seconds", "1.5"], id="each job at most once"),
        pytest.param(["--seconds", "10", "--max-ratio", "2"], id="and even shares", marks=pytest.mark.full),
    ],
)
def test_processes_share_one_file(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "processes.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jobs done twice: 0" in done.stdout
