"""Running pieces of Python in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
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
    """Wait for a process, which must end by itself; return its code, output and errors."""
    try:
        output, errors = process.communicate(text, timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        raise AssertionError(f"it hung; it had said: {output}{errors}") from None
    return process.returncode, output, errors


def run(code: str, *arguments: object) -> tuple[int, str, str]:
    """Run a piece of code in a process of its own."""
    return finish(spawn(code, *arguments))
