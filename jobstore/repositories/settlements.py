"""What became of calls whose attempts are about to end: it waits here, to be written with the end."""

from __future__ import annotations

from jobstore.models import Claim
from jobstore.operations.calls import Settled


class Settlements:
    """Settlements of calls, by the attempt that they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], list[Settled]] = {}

    def add(self, claim: Claim, settled: Settled) -> None:
        """Let one wait for the end of an attempt."""
        self._waiting.setdefault((claim.job_id, claim.attempt), []).append(settled)

    def take(self, claim: Claim) -> list[Settled]:
        """Return those that wait for the end of an attempt, and let them wait no more."""
        return self._waiting.pop((claim.job_id, claim.attempt), [])

    def put_back(self, claim: Claim, settled: list[Settled]) -> None:
        """Let those wait again that were taken, because they were not written."""
        for one in settled:
            self.add(claim, one)
