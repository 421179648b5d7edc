"""What `jobstore work --providers` runs: a worker that asks the models of providers, and needs no module."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Literal

import typer

from jobstore import InvalidArgument, UnknownPolicy
from jobstore.providers.clients import api_types_beside, client_from_environment
from jobstore.workers import Worker

HINT = "'--providers'"

OnUnknown = Literal["retry", "hold", "idempotency_key"]


def read_providers(given: Sequence[str] | None) -> list[str]:
    """Read API types, separated by commas.

    Raises:
        BadParameter: There is no such provider, or its SDK is not installed.
    """
    names = [name.strip() for each in given or () for name in each.split(",") if name.strip()]
    try:
        for name in names:
            api_types_beside(name)
    except (InvalidArgument, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    return list(dict.fromkeys(names))


async def ask_models(worker: Worker, providers: Sequence[str], policy: UnknownPolicy, stack: AsyncExitStack) -> None:
    """Let a worker do all jobs for some providers' APIs; their clients are closed with the stack.

    Raises:
        BadParameter: The environment lacks a key, or a provider takes no idempotency keys.
    """
    for provider in providers:
        if provider in worker.api_types:  # another name of one that is there
            continue
        try:
            client = await stack.enter_async_context(client_from_environment(provider))
            for api_type in api_types_beside(provider):
                worker.handles_llm(api_type=api_type, client=client, on_unknown=policy)
        except InvalidArgument as error:
            raise typer.BadParameter(str(error), param_hint=HINT) from None
