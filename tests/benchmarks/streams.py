"""Benchmark of recorded streams: many at once in one process, and what recording adds to a piece and to the first one.

Run by hand: `python tests/benchmarks/streams.py`. A local server in a process of its own answers. The event loop's
worst stall is measured beside that of an idle loop and that of the same streams unrecorded, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from anthropic import AsyncAnthropic

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

from jobstore import JobStore
from jobstore.providers import Request, Text, adapter_of, recorded
from jobstore.testing import Answer, LLMServer
from jobstore.testing.llm_answers import LLMRequest
from jobstore.workers import Worker

MODEL = "claude-opus-5-5"
TICK = 0.005
"""Seconds between two looks at how late the event loop is."""
MIB = 1024 * 1024
PIECE = 200
"""Characters."""
PACE = 0.002
"""Seconds between two pieces of an answer at a model's pace, which is slower still: tens of tokens a second."""


class Watched(NamedTuple):
    """How a process was while something ran."""

    seconds: float
    stall: float
    """Seconds by which the event loop was late at worst."""
    growth: float
    """MiB by which its memory grew at most."""


def text_of(prompt: str) -> str:
    """Return the answer to a prompt, which says how many characters it is to have."""
    size = int(prompt.split(maxsplit=1)[0])
    return (f"{prompt}. " * (size // len(prompt) + 1))[:size]


async def serve() -> None:
    """Answer until the standard input ends."""

    def answer(request: LLMRequest) -> Answer:
        pace = PACE if "paced" in request.prompt else 0.0
        return Answer(text_of(request.prompt), chunk_size=PIECE, delay=pace)

    async with LLMServer(answer) as server:
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Run the server in a process of its own, and yield its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


async def watched(work: Callable[[], Awaitable[None]]) -> Watched:
    """Do something, and look meanwhile how late the event loop is and how much memory is taken."""
    process = psutil.Process()
    before = most = process.memory_info().rss
    worst = 0.0

    async def look() -> None:
        nonlocal most, worst
        while True:
            due = time.perf_counter() + TICK
            await asyncio.sleep(TICK)
            worst = max(worst, time.perf_counter() - due)
            most = max(most, process.memory_info().rss)

    looking = asyncio.create_task(look())
    started = time.perf_counter()
    await work()
    seconds = time.perf_counter() - started
    looking.cancel()
    await asyncio.wait([looking])
    return Watched(seconds, worst, (most - before) / MIB)


class Read(NamedTuple):
    """How long it took to read an answer, in seconds."""

    first: float
    """From the request to the first piece."""
    rest: float
    """From the first piece to the last."""
    end: float
    """From the last piece until all was done."""


async def timed(pieces: AsyncIterator[object], started: float) -> tuple[float, float]:
    """Read all pieces; return when the first and the last came."""
    first = last = 0.0
    async for _ in pieces:
        last = time.perf_counter() - started
        first = first or last
    return first, last


async def read_plainly(client: AsyncAnthropic, prompt: str) -> Read:
    """Read an answer without recording it."""
    started = time.perf_counter()
    async with contextlib.aclosing(adapter_of(client).stream(client, Request(model=MODEL, prompt=prompt))) as events:
        first, last = await timed((event async for event in events if isinstance(event, Text)), started)
    return Read(first, last - first, time.perf_counter() - started - last)


async def read_recorded(store: JobStore, client: AsyncAnthropic, prompt: str) -> Read:
    """Read an answer and record it; the job is there when the request begins."""
    async with store.jobs.record(prompt, task_type="t", api_type="claude", model_used=MODEL) as call:
        started = time.perf_counter()
        first, last = await timed(call.stream(client), started)
    return Read(first, last - first, time.perf_counter() - started - last)


async def read_by_sdk(client: AsyncAnthropic, prompt: str) -> Read:
    """Read an answer through the SDK alone, as existing code does, whether or not its client is recorded."""
    started = time.perf_counter()
    said: Any = {"model": MODEL, "max_tokens": 1000, "messages": [{"role": "user", "content": prompt}]}
    stream = await client.messages.create(**said, stream=True)
    first, last = await timed((event async for event in stream if event.type == "content_block_delta"), started)
    return Read(first, last - first, time.perf_counter() - started - last)


async def at_once(store: JobStore, client: AsyncAnthropic, streams: int, size: int) -> None:
    """Print how the process is while many streams run at once."""
    prompts = [f"{size} characters for {number}" for number in range(streams)]

    async def plainly() -> None:
        await asyncio.gather(*(read_plainly(client, prompt) for prompt in prompts))

    async def recorded() -> None:
        worker = Worker(store, concurrency=streams)
        worker.handles_llm(api_type="claude", client=client)
        for prompt in prompts:
            await store.jobs.enqueue(prompt, task_type="t", api_type="claude", model_used=MODEL)
        await worker.run(drain=True)

    await read_recorded(store, client, prompts[0])  # all is loaded, and connected
    idle = await watched(lambda: asyncio.sleep(1))
    plain, kept = await watched(plainly), await watched(recorded)
    print(f"{streams} streams at once of {size / 1000:g} kB each")
    print(f"{'':24}{'seconds':>10}{'worst stall':>14}{'memory':>12}{'ratio':>8}")
    for name, seen in (("an idle loop", idle), ("not recorded", plain), ("recorded", kept)):
        ratio = seen.seconds / plain.seconds
        print(f"{name:24}{seen.seconds:10.2f}{seen.stall * 1000:11.1f} ms{seen.growth:+8.1f} MiB{ratio:8.2f}")
    print(f"answers that are not whole: {await damaged(store)}")


async def damaged(store: JobStore) -> int:
    """Return how many jobs have not the answer that they should have, or no call that succeeded."""
    wrong = 0
    for row in await store.execute("SELECT id, prompt FROM background_jobs"):
        calls = await store.calls.list(row["id"])
        whole = await store.jobs.read_response(row["id"]) == text_of(row["prompt"])
        wrong += not whole or [call.status for call in calls] != ["succeeded"]
    return wrong


async def alone(store: JobStore, client: AsyncAnthropic, rounds: int, size: int, how: str) -> None:
    """Print what recording adds to the first piece, to each other and to the end, of streams one after the other."""
    existing = recorded(client, store, task_type="t")
    plain: list[Read] = []
    kept: list[Read] = []
    by_sdk: list[Read] = []
    tapped: list[Read] = []
    for number in range(rounds):
        prompt = f"{size} characters {how} {number}"
        plain.append(await read_plainly(client, prompt))
        kept.append(await read_recorded(store, client, prompt))
        by_sdk.append(await read_by_sdk(client, prompt))
        tapped.append(await read_by_sdk(existing, prompt))
    print(f"\n{rounds} streams one after the other of {size / 1000:g} kB each, {how}, medians in ms")
    compare(plain, kept, size)
    print("\nthe same, by an existing client and by the one that recorded() makes of it")
    compare(by_sdk, tapped, size)


def compare(plain: list[Read], kept: list[Read], size: int) -> None:
    """Print the medians of both, by the parts of an answer."""
    print(f"{'':24}{'not recorded':>14}{'recorded':>12}{'added':>10}")
    pieces = size / PIECE - 1
    for name, parts in (("the first piece", 1.0), ("each other piece", pieces), ("the end", 1.0)):
        field = {"the first piece": 0, "each other piece": 1, "the end": 2}[name]
        before, after = (statistics.median(each[field] for each in found) / parts * 1000 for found in (plain, kept))
        print(f"{name:24}{before:14.3f}{after:12.3f}{after - before:+10.3f}")


async def measure(streams: int, size: int, rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            serving() as url,
            JobStore(Path(folder, "jobs.db"), migrate=True) as store,
            AsyncAnthropic(api_key="any", base_url=url) as client,
        ):
            await at_once(store, client, streams, size)
            await alone(store, client, rounds, size, "all at once")
            await alone(store, client, max(1, rounds // 2), size // 10, f"paced, a piece each {PACE * 1000:g} ms")


def main(arguments: list[str]) -> None:
    """Measure and print, or serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="streams at once (default %(default)s)")
    parser.add_argument("--size", type=int, default=200_000, help="characters of each answer (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=100, help="streams one after the other (default %(default)s)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    asyncio.run(serve() if options.serve else measure(options.streams, options.size, options.rounds))


if __name__ == "__main__":
    main(sys.argv[1:])
