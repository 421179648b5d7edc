"""The README's Python runs as it stands, and its tables name files that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobstore.databases import find_database

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SAID = [
    "Hello, world!",
    "",  # a module of the reader's, which `jobstore work` runs
    "paused\n1",
    "First, …",
    "completed Hello 1",
    "Hello! completed 200 0",
    "Hello! (stop)",
    "idle",
    "completed Hello!",
    "Hello!",
    "1\nTrue canceled",
]


@pytest.mark.parametrize(("block", "said"), list(zip(BLOCKS, SAID, strict=True)), ids=SAID)
def test_a_block_of_the_readme_runs_as_pasted(
    request: pytest.FixtureRequest, tmp_path: Path, block: str, said: str
) -> None:
    environment = dict(os.environ)
    if "postgresql://" in block:
        environment["JOBSTORE_URL"] = request.getfixturevalue("fresh_database")
        find_database(environment["JOBSTORE_URL"]).migrator().run()
    command = [sys.executable, "-W", "error", "-c", block]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said


def test_running_code_stands_within_the_first_forty_lines() -> None:
    assert "```python" in "\n".join(README.splitlines()[:40])
    assert "asyncio.run(main())" in "\n".join(README.splitlines()[:40])


def test_each_link_within_the_readme_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = re.findall(r"\]\(#([\w-]+)\)", README)
    assert len(linked) > 10
    assert [anchor for anchor in linked if anchor not in anchors] == []


def test_the_files_that_the_readme_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+|examples/[\w/.]+)`|\]\(([\w/.]+)\)", README)
    paths = [first or second for first, second in named]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
