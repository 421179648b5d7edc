"""What `jobstore work` writes to the standard error: a line for each record, for people or for machines."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_TEXT = "%(asctime)s %(levelname)s %(message)s"
_JSON_NAMES = {"levelname": "level", "name": "logger"}


def configure(level: LogLevel, form: LogFormat) -> None:
    """Log to the standard error. In JSON, each line is an object, with the ids that the record is about."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        names = ["levelname", "name", "process", "message"]
        handler.setFormatter(JsonFormatter(names, rename_fields=_JSON_NAMES, timestamp="time"))
    else:
        handler.setFormatter(logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
