"""Keeps leases and workers alive from a thread of its own, so that a blocked event loop does not lose its jobs.

One statement renews all claims, through the store's own writing connection, between two batches: a second
connection would wait behind the first one's batches (up to 640 ms, measured; at most 0.5 ms this way).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jobstore.clock import from_milliseconds, seconds, to_milliseconds
from jobstore.engines.base import Engine, Request
from jobstore.errors import JobStoreError
from jobstore.models import Claim, Heartbeat
from jobstore.operations import leasing, registering
from jobstore.operations.registering import Registration

logger = logging.getLogger(__name__)

_NOT_KEPT = contextlib.nullcontext()
BEATS_PER_LEASE = 3
"""So that two beats in a row may fail before a lease ends."""
LOOK_SECONDS = 0.05
"""Between looks for cancellations, however much is committed."""
LOOK_AGAIN_SECONDS = 0.5
"""Between looks when nothing is heard: a cancellation may have come before its claim was known here, or unheard."""
BLOCKED_SECONDS = 5.0
"""For which an event loop does not answer before that is said."""
LIFETIME = 15.0
"""Seconds that a worker counts as alive after it was last heard of, which it is three times as often."""


@dataclass(slots=True)
class _Kept:
    lease: float
    loop: asyncio.AbstractEventLoop
    lost: Callable[[], None]
    cancel_requested: Callable[[], None]
    told: bool = False
    ending: bool = False


class LeaseKeeper:
    """Renews the leases of the claims that it is given, until they are forgotten.

    Args:
        engine: Carries out the heartbeats.

    Attributes:
        beats: How often all leases were renewed.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._present: dict[object, tuple[Registration, Callable[[], int]]] = {}
        self._renewed = 0.0  # when that workers live was last told
        self._renewing = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None
        self._planned = 0.0  # seconds: the next beat is no further away
        self._closed = False
        self._watcher: asyncio.Task[None] | None = None
        self._home: asyncio.AbstractEventLoop | None = None  # where handlers run
        self._asked: float | None = None  # since when the answer of that loop is waited for
        self._said_blocked = False
        self._something = asyncio.Event()  # there are leases to keep, in the store's own event loop
        self.beats = 0

    def keep(self, claim: Claim, lease: float, lost: Callable[[], None], cancel_requested: Callable[[], None]) -> None:
        """Renew a claim's lease from now on, for `lease` seconds at a time.

        Args:
            claim: Whose lease.
            lease: Seconds.
            lost: Called in the running event loop if the attempt has ended.
            cancel_requested: Called in the running event loop, once, if someone wants the job canceled.
        """
        kept = _Kept(lease, asyncio.get_running_loop(), lost, cancel_requested)
        with self._lock:
            self._kept[claim.job_id, claim.attempt] = kept
            self._start_once(kept.loop)
            comes_in_time = self._planned <= lease / BEATS_PER_LEASE
        self._something.set()
        if not comes_in_time:  # else the thread sleeps on: to wake it for each claim cost more than the claim
            self._poke()

    async def confirm(self, claims: Sequence[Claim], lease: int) -> list[Claim]:
        """Return those of some new claims that are held still: all, unless they took longer to arrive than a lease.

        Prompts may be read slowly, another task may block the event loop, the machine may be suspended.

        Args:
            claims: What was claimed.
            lease: Milliseconds.
        """
        now = self._engine.clock()
        if all(to_milliseconds(claim.lease_expires_at) > now for claim in claims):
            return list(claims)
        keys = [(claim.job_id, claim.attempt) for claim in claims]
        beats: list[Heartbeat] = await self._engine.write(Request(leasing.heartbeat, (keys, lease), finishing=True))
        if lost := sum(not beat.extended for beat in beats):
            logger.warning("%d of %d claims were lost before they arrived", lost, len(claims))
        renewed = {"lease_expires_at": from_milliseconds(now + lease)}
        held = zip(claims, beats, strict=True)
        return [claim.model_copy(update=renewed) for claim, beat in held if beat.extended]

    def forget(self, claim: Claim) -> None:
        """Renew a claim's lease no more."""
        with self._lock:
            self._kept.pop((claim.job_id, claim.attempt), None)

    def announce(self, worker: Registration, running: Callable[[], int]) -> object:
        """Tell from now on that a worker lives, and how many jobs it runs; return what to withdraw it by."""
        key = object()
        with self._lock:
            self._present[key] = worker, running
            self._start_once(asyncio.get_running_loop())
        self._poke()
        return key

    async def withdraw(self, key: object) -> bool:
        """Tell no more that a worker lives, once this returns; return whether another of its id does, in this store."""
        with self._lock:
            withdrawn = self._present.pop(key, None)
        while self._renewing:  # noqa: ASYNC110 - it is the thread's, and over in a moment
            await asyncio.sleep(0.001)
        with self._lock:
            return withdrawn is not None and any(other.id == withdrawn[0].id for other, _ in self._present.values())

    def ending(self, claim: Claim) -> contextlib.AbstractContextManager[None]:
        """Say nothing of a claim while its holder ends it; forget it if that succeeds."""
        kept = self._kept.get((claim.job_id, claim.attempt))
        return _NOT_KEPT if kept is None else self._ending(claim, kept)

    @contextlib.contextmanager
    def _ending(self, claim: Claim, kept: _Kept) -> Iterator[None]:
        with self._lock:
            kept.ending = True
        try:
            yield
        except BaseException:
            kept.ending = False
            raise
        self.forget(claim)

    async def close(self) -> None:
        """End the thread. Doing it twice is fine."""
        if self._watcher is not None:
            self._watcher.cancel()
        with self._lock:
            self._closed = True
            self._kept.clear()
            self._present.clear()
            thread = self._thread
        self._poke()
        while thread is not None and thread.is_alive():  # noqa: ASYNC110 - a thread's end sets no event
            # For a beat at most; a join would block the loop that the thread may be answering.
            await asyncio.sleep(0.001)

    def _start_once(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="jobstore-leases", daemon=True)
            self._thread.start()
            self._watcher = loop.create_task(self._watch())
            self._home = loop

    def _poke(self) -> None:
        loop, changed = self._loop, self._changed
        if loop is not None and changed is not None:
            with contextlib.suppress(RuntimeError):  # the thread has just ended
                loop.call_soon_threadsafe(changed.set)

    async def _watch(self) -> None:
        """Look for cancellations whenever anyone may have asked for one: the next beat may be far away."""
        while True:
            await self._something.wait()
            token = self._engine.work.count
            with self._lock:
                keys = [key for key, kept in self._kept.items() if not kept.told]
            try:
                wanted = await self._engine.read(leasing.cancel_requests, keys) if keys else []
            except JobStoreError as error:  # the next beat tells
                logger.warning("looking for cancellations failed: %s", type(error).__name__)
                wanted = []
            for job_id, attempt in wanted:
                self._tell(Heartbeat(job_id=job_id, attempt=attempt, extended=True, cancel_requested=True))
            await asyncio.sleep(LOOK_SECONDS)
            if self._kept:
                await self._engine.wait(self._engine.work, token, LOOK_AGAIN_SECONDS)
            else:
                self._something.clear()

    def _run(self) -> None:
        asyncio.run(self._beat_until_closed())

    async def _beat_until_closed(self) -> None:
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._renewed = self._loop.time()
        next_beat = self._loop.time() + self._interval()
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_beat):
                    await self._changed.wait()
            self._changed.clear()
            now = self._loop.time()
            if now >= next_beat:
                await self._beat()
                await self._renew_workers(self._loop.time())
                self._look_after_home(self._loop.time())
                next_beat = now + self._interval()
            else:  # a shorter lease may have come
                next_beat = min(next_beat, now + self._interval())

    def _interval(self) -> float:
        with self._lock:
            shortest = min((kept.lease for kept in self._kept.values()), default=LIFETIME)
            shortest = min(shortest, LIFETIME) if self._present else shortest
            self._planned = shortest / BEATS_PER_LEASE
            return self._planned

    async def _beat(self) -> None:
        with self._lock:
            by_lease: dict[float, list[tuple[str, int]]] = {}
            for key, kept in self._kept.items():
                by_lease.setdefault(kept.lease, []).append(key)
        for lease, keys in by_lease.items():
            try:
                answers = await self._engine.write_aside(leasing.heartbeat, keys, seconds(lease))
            except Exception as error:  # noqa: BLE001 - without this thread, all leases would end
                logger.warning("heartbeat of %d claims failed, trying again: %s", len(keys), type(error).__name__)
                continue
            for beat in answers:
                self._tell(beat)
        self.beats += 1

    async def _renew_workers(self, now: float) -> None:
        """Tell that the workers live, if it is time to: leases may be renewed far more often."""
        if now - self._renewed < LIFETIME / BEATS_PER_LEASE * 0.9:
            return
        self._renewed = now
        with self._lock:
            present = list(self._present.values())
            self._renewing = bool(present)
        for worker, running in present:
            try:
                await self._engine.write_aside(registering.renew, worker, running(), seconds(LIFETIME))
            except Exception as error:  # noqa: BLE001 - without this thread, all leases would end
                logger.warning("telling that worker %s lives failed: %s", worker.id, type(error).__name__)
        self._renewing = False

    def _look_after_home(self, now: float) -> None:
        """Say so if the event loop is blocked: its jobs keep their leases, so nobody else would tell."""
        if self._home is None or not self._home.is_running():
            return
        if self._asked is None:
            self._asked = now
            with contextlib.suppress(RuntimeError):  # it was closed just now
                self._home.call_soon_threadsafe(self._answer)
        elif now - self._asked >= BLOCKED_SECONDS and not self._said_blocked:
            self._said_blocked = True
            logger.warning("the event loop is blocked, by a handler or the like: its leases are kept meanwhile")

    def _answer(self) -> None:
        if self._said_blocked:
            logger.info("the event loop goes on")
        self._asked, self._said_blocked = None, False

    def _tell(self, beat: Heartbeat) -> None:
        if beat.extended and not beat.cancel_requested:
            return
        key = (beat.job_id, beat.attempt)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or (kept.told and beat.extended):
                return
            kept.told = True
        with contextlib.suppress(RuntimeError):  # its event loop has ended
            kept.loop.call_soon_threadsafe(self._call_back, key, kept, beat.extended)

    def _call_back(self, key: tuple[str, int], kept: _Kept, extended: bool) -> None:  # noqa: FBT001
        """Tell the holder, in its event loop, unless it has let go of the lease or is just ending it itself."""
        with self._lock:
            if self._kept.get(key) is not kept or kept.ending:
                return
            if not extended:
                del self._kept[key]
        (kept.cancel_requested if extended else kept.lost)()
