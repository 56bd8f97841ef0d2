"""Shows one prediction at its response key, through the fence; fetches its files, and takes them where they are to go.

It must not know what the predictor does, nor decide when there is something to show.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory

from cog_celery.delivery.finished import Period, Upload
from cog_celery.delivery.link import FIRST_PAUSE, LONGEST_PAUSE, Link, ScriptMissing, SharedLink
from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.requests import PredictionRequest
from cog_celery.delivery.snapshots import Dialect
from cog_celery.delivery.stream import Delivery, Held, Published, Queue
from cog_celery.errors import Canceled, GroupMissing, ServerLost, UploadError
from cog_celery.files import downloads, inputs
from cog_celery.files.cancel import Cancel
from cog_celery.files.input_cache import InputCache
from cog_celery.files.outputs import PredictionUploads, Uploader
from cog_celery.runners.runner import FieldError
from cog_celery.runtime.cog._runner.rendering import render_queue
from cog_celery.slots.execution import Execution
from cog_celery.telemetry import logs
from cog_celery.telemetry.traces import NO_TRACE, Trace

LARGEST = (512 << 20) - 1024
"""Bytes. Redis takes no longer value."""

log = logging.getLogger(__name__)


class SlotOutlet:
    """Used by one slot, for one delivery; `execution` is told of what the server says."""

    def __init__(
        self,
        queue: Queue,
        link: Link,
        owner: str,
        delivery: Delivery,
        request: PredictionRequest,
        prediction: Prediction,
        dialect: Dialect,
        uploader: Uploader,
        spare_link: SharedLink,
        input_cache: InputCache | None,
        *,
        id: str,
        max_input_bytes: int,
        record: str = "",
        trace: Trace = NO_TRACE,
    ) -> None:
        self.dialect = dialect
        self.execution: Execution | None = None
        self.scratch: str | None = None
        """The temporary folder of the runner that predicts."""
        self.fetching: Period | None = None
        """When files were fetched, if there were any; seconds since 1970."""
        self.uploads: list[Upload] = []
        """Those that are over."""
        self.bytes_in = self.bytes_out = 0
        """Of files."""
        self._trace = trace
        self._queue = queue
        self._link = link
        self._owner = owner
        self._delivery = delivery
        self._request = request
        self._prediction = prediction
        self._uploader = uploader
        self._spare_link = spare_link
        self._input_cache = input_cache
        self._id = id
        self._record = record
        self._max_input_bytes = max_input_bytes
        self._silenced = False
        self._folder: TemporaryDirectory[str] | None = None
        self._uploads: PredictionUploads | None = None
        self._about = logs.subject.about

    def refused(self, errors: Sequence[FieldError]) -> str:
        return render_queue([{"field": e.field, "kind": e.kind, "limit": e.limit, "value": e.value} for e in errors])

    def started(self) -> bool:
        snapshot = self.dialect.render(self._prediction)
        try:
            self._queue.post_publish(*self._place(), snapshot)
        except ServerLost:
            return False
        return True

    def answered(self) -> bool:
        try:
            self._heed(self._queue.published(self._link))
        except (ServerLost, ScriptMissing):
            return False
        except GroupMissing:
            self._heed("lost")
        return True

    def changed(self) -> int | None:
        snapshot = self.dialect.render(self._prediction)
        if len(snapshot) > LARGEST:
            self._stop("failed", too_large(snapshot))
            return len(snapshot)
        try:
            self._heed(self._queue.publish(*self._place(), snapshot))
        except (ServerLost, ScriptMissing):
            return None
        except GroupMissing:
            self._heed("lost")
        return len(snapshot)

    def lines(self, lines: list[str]) -> list[str]:
        if not self._prediction.logs_left_out:
            logs.model_lines(lines)
        elif not self._silenced:
            # A line of ours is a hundred bytes longer than the model's.
            self._silenced = True
            log.warning("prediction %s prints more than --max-log-bytes: the rest is left out here, too", self._id)
        return [line for line in map(self.dialect.line, lines) if line is not None]

    def fetch(self, urls: list[str], cancel: Cancel) -> list[Path]:
        # In the runner's temporary folder, which is removed even when this process is killed.
        with downloads.room_for("The input files"):
            self._folder = TemporaryDirectory(prefix="cog-celery-", dir=self.scratch, ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        began = time.time()
        try:
            paths = inputs.fetch(
                urls,
                folder,
                self._uploader.client,
                max_bytes=self._max_input_bytes,
                cancel=cancel,
                cache=self._input_cache,
            )
        finally:
            self.fetching = (began, time.time())
        self.bytes_in = sum(path.stat().st_size for path in paths)
        log.info(
            *("prediction %s: %d input files are here, %d bytes, after %.3f s", self._id, len(paths), self.bytes_in),
            time.time() - began,
            extra={"event": "fetched"},
        )
        return paths

    def upload(self, path: str, cancel: Cancel) -> Future[str]:
        try:
            if self._input_cache is not None:
                self._input_cache.refuse(path)
            if self._uploads is None:
                self._uploads = self._begin_uploads(cancel)
        except UploadError as error:
            refused: Future[str] = Future()
            refused.set_exception(error)
            return refused
        began = time.time()
        size = _size(path)
        url: Future[str] = Future()
        self._uploads.start(path).add_done_callback(lambda sent: self._uploaded(sent, url, began, size))
        return url

    def _uploaded(self, sent: Future[str], url: Future[str], began: float, size: int) -> None:
        """In the thread of the upload; whoever waits for `url` finds it counted."""
        error = sent.exception()
        try:
            self._note(Upload(began, time.time(), size, error is None))
        finally:
            if error is None:
                url.set_result(sent.result())
            else:
                url.set_exception(error)

    def _note(self, upload: Upload) -> None:
        self.uploads.append(upload)
        if upload.stored:
            self.bytes_out += upload.size
        with logs.about(self._about):
            log.info(
                *("prediction %s: a file of %d bytes %s, after %.3f s", self._id, upload.size),
                *("is out" if upload.stored else "could not be put out", upload.ended - upload.began),
                extra={"event": "uploaded" if upload.stored else "not uploaded"},
            )

    @property
    def all_open(self) -> bool:
        return self._uploads is None or self._uploads.all_open

    def _begin_uploads(self, cancel: Cancel) -> PredictionUploads:
        request = self._request
        return self._uploader.for_prediction(
            *(self._id, request.output_upload_urls, self._trace.headers(), cancel),
            queue=self._queue.name,
            entry=self._delivery.name,
            attempt=self._delivery.attempt,
            scratch=self.scratch,
            confirm=lambda: self._confirm(cancel),
        )

    def _confirm(self, cancel: Cancel) -> None:
        """See to it that the entry is still ours. Raises Canceled if it is not, and the execution has been told. From
        threads of the uploads.

        Through an outage, too: whoever gives the prediction up sets `cancel`.
        """
        held = Held(self._delivery.at, self._owner, self._delivery.attempt)
        pause = FIRST_PAUSE
        while True:
            cancel.check()
            try:
                with self._spare_link.lent() as link:
                    [verdict] = self._queue.extend(link, [held])
                break
            except (ServerLost, ScriptMissing):
                cancel.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
        if verdict != "held":
            self._stop("canceled" if verdict == "deleted" else "lost")
            raise Canceled("The entry is not ours any more.")

    def close(self) -> None:
        """Remove the inputs' files."""
        if self._folder is not None:
            self._folder.cleanup()

    def _place(self) -> tuple[Link, Delivery, str, str, str | None, str]:
        request = self._request
        assert request.response_queue is not None
        return self._link, self._delivery, self._owner, request.response_queue, request.cancel_key, self._record

    def _heed(self, answer: Published) -> None:
        if answer != "shown":
            self._stop(answer)

    def _stop(self, reason: Published | str, error: str = "") -> None:
        assert self.execution is not None
        self.execution.stop(reason, error)  # type: ignore[arg-type]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # whoever opens it says what is wrong with it


def too_large(snapshot: bytes) -> str:
    """Why a snapshot cannot be shown."""
    return f"The response has {len(snapshot) >> 20} MiB, more than Redis can keep: return files instead."
