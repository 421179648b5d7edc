"""The short examples run as they stand, and say what they are to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("record_one_call.py", ["Hello, world!", "anthropic succeeded 200 stop "]),
        ("recorded_client.py", ["Hello, world!", "completed claude-haiku-5-5 Hello, world! "]),
        (
            "three_providers.py",
            [
                "claude · Hello from claude-haiku-5-5!",
                "openai · Hello from gpt-6-luna!",
                "gemini · Hello from gemini-3.8-flash!",
            ],
        ),
        ("tail_an_answer.py", ["One piece after the other, as they come. (completed)"]),
    ],
)
def test_the_example_runs(tmp_path: Path, script: str, said: list[str]) -> None:
    command = [sys.executable, "-W", "error", EXAMPLES / script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(said)
    assert all(line.startswith(expected) for line, expected in zip(lines, said, strict=True)), done.stdout
