"""Which version of jobstore this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("jobstore")
    except PackageNotFoundError:  # a checkout that was not installed
        return "unknown"


VERSION = _installed()
