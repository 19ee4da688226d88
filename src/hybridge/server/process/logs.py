"""The server's log, as text or as JSON.

Each request is one line, written when it ends, from its :class:`~..middleware.request_record.RequestRecord`.
The line holds no prompt, no pixel, no key and no query; of a client without a key it has the network address.
A job that was accepted for later has a line of its own when it ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from ..middleware.request_record import RequestRecord

LogFormat = Literal["people", "json"]

access = logging.getLogger("hybridge.access")
jobs = logging.getLogger("hybridge.jobs")

_FOR_PEOPLE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(log_format: LogFormat, level: str) -> None:
    """Send all messages to standard error, in one of the two formats."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_FOR_PEOPLE))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    _quiet_the_hub()
    if level != "debug":
        logging.getLogger("hybridge.connection").setLevel(logging.ERROR)


def _quiet_the_hub() -> None:
    """Silence the hub's client, whose failures end in an error of ours; a user who has set its variables decides.

    It logs each request and each further attempt, and draws progress bars even into files.
    """
    for library in ("httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # read when the library is imported, which is later
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class JsonFormatter(logging.Formatter):
    """One JSON object on one line, with the ``fields`` of a record beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


def log_request(record: RequestRecord) -> None:
    """Log a request that has ended."""
    what = f"{record.model} {record.task}" if record.task else "request"
    fields = {"received_bytes": record.received_bytes, "sent_bytes": record.sent_bytes}
    _log(access, record, f"{what} for {record.client_id}", fields)


def log_job(record: RequestRecord) -> None:
    """Log an async job that has ended, under the id of its request.

    The job's own id is not logged: without keys, it gives access to the job.
    """
    _log(jobs, record, f"{record.model} {record.task} for {record.client_id}, done later", {})


def _log(logger: logging.Logger, record: RequestRecord, what: str, more: dict[str, int]) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    stages = {stage: round(spent, 1) for stage, spent in record.milliseconds.items()}
    fields = {
        "request_id": record.request_id,
        "client_id": record.client_id,
        "model": record.model or None,
        "task": record.task or None,
        "status": record.status,
        "milliseconds": stages,
        **more,
    }
    numbers = [f"{stage} {value:g} ms" for stage, value in stages.items()]
    numbers += [f"{count} {name.replace('_', ' ')}" for name, count in more.items()]
    told = f"{what}: {', '.join(numbers)}" if numbers else what
    logger.info("%d %s [%s]", record.status, told, record.request_id, extra={"fields": fields})
