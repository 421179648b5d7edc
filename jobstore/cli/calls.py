"""The calls to models that were made for a job, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from jobstore import ApiCall
from jobstore.cli.screen import Cell, one_line, write_heading, write_table


def show_calls(calls: Sequence[ApiCall]) -> None:
    """Write what became of each call, and what all of them cost."""
    if not calls:
        return
    write_heading("calls")
    headings = ["attempt", "call", "seconds", "first token", "in", "out", "cost", "model", "request", "error"]
    write_table(headings, list(map(_row, calls)), may_be_cut={"model", "request", "error"})


def _row(call: ApiCall) -> list[Cell]:
    error = ", ".join(part for part in (call.error_category, call.error_code) if part)
    wait = "" if call.retry_after is None else f", asks to wait {call.retry_after:g} s"
    return [
        str(call.attempt),
        call.status.value,
        _seconds(call.duration),
        _seconds(call.time_to_first_token),
        _count(call.input_tokens),
        _count(call.output_tokens),
        "" if call.cost is None else f"{'about ' if call.cost_is_estimated else ''}${call.cost:.6f}",
        one_line(call.model_answered or call.model_asked or call.provider),
        one_line(call.request_id or ""),
        one_line(f"{error}{wait}"),
    ]


def _seconds(duration: float | None) -> str:
    return "" if duration is None else f"{duration:.1f}"


def _count(tokens: int | None) -> str:
    return "" if tokens is None else f"{tokens:,}"
