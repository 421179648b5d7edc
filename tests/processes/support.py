"""Running pieces of Python in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

PEAK_MEMORY = """
def peak_memory():  # in KiB; getrusage would tell of the parent, where that had more when it forked
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
"""
"""A function for pieces of code, of Linux alone."""


def spawn(code: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a process that runs a piece of code, with warnings shown and its streams as pipes."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "default"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd,
    )


def finish(process: subprocess.Popen[str], text: str | None = None, within: float = 60) -> tuple[int, str, str]:
    """Wait for a process, which must end by itself; return its code, and what is unread of its output and errors."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with ThreadPoolExecutor() as threads:
        # Not by `communicate`: it would miss what was read ahead with the lines that the test has read.
        reading = [threads.submit(stream.read) for stream in (process.stdout, process.stderr)]
        with suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(text or "")
        try:
            process.wait(within)
            hung = False
        except subprocess.TimeoutExpired:
            process.kill()
            hung = True
        output, errors = (read.result() for read in reading)
    process.stdout.close()
    process.stderr.close()
    assert not hung, f"it hung; it had said: {output}{errors}"
    return process.wait(), output, errors


def run(code: str, *arguments: object) -> tuple[int, str, str]:
    """Run a piece of code in a process of its own."""
    return finish(spawn(code, *arguments))
