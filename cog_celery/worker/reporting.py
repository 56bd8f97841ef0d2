"""What a worker tells the world about its setup: the report, the log queue and Kubernetes' ready file.

It must not hold anything up: whatever fails here is logged, and that is all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

from cog_celery.delivery.link import Link
from cog_celery.delivery.snapshots import timestamp
from cog_celery.errors import CogCeleryError, ServerError
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client
from cog_celery.files.urls import AddressPolicy, parse, redact
from cog_celery.settings import Settings
from cog_celery.telemetry.logs import model_lines

READY = Path("/var/run/cog/ready")
MOST_LINES = 10_000
LOG_QUEUE_LENGTH = 10_000
REPORT_TIMEOUT = 10.0

log = logging.getLogger(__name__)


class SetupReport:
    """Collects what the predictors write while they are set up. lines() may be called from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._started = time.time()

    def begin(self) -> None:
        self._started = time.time()

    def lines(self, lines: list[str]) -> None:
        """Lines that came during setup()."""
        with self._lock:
            self._lines.extend(lines)
            model_lines(lines, "setup")
            queue = self._settings.log_queue
            if not queue or not lines:
                return
            if self._link is None:
                self._link = Link(self._settings.redis_url, "cog-celery-setup-log")
            entries = [
                json.dumps(
                    {"stage": "setup", "id": self._settings.model_id, "line": line, "timestamp_sec": time.time()}
                )
                for line in lines
            ]
            try:
                self._link.call("RPUSH", queue, *entries)
                self._link.call("LTRIM", queue, -LOG_QUEUE_LENGTH, -1)
            except ServerError as error:
                log.warning("setup lines could not be written to %s: %s", queue, error)

    def end(self, error: str | None) -> None:
        """Post the report, if somebody wants it, without waiting for it."""
        with self._lock:
            if self._link is not None:
                self._link.close()
            lines = list(self._lines)
        if error is not None:
            lines.append(error)
        if not self._settings.report_setup_run_url:
            return
        body = {
            "status": "succeeded" if error is None else "failed",
            "started_at": timestamp(self._started).decode() + "Z",
            "completed_at": timestamp(time.time()).decode() + "Z",
            "logs": "".join(line + "\n" for line in lines),
        }
        thread = threading.Thread(target=self._post, args=(self._settings.report_setup_run_url, body), daemon=True)
        thread.start()
        if error is not None:
            thread.join(REPORT_TIMEOUT)  # the process is about to end

    def _post(self, url: str, body: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        try:
            client = Client(AddressPolicy.of(self._settings), allowance=REPORT_TIMEOUT)
            with client.exchange(
                *("POST", parse(url)), headers=headers, follow=frozenset(), cancel=Cancel(), body=lambda: [content]
            ) as answer:
                answer.require_success()
        except CogCeleryError as error:
            log.warning("the setup report could not be posted to %s: %s", redact(url), error)


def set_ready_file(ready: bool) -> None:
    """On Kubernetes: the file exists exactly while the worker can take work."""
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return
    try:
        if ready:
            READY.parent.mkdir(parents=True, exist_ok=True)
            READY.touch()
        else:
            with contextlib.suppress(FileNotFoundError):
                READY.unlink()
    except OSError as error:
        log.warning("%s could not be %s: %s", READY, "made" if ready else "removed", error.strerror)
