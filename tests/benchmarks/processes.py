"""Benchmark of processes that share one file: how evenly they get on, and their sum beside a single process.

Run by hand: `python tests/benchmarks/processes.py [--seconds 10] [--processes 4]`. It ends with code 1 if a job
was done twice, a process met `DatabaseBusy`, or the busiest did more than `--max-ratio` times what the least busy did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobstore import JobStore, NewJob

JOBS_AHEAD = 8_000
"""Per process and second; more than any of them can do, so that jobs are left over."""


async def fill(path: Path, jobs: int) -> None:
    """Make a store with so many idle jobs."""
    async with JobStore(path, migrate=True, durability="normal") as store:
        for start in range(0, jobs, 10_000):
            count = min(10_000, jobs - start)
            await store.jobs.enqueue_many(
                NewJob(prompt="Say hello", task_type="task", api_type="api") for _ in range(count)
            )


async def work(path: Path, start: float, seconds: float, callers: int) -> None:
    """Claim and complete from the common start on, then print what was done."""
    done: list[str] = []
    async with JobStore(path) as store:

        async def call() -> None:
            while time.time() < start + seconds:
                for claim in await store.jobs.claim("worker"):
                    await store.jobs.complete(claim, "Hello")
                    done.append(claim.job_id)

        await asyncio.sleep(max(0.0, start - time.time()))
        await asyncio.gather(*(call() for _ in range(callers)))
    print(json.dumps(done))


def measure(folder: Path, processes: int, seconds: float, callers: int) -> list[list[str]]:
    """Return the ids that each process completed."""
    path = folder / f"{processes}.db"
    asyncio.run(fill(path, int(JOBS_AHEAD * processes * seconds)))
    start = time.time() + 2.0
    command = [sys.executable, __file__, "--worker", str(path), str(start), str(seconds), str(callers)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("a process failed")
    return [json.loads(output) for output in outputs]


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--callers", type=int, default=16, help="concurrent callers in each process")
    parser.add_argument("--max-ratio", type=float, default=float("inf"), help="of the busiest to the least busy")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        [alone] = measure(Path(name), 1, options.seconds, options.callers)
        shares = measure(Path(name), options.processes, options.seconds, options.callers)
    counts = [len(share) for share in shares]
    total = sum(counts)
    twice = total - len({job_id for share in shares for job_id in share})
    ratio = max(counts) / max(1, min(counts))
    print(f"one process: {len(alone) / options.seconds:,.0f} jobs/s")
    print(f"{options.processes} processes: {', '.join(f'{count / options.seconds:,.0f}' for count in counts)} jobs/s")
    print(f"sum {total / options.seconds:,.0f} jobs/s, {total / max(1, len(alone)):.2f} of one process's")
    print(f"busiest to least busy {ratio:.2f}; jobs done twice: {twice}")
    return int(twice > 0 or ratio > options.max_ratio)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        asyncio.run(work(Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
    else:
        sys.exit(main(sys.argv[1:]))
