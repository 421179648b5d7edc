"""Several stores on one database at the same time: what each is answered is true for all of them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

from jobstore import Claim, Heartbeat, Job, JobStore
from jobstore.operations import leasing

from .support import enqueue

HOUR = 3_600_000


async def enqueue_many(store: JobStore, count: int) -> list[Job]:
    return await asyncio.gather(*(enqueue(store) for _ in range(count)))


async def test_heartbeats_never_collide_with_full_batches_of_completions_and_claims(
    database: Path | str,
) -> None:
    async with (
        JobStore(database, migrate=True) as working,
        JobStore(database) as first,
        JobStore(database) as second,
    ):
        await enqueue_many(working, 200)
        claims = await working.jobs.claim("worker", limit=200, lease=3600)
        held, passing = claims[:100], claims[100:]
        ended: set[str] = set()
        rounds = 0

        async def work() -> None:
            while rounds < 60 or passing:
                part = [passing.pop() for _ in range(min(10, len(passing)))]
                ended.update(claim.job_id for claim in part)
                await asyncio.gather(*(working.jobs.complete(claim, "done") for claim in part))
                if rounds < 60:
                    await enqueue_many(working, 8)
                passing.extend(await working.jobs.claim("worker", limit=8, lease=3600))

        async def beat(beating: JobStore) -> None:
            nonlocal rounds
            dice = random.Random(rounds)  # noqa: S311 - an order
            while not worked.done():
                chosen = held + passing
                dice.shuffle(chosen)
                check(await beating.jobs.heartbeat(chosen, lease=3600))
                rounds += 1

        async def beat_aside() -> None:
            engine = first.jobs._backend.engine
            while not worked.done():
                check(await engine.write_aside(leasing.heartbeat, keys(held), HOUR))

        def check(beats: list[Heartbeat]) -> None:
            assert {beat.job_id for beat in beats if not beat.extended} <= ended

        worked = asyncio.ensure_future(work())
        await asyncio.gather(worked, beat(first), beat(second), beat_aside())
        await asyncio.gather(*(first.jobs.complete(claim, "done") for claim in held))


def keys(claims: list[Claim]) -> list[tuple[str, int]]:
    return [(claim.job_id, claim.attempt) for claim in claims]


async def test_stores_that_claim_at_the_same_time_get_each_job_once(database: Path | str) -> None:
    jobs = 2000
    claimed: list[str] = []

    async def claim(store: JobStore, dice: random.Random) -> None:
        while len(claimed) < jobs:
            claims = await store.jobs.claim("worker", limit=dice.randint(1, 10), lease=3600)
            claimed.extend(claim.job_id for claim in claims)

    async with JobStore(database, migrate=True) as one, JobStore(database) as two, JobStore(database) as three:
        enqueued = await asyncio.gather(*(enqueue(one, task_type=f"task {number % 3}") for number in range(jobs)))
        dice = random.Random(3)  # noqa: S311 - sizes
        await asyncio.gather(*(claim(store, dice) for store in (one, two, three) for _ in range(4)))
        assert Counter(claimed) == Counter(job.id for job in enqueued)
        attempts = await one.execute("SELECT count(*) AS n FROM job_attempts")
        assert attempts[0]["n"] == jobs
