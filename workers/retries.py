"""When a job whose attempt failed is tried again: policies, and how they are chosen by the type of the error."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from jobstore import InvalidArgument

RetryPolicy = Callable[[int, BaseException], float | None]
"""Returns after how many seconds to try again, or None for never. It is given how many attempts count by now, from 1
on, and what the handler raised. Whatever it says, no job is tried more often than its `max_attempts`."""

Retries = RetryPolicy | Mapping[type[BaseException], RetryPolicy]
"""One policy, or one for each type of error: the type that is closest to the error's own counts."""

BASE, CAP = 1.0, 300.0
"""Seconds."""


def exponential(base: float = BASE, cap: float = CAP) -> RetryPolicy:
    """Wait up to `base` seconds doubled with each attempt, at most `cap`; how long exactly is left to chance.

    The scheme is "Full Jitter" of https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/.

    Example:
        >>> worker.handles("plan", retry=exponential(base=2, cap=60))
    """

    def policy(attempt: int, _error: BaseException) -> float:
        return random.uniform(0.0, min(cap, base * 2.0 ** min(attempt, 64)))  # noqa: S311 - jitter, not a secret

    return policy


def linear(step: float, cap: float = CAP) -> RetryPolicy:
    """Wait `step` seconds longer with each attempt, at most `cap`.

    Example:
        >>> linear(10)(3, ConnectionError())
        30.0
    """
    return lambda attempt, _error: min(cap, float(step * attempt))


def constant(seconds: float) -> RetryPolicy:
    """Wait the same time before each attempt.

    Example:
        >>> constant(5)(3, ConnectionError())
        5.0
    """
    return lambda _attempt, _error: float(seconds)


def never(_attempt: int, _error: BaseException) -> None:
    """Do not try again.

    Example:
        >>> worker.handles("plan", retry={ValueError: never, Exception: exponential()})
    """


def policy_of(retry: Retries | None, otherwise: RetryPolicy) -> RetryPolicy:
    """Return one policy for all errors; `otherwise` serves for those that none was given for.

    Raises:
        InvalidArgument: It is no policy.
    """
    if retry is None:
        return otherwise
    if callable(retry):
        return retry
    given: object = retry
    if not isinstance(given, Mapping) or not all(map(_is_choice, given.items())):
        raise InvalidArgument("retry", "must be a policy such as exponential(), or one for each type of error")
    chosen: dict[type, RetryPolicy] = dict(given)

    def policy(attempt: int, error: BaseException) -> float | None:
        kind = next((kind for kind in type(error).__mro__ if kind in chosen), None)
        return (otherwise if kind is None else chosen[kind])(attempt, error)

    return policy


def _is_choice(choice: tuple[object, object]) -> bool:
    kind, policy = choice
    return isinstance(kind, type) and issubclass(kind, BaseException) and callable(policy)
