"""The supervisor: runs workers in processes of their own, starts again those that crash, and ends them in order.

It speaks to each process through the pipe that is its standard input: an order is a byte, and when the supervisor is
killed, the end of the pipe is the order to stop. Signals would not do: a service manager sends its own to all
processes of a service, and a worker that heard both would take the second for impatience.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from jobstore.aio import finish
from jobstore.workers.signals import heed_hangup, heed_signals

logger = logging.getLogger(__name__)

STOP, STOP_AT_ONCE = b"s", b"n"
"""The orders."""
CRASH_LOOP, WRONG_USAGE = 1, 2
"""Exit codes."""


class Restarts(NamedTuple):
    """When a process that ended is started again."""

    first_pause: float = 0.5
    """Seconds after the first crash; each further one doubles it."""
    longest_pause: float = 30.0
    steady: float = 10.0
    """Seconds that a process has to live for its crash to count as the first."""
    most: int = 5
    """So many crashes in a row are a crash loop, which ends everything."""

    def pause(self, crashes: int) -> float:
        """Return how many seconds to wait after so many crashes in a row."""
        return min(self.longest_pause, self.first_pause * 2.0 ** min(crashes - 1, 30))


class _Past:
    """How one of the processes has fared, over its restarts.

    Attributes:
        crashes: How often in a row it has ended before it was steady, or just after.
        was_started: Whether it could be started at all.
    """

    def __init__(self, restarts: Restarts) -> None:
        self.crashes = 0
        self.was_started = False
        self._was_steady = False
        self._restarts = restarts

    def note(self, lived: float) -> None:
        """Note that it has ended, after so many seconds."""
        is_steady = lived >= self._restarts.steady
        self._was_steady |= is_steady
        self.crashes = 1 if is_steady else self.crashes + 1

    def is_hopeless(self, code: int) -> bool:
        """Whether it is of no use to start it again after it has ended with an exit code.

        One that was steady is never called wrongly: its code may be missing for a moment, while it is deployed.
        """
        return self.crashes >= self._restarts.most or (code == WRONG_USAGE and not self._was_steady)


class Supervisor:
    """Keeps processes running until it is told to stop.

    Args:
        commands: The command line of each process, which obeys as `obeying` makes it.
        grace: Seconds that the processes give their jobs once they are told to stop.
        drain: Whether a process that ends with exit code 0 is done.
        reloads: Whether SIGHUP starts all processes anew, with new code. Then no crash loop ends the supervisor.
        restarts: When a process that ended is started again.
        kill_after: Seconds above the grace after which a process that has not ended is killed.

    Example:
        >>> command = [sys.executable, "-m", "jobstore", "work", "tasks", "--supervised"]
        >>> exit_code = await Supervisor([command] * 4).run()
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        *,
        grace: float = 10.0,
        drain: bool = False,
        reloads: bool = False,
        restarts: Restarts = Restarts(),  # noqa: B008 - it is immutable
        kill_after: float = 30.0,
    ) -> None:
        self._commands = commands
        self._grace = grace
        self._drain = drain
        self._reloads = reloads
        self._restarts = restarts
        self._kill_after = kill_after
        self._processes: dict[int, Process] = {}
        self._reloading: set[int] = set()
        self._stopping = self._at_once = self._was_signalled = False
        self._hurry = asyncio.Event()
        self._killing: list[asyncio.TimerHandle] = []
        self._exit_code = 0

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [process.pid for process in self._processes.values()]

    async def run(self) -> int:
        """Run until SIGTERM, SIGINT or `stop()`; a second signal ends the grace.

        Returns:
            The exit code: 0, 1 after a crash loop, or 2 if a process finds itself called wrongly.
        """
        keeping = [
            asyncio.get_running_loop().create_task(self._keep(number, command))
            for number, command in enumerate(self._commands, start=1)
        ]
        try:
            with heed_signals(self._heed), self._heeding_hangup():
                await asyncio.wait(keeping, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self.stop(at_once=True)
            await finish(_wait(keeping))
            for timer in self._killing:
                timer.cancel()
        for kept in keeping:
            kept.result()
        return self._exit_code

    def stop(self, *, at_once: bool = False) -> None:
        """Let all processes stop within the grace, or at once. Stopping twice is fine."""
        if self._at_once or (self._stopping and not at_once):
            return
        self._stopping, self._at_once = True, at_once
        self._hurry.set()
        patience = self._kill_after + (0 if at_once else self._grace)
        for process in self._processes.values():
            _order(process, STOP_AT_ONCE if at_once else STOP)
        self._kill_later(patience, self._processes.values())

    def reload(self) -> None:
        """Let each process stop within the grace, and start it anew with the code as it is by then."""
        logger.info("starting the workers anew")
        self._reloading.update(range(1, len(self._commands) + 1))  # those that are just being started as well
        self._hurry.set()
        self._hurry = asyncio.Event()
        for process in self._processes.values():
            _order(process, STOP)
        self._kill_later(self._grace + self._kill_after, self._processes.values())

    def _heeding_hangup(self) -> AbstractContextManager[None]:
        if self._reloads:
            return heed_hangup(self.reload, even_if_ignored=True)
        return heed_hangup(self.stop)

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _keep(self, number: int, command: Sequence[str]) -> None:
        past = _Past(self._restarts)
        while not self._is_stopping():
            self._reloading.discard(number)
            code = await self._run_once(number, command, past)
            if self._is_stopping():
                return
            if number in self._reloading:
                past.crashes = 0
                continue
            if self._drain and code == 0:
                return
            if not self._reloads and past.is_hopeless(code):
                self._give_up(number, code)
                return
            pause = self._restarts.pause(past.crashes)
            logger.warning("worker process %d %s: it starts again in %.1f s", number, _ending(code), pause)
            await self._pause(pause)

    async def _run_once(self, number: int, command: Sequence[str], past: _Past) -> int:
        """Run a process to its end and return its exit code."""
        began = asyncio.get_running_loop().time()
        try:
            # In a session of its own, for a terminal sends Ctrl-C to the whole of the first one.
            process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, start_new_session=True)
        except OSError as error:
            if not past.was_started:
                raise
            logger.error("worker process %d cannot be started for now: %s", number, error.strerror)  # noqa: TRY400
            past.note(0.0)
            return CRASH_LOOP
        past.was_started = True
        code = await self._wait_for(number, process)
        past.note(asyncio.get_running_loop().time() - began)
        return code

    async def _wait_for(self, number: int, process: Process) -> int:
        self._processes[number] = process
        logger.info("worker process %d started: pid %d", number, process.pid)
        if self._stopping or number in self._reloading:  # it was told before it was there
            _order(process, STOP_AT_ONCE if self._at_once else STOP)
            self._kill_later(self._grace + self._kill_after, [process])
        try:
            code = await process.wait()
        finally:
            del self._processes[number]
            if process.stdin is not None:
                process.stdin.close()
        if self._stopping:
            logger.log(logging.WARNING if code else logging.INFO, "worker process %d %s", number, _ending(code))
        return code

    def _give_up(self, number: int, code: int) -> None:
        if code == WRONG_USAGE:
            self._exit_code = WRONG_USAGE
        else:
            times = self._restarts.most
            logger.error("worker process %d %s, %d times in a row: giving up", number, _ending(code), times)
            self._exit_code = self._exit_code or CRASH_LOOP
        self.stop()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    def _kill_later(self, patience: float, processes: Iterable[Process]) -> None:
        """Kill processes unless they end in time."""
        loop = asyncio.get_running_loop()
        self._killing = [timer for timer in self._killing if timer.when() > loop.time()]
        self._killing.append(loop.call_later(patience, _kill, list(processes)))

    def _heed(self, number: signal.Signals) -> None:
        logger.info("stopping %d worker processes: %s", len(self._processes), number.name)
        self.stop(at_once=self._was_signalled)
        self._was_signalled = True


def _kill(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.returncode is None:
            logger.error("the worker of pid %d does not end: it is killed, its leases will end", process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _order(process: Process, order: bytes) -> None:
    if process.stdin is not None and process.returncode is None:
        process.stdin.write(order)


def _ending(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def _wait(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)
