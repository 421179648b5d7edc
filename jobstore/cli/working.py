"""`jobstore work`: runs a worker that a module of the user's makes, in this process or in several."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from jobstore.cli import logs, provider_targets, worker_process
from jobstore.cli.options import GroupDb, MaxOutputBytes, MinFreeBytes, Outputs, database, named_database
from jobstore.cli.work_targets import DEFAULT_NAME, HINT
from jobstore.cli.worker_process import Settings
from jobstore.providers.registry import NAMES
from jobstore.workers.supervisor import Supervisor

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="MODULE[:NAME]", show_default=False, help=f"Where the worker is; NAME is {DEFAULT_NAME} if left out."
    ),
]
Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--providers",
        metavar="API,…",
        show_default=False,
        callback=provider_targets.read_providers,
        help=f"Instead of MODULE: do all jobs for these APIs by asking their models. Any of {', '.join(NAMES)}.",
    ),
]
OnUnknown = Annotated[
    provider_targets.OnUnknown,
    typer.Option(
        "--on-unknown",
        metavar="POLICY",
        help="With --providers, of a job whose process died while it asked: retry, hold (for a person), or "
        "idempotency_key (retry with the same key; not for Gemini).",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        max=1000,
        show_default=False,
        help="Run the worker in so many processes, and start again those that crash; else it runs in this one.",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        metavar="N",
        min=1,
        show_default=False,
        help="How many jobs a process runs at the same time, if not as many as the worker says.",
    ),
]
Drain = Annotated[bool, typer.Option("--drain", help="End when nothing is left to claim.")]
Grace = Annotated[
    float, typer.Option("--grace", metavar="SECONDS", min=0, help="How long running jobs may take once it stops.")
]
Reload = Annotated[bool, typer.Option("--reload", help="Start anew on SIGHUP, with new code: for development.")]
LogLevel = Annotated[
    logs.LogLevel,
    typer.Option("--log-level", metavar="LEVEL", help="What the standard error tells: debug, info, warning or error."),
]
LogFormat = Annotated[
    logs.LogFormat, typer.Option("--log-format", metavar="FORMAT", help="text, or json: an object a line, with ids.")
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        metavar="PORT",
        min=0,
        max=65535,
        show_default=False,
        help="Serve metrics to Prometheus; of several processes each takes the next port.",
    ),
]
MetricsHost = Annotated[
    str, typer.Option("--metrics-host", metavar="ADDRESS", help="Where; 0.0.0.0 is every address of this machine.")
]
Supervised = Annotated[bool, typer.Option("--supervised", hidden=True)]


def work(
    context: typer.Context,
    target: Target = None,
    *,
    providers: Providers = None,
    on_unknown: OnUnknown = "retry",
    processes: Processes = None,
    concurrency: Concurrency = None,
    drain: Drain = False,
    grace: Grace = 10.0,
    reload: Reload = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    db: GroupDb = None,
    outputs: Outputs = None,
    max_output_bytes: MaxOutputBytes = None,
    min_free_bytes: MinFreeBytes = None,
    supervised: Supervised = False,
) -> None:
    """Run a worker until SIGTERM or SIGINT (Ctrl-C).

    With `--providers claude,openai,gemini` no code is needed: a job's prompt, model and metadata (system, max_tokens,
    temperature, tools, images, …) are the request, and the answer is streamed and recorded. Keys come from
    ANTHROPIC_API_KEY, OPENAI_API_KEY and GEMINI_API_KEY, base URLs from ANTHROPIC_BASE_URL, OPENAI_BASE_URL and
    GOOGLE_GEMINI_BASE_URL.

    Otherwise MODULE is imported from the current folder. NAME is a `Worker` in it, which brings its own store; or a
    function that is given the open store of `--db` and returns a `Worker`, such as
    `def worker(store): worker = Worker(store); …; return worker`.

    Once it is told to stop it claims no more, and waits for running jobs as long as `--grace` says; what runs longer
    is given back. A second signal ends the waiting. With `--drain` it ends when nothing is left to claim.

    With `--processes`, also of one, a process that crashes is started again, after a pause that grows. When one
    crashes five times in a row, all end with exit code 1.
    """
    logs.configure(log_level, log_format)
    worker_process.check_metrics(metrics_port, processes or 1)
    if (target is None) == (not providers):
        raise typer.BadParameter("give either MODULE or --providers", param_hint=HINT)
    settings = Settings(
        target=target,
        providers=tuple(providers or ()),
        on_unknown=on_unknown,
        named_database=named_database(context, db),
        database=database(context, db),
        outputs=outputs,
        max_output_bytes=max_output_bytes,
        min_free_bytes=min_free_bytes,
        concurrency=concurrency,
        drain=drain,
        grace=grace,
        log_level=log_level,
        log_format=log_format,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        supervised=supervised,
    )
    if processes or reload:
        _supervise(settings, processes or 1, reload=reload)
    else:
        worker_process.run(settings)


def _supervise(settings: Settings, processes: int, *, reload: bool) -> None:
    if reload and os.name == "nt":
        raise typer.BadParameter("Windows has no SIGHUP to reload on", param_hint="'--reload'")
    commands = [worker_process.command_line(settings, number) for number in range(processes)]

    async def act() -> int:
        return await Supervisor(commands, grace=settings.grace, drain=settings.drain, reloads=reload).run()

    code = asyncio.run(act())
    if code:
        raise typer.Exit(code)
