"""One line of JSON per decision and per refusal, and every other log record as JSON, too.

The client itself tells of decisions; see ``optllm_router._decision_log``.

Prompts, answers and keys are in none of them, unless prompts are asked for.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import Any

EVENTS = logging.getLogger("optllm_router.server.events")


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; an event's fields are the line's."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {"logger": record.name}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The text of an unexpected error may quote what a person wrote.
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = "".join(traceback.format_tb(record.exc_info[2]))
        return json.dumps(line, ensure_ascii=False, default=str)


def log_event(event: str, **fields: Any) -> None:
    """Log what happened, with its fields."""
    EVENTS.info(event, extra={"fields": fields})


def log_to_stderr() -> None:
    """Send the log of this process, ours and uvicorn's, to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("optllm_router").setLevel(logging.INFO)
