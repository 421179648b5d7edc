"""One process that works: how it is set up, the command line that makes another such process, and its run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import typer

from jobstore import ConnectionLost, DatabaseNotFound, JobStore, JobStoreError, UnknownPolicy
from jobstore.cli import logs, provider_targets, work_targets
from jobstore.workers import Worker
from jobstore.workers.signals import heed_hangup, heed_signals
from jobstore.workers.supervised import obeying

logger = logging.getLogger(__name__)

LEAVE_SECONDS = 1.0
"""How long handlers that were given up may take to end, once all else has."""
CLOSE_SECONDS = 5.0
"""How long the store may take to close once its worker has stopped: nobody was told that what it still writes is."""
OPEN_SECONDS = 30.0
"""How long a server is waited for that cannot be reached: as long as for one that is lost later."""
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for."""

    target: str | None
    """MODULE or MODULE:NAME; None if there are providers."""
    providers: tuple[str, ...]
    """The APIs whose models are asked, without a module."""
    on_unknown: UnknownPolicy
    named_database: str | None
    """The database, if the command line names one."""
    database: str
    """The database that is meant if the worker does not bring one."""
    outputs: str | None
    max_output_bytes: int | None
    min_free_bytes: int | None
    concurrency: int | None
    drain: bool
    grace: float
    """Seconds."""
    log_level: logs.LogLevel
    log_format: logs.LogFormat
    metrics_port: int | None
    metrics_host: str
    supervised: bool
    """Whether to obey a supervisor."""

    @property
    def store_options(self) -> dict[str, Any]:
        """What was said of the store, besides which database it is."""
        options = {
            "outputs": self.outputs,
            "max_output_bytes": self.max_output_bytes,
            "min_free_bytes": self.min_free_bytes,
        }
        return {name: value for name, value in options.items() if value is not None}


def check_metrics(port: int | None, processes: int) -> None:
    """Check that metrics can be served.

    Raises:
        BadParameter: What serves them is not installed, or there are not so many ports.
    """
    if port is None:
        return
    try:
        importlib.import_module("opentelemetry.exporter.prometheus")  # the API alone comes with other packages as well
    except ImportError:
        raise typer.BadParameter('it needs: pip install "jobstore[otel]"', param_hint="'--metrics-port'") from None
    if port and port + processes - 1 > 65535:  # noqa: PLR2004 - the highest port
        raise typer.BadParameter(f"there are no {processes} ports from {port} on", param_hint="'--metrics-port'")


def command_line(settings: Settings, number: int) -> list[str]:
    """Return the command line of one of several processes, numbered from 0 on."""
    target = () if settings.target is None else (settings.target,)
    command = [sys.executable, "-m", "jobstore", "work", *target, "--supervised"]
    options = {
        "--providers": ",".join(settings.providers) or None,
        "--on-unknown": settings.on_unknown if settings.providers else None,
        "--grace": settings.grace,
        "--log-level": settings.log_level,
        "--log-format": settings.log_format,
        "--concurrency": settings.concurrency,
        **{f"--{name.replace('_', '-')}": value for name, value in settings.store_options.items()},
        "--db": settings.named_database,
        "--metrics-port": settings.metrics_port and settings.metrics_port + number,
        "--metrics-host": None if settings.metrics_port is None else settings.metrics_host,
    }
    for option, value in options.items():
        command += [] if value is None else [option, str(value)]
    return [*command, "--drain"] if settings.drain else command


def run(settings: Settings) -> None:
    """Work in this process until it is told to stop.

    Raises:
        BadParameter: There is no such worker, or the port for its metrics cannot be had.
    """
    store, make = _find(settings)

    async def work_and_leave() -> None:
        try:
            await _work(settings, store, make)
        except JobStoreError as error:
            await _leave_behind_what_does_not_end(1, f" after this: {error}")
            raise
        await _leave_behind_what_does_not_end(0)

    asyncio.run(work_and_leave())


async def _work(settings: Settings, store: JobStore, make: work_targets.MakeWorker) -> None:
    opening = asyncio.ensure_future(_open_patiently(store))
    worker: Worker | None = None
    was_told = False

    def stop(*, at_once: bool) -> None:
        nonlocal was_told
        was_told = True
        opening.cancel()
        if worker is not None:
            worker.stop(at_once=at_once)

    with obeying(stop) if settings.supervised else contextlib.nullcontext():
        with heed_signals(lambda _: stop(at_once=False)):
            await asyncio.wait([opening])
        if opening.cancelled():  # told before it was there
            return
        opening.result()
        async with store, AsyncExitStack() as stack:
            worker = await _make_ready(settings, store, make, stack)
            if was_told:
                worker.stop()
            with heed_hangup(worker.stop):
                await worker.run(drain=settings.drain, grace=settings.grace)
            logger.info("worker %s has stopped", worker.id, extra={"event": "stopped", "worker_id": worker.id})
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, _leave, 0, "its last writes are not answered")


async def _open_patiently(store: JobStore) -> None:
    """Open a store, whose server may be just starting as well."""
    until = time.monotonic() + OPEN_SECONDS
    said = False
    while True:
        try:
            await store.open()
        except (ConnectionLost, DatabaseNotFound) as error:
            if store.path is not None or time.monotonic() >= until:
                raise
            if not said:
                logger.warning("trying again for %.0f s: %s", OPEN_SECONDS, error)
            said = True
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


async def _make_ready(
    settings: Settings, store: JobStore, make: work_targets.MakeWorker, stack: AsyncExitStack
) -> Worker:
    worker = make(store)
    if settings.providers:
        await provider_targets.ask_models(worker, settings.providers, settings.on_unknown, stack)
    worker.concurrency = settings.concurrency or worker.concurrency
    about = {"event": "start", "worker_id": worker.id}
    logger.info("worker %s works on %s", worker.id, store.name, extra=about)
    if settings.metrics_port is not None:
        await _serve_metrics(stack, worker, settings.metrics_port, settings.metrics_host)
    _set_apart_what_stays()
    return worker


def _find(settings: Settings) -> tuple[JobStore, work_targets.MakeWorker]:
    """Return the store to open and what makes the worker of it."""
    if settings.target is None:
        return JobStore(settings.database, **settings.store_options), Worker
    return work_targets.load(settings.target, settings.named_database, settings.database, settings.store_options)


def _set_apart_what_stays() -> None:
    """Let no garbage collection go over what was loaded: that took an eighth of the process's time (measured)."""
    gc.collect()
    gc.freeze()


async def _leave_behind_what_does_not_end(code: int, why: str = "") -> None:
    """End this process without handlers that take no cancellation, if there are any: a loop would wait for them."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left and (await asyncio.wait(left, timeout=LEAVE_SECONDS))[1]:
        _leave(code, "some handlers do not end though they were cancelled", why)


def _leave(code: int, what: str, why: str = "") -> None:
    """End this process at once, with whatever it still does."""
    logger.warning("%s: the process ends without them%s", what, why)
    logging.shutdown()
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    os._exit(code)


async def _serve_metrics(stack: AsyncExitStack, worker: Worker, port: int, host: str) -> None:
    from jobstore.workers.telemetry import serving_metrics  # noqa: PLC0415 - an extra, only for those who ask

    try:
        url = await stack.enter_async_context(serving_metrics(worker, port, host))
    except OSError as error:
        raise typer.BadParameter(
            f"port {port} cannot be had: {error.strerror}", param_hint="'--metrics-port'"
        ) from None
    logger.info("worker %s serves its metrics at %s", worker.id, url, extra={"worker_id": worker.id})
