"""The output files of a prediction: names, limits and order, several on their way at once; their URLs come back.

It must not know how a file gets to where it goes, nor which output it belongs to.
"""

from __future__ import annotations

import base64
import math
import os
import re
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Self
from urllib.parse import quote

from cog_celery.errors import Canceled, UploadError, UrlError, UsageError
from cog_celery.files import http_uploads, urls
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client, HttpFailure
from cog_celery.files.http_uploads import Destination, HttpUploads, Terms
from cog_celery.files.output_files import OutputFile, open_output, quoted
from cog_celery.files.urls import AddressPolicy, HttpUrl
from cog_celery.settings import Settings

MODES: Final = ("auto", "put", "multipart")
MAX_DATA_URI_BYTES: Final = 64 << 20
MAX_DATA_URIS_BYTES: Final = 380 << 20
"""Of all files of a prediction that become data URIs: a third longer than they are, and Redis keeps 512 MiB."""
MAX_BYTES: Final = 64 << 30
MAX_FILES: Final = 10_000
TIMEOUT: Final = 3600.0
"""Seconds that all uploads of a prediction may take: each may take as long as its server keeps up the least rate."""

PARALLEL: Final = 4
"""Files of one prediction that are sent at once."""
MAX_OPEN: Final = 64
"""Files of one prediction that are held open: those may be removed, or replaced. Fewer while all predictions together
hold half of the descriptors that the process may have: sockets need some too."""
MAX_COPY: Final = 1 << 20
MAX_COPIES: Final = 16 << 20
"""Bytes of a file, and of all such files of a prediction, that are copied into memory when the predictor gives them
out. Many a predictor writes each of its previews into the same file."""
MAX_THREADS: Final = 256

MAX_ID_LENGTH: Final = 200

_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,2046}[\x21-\x7e])?")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


class Uploader:
    """Where a worker's output files go; for all its slots and threads.

    `mode` is `put` (the raw file, to a URL below `upload_url`), `multipart` (a form, to `upload_url` itself) or `auto`:
    whichever the server takes, found out at the first file. `destination` is another place than a server of HTTP.
    Without either, files become data URIs. `max_bytes` and `max_files` hold for each prediction. Raises UsageError.
    """

    def __init__(
        self,
        upload_url: str | None,
        mode: str = "auto",
        *,
        client: Client,
        destination: Destination | None = None,
        max_data_uri_bytes: int = MAX_DATA_URI_BYTES,
        max_bytes: int = MAX_BYTES,
        max_files: int = MAX_FILES,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"the upload mode {mode!r} is none of {', '.join(MODES)}")
        try:
            base = urls.parse(upload_url) if upload_url else None
        except UrlError as error:
            raise UsageError(f"the upload URL {urls.redact(upload_url or '')} cannot be used: {error}") from None
        self.client = client
        """Under the process's policy on addresses; for files in, too."""
        self.destination = HttpUploads(base, mode, client) if base is not None else destination
        self.max_data_uri_bytes = max_data_uri_bytes
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="upload")
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room: float = math.inf if limit == resource.RLIM_INFINITY else limit // 2
        self._room_lock = threading.Lock()

    @property
    def has_room(self) -> bool:
        """Whether more files may be held open than those that are being sent."""
        return self._room > 0

    def opened(self, files: int) -> None:
        """So many more are open; less than 0: so many were closed."""
        with self._room_lock:
            self._room -= files

    def close(self) -> None:
        """Let go of threads and connections that do nothing."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()
        if self.destination is not None:
            self.destination.close()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As a process was told. Raises UsageError."""
        upload_url, mode = settings.upload_url, settings.upload_mode
        bucket: Destination | None = None
        if upload_url is not None and upload_url.startswith("s3://"):
            from cog_celery.files.s3 import Bucket  # with boto3: 0.4 s and 26 MB that nobody else should pay for

            bucket, upload_url, mode = Bucket.of(settings), None, "auto"
        return cls(
            upload_url,
            mode,
            client=Client(AddressPolicy.of(settings)),
            destination=bucket,
            max_data_uri_bytes=settings.max_data_uri_bytes,
            max_bytes=settings.max_output_bytes,
            max_files=settings.max_output_files,
        )

    def for_prediction(
        self,
        id: str,
        upload_urls: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        cancel: Cancel | None = None,
        *,
        queue: str = "",
        entry: str = "",
        attempt: int = 1,
        scratch: str | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> PredictionUploads:
        """The uploads of one prediction, the `entry` of the stream `queue`. `headers` (traceparent, tracestate) go
        along; those that are no header values are left out. `scratch` is the folder that no link in it leads out of.

        A late upload of an earlier attempt must not replace a file of this one: from the second on, names carry the
        `attempt`. `upload_urls` cannot be renamed: `confirm` is called before each sending to one of them, and raises
        if this attempt is over. Raises UploadError when one of `upload_urls` cannot be used.
        """
        sent = {name: value for name, value in (headers or {}).items() if _HEADER_VALUE.fullmatch(value)}
        if id:
            sent["X-Prediction-ID"] = quote(id[:MAX_ID_LENGTH], safe=_VISIBLE, errors="replace")
        terms = Terms(sent, cancel or Cancel(), 0.0, queue, id, entry)
        return PredictionUploads(self, _presigned(upload_urls), terms, attempt, scratch, confirm)


class PredictionUploads:
    """The uploads of one prediction: names and limits in the order of its output, several on their way at once.

    start() is called from one thread.
    """

    def __init__(
        self,
        uploader: Uploader,
        presigned: Sequence[HttpUrl],
        terms: Terms,
        attempt: int,
        scratch: str | None,
        confirm: Callable[[], None],
    ) -> None:
        self._uploader = uploader
        self._presigned = presigned
        self._terms = terms  # but for the time, which begins with the first file
        self._attempt = attempt
        self._scratch = scratch
        self._confirm = confirm
        self._lock = threading.Lock()
        self._unopened: deque[tuple[str, Future[str]]] = deque()
        self._opened: deque[_Upload] = deque()
        self._sending = 0
        self._sending_since = 0.0
        self._spent = 0.0
        self._copied = 0
        self._count = 0
        self._size = 0
        self._names: dict[str, int] = {}  # names taken, and the last number that each was given

    def start(self, path: str) -> Future[str]:
        """Upload the file: its URL, or a data URI. The result may be UploadError, Canceled, or what `confirm` raises.

        The file is opened at once, unless too many are open already: from then on it may be removed.
        """
        future: Future[str] = Future()
        with self._lock:
            self._unopened.append((path, future))
            self._open()
            more = bool(self._opened) and self._sending < PARALLEL
            if more:
                if self._sending == 0:
                    self._sending_since = time.monotonic()
                self._sending += 1
        if more:
            self._uploader.threads.submit(self._send)
        return future

    def upload(self, path: str) -> str:
        """As start(), and wait for it."""
        return self.start(path).result()

    @property
    def all_open(self) -> bool:
        """Whether no file needs to stay where it is."""
        with self._lock:  # one may be about to be opened
            return not self._unopened

    def _open(self) -> None:
        """Open as many files as may be open. With the lock."""
        while self._unopened:
            held = len(self._opened) + self._sending
            if held >= MAX_OPEN or (held >= PARALLEL and not self._uploader.has_room):
                return
            path, future = self._unopened.popleft()
            try:
                self._terms.cancel.check()
                self._opened.append(self._admit(path, future))
                self._uploader.opened(1)
            except (UploadError, Canceled) as error:
                future.set_exception(error)

    def _admit(self, path: str, future: Future[str]) -> _Upload:
        """The file, open, and where it goes. Raises UploadError."""
        self._count += 1
        if self._count > self._uploader.max_files:
            raise UploadError(
                f"The prediction has more than {self._uploader.max_files} output files, the limit. "
                "Return fewer, or start the worker with another --max-output-files."
            )
        file = open_output(path, self._scratch)
        try:
            self._size += file.size
            if self._size > self._uploader.max_bytes:
                raise UploadError(
                    f"The output files up to {quoted(file.name)} have {self._size} bytes together, and those of a "
                    f"prediction may have {self._uploader.max_bytes}. "
                    "Return smaller ones, or start the worker with another --max-output-bytes."
                )
            if file.size <= MAX_COPY and self._copied + file.size <= MAX_COPIES:
                file.copy()
                self._copied += file.size
            if self._presigned:
                if self._count > len(self._presigned):
                    raise UploadError(
                        f"The request brought {len(self._presigned)} output_upload_urls, and this prediction has more "
                        "files. Send one URL for every output file."
                    )
                return _Upload(file, future, url=self._presigned[self._count - 1])
            if self._uploader.destination is None:
                limit = self._uploader.max_data_uri_bytes
                if file.size > limit:
                    raise UploadError(
                        f"The output file {quoted(file.name)} has {file.size} bytes, and a data URI may have {limit}. "
                        "Start the worker with an upload URL, or send output_upload_urls with the request."
                    )
                if self._size > MAX_DATA_URIS_BYTES:
                    raise UploadError(
                        f"The output files up to {quoted(file.name)} have {self._size} bytes together, and as data "
                        f"URIs those of a prediction may have {MAX_DATA_URIS_BYTES}. "
                        "Start the worker with an upload URL, or send output_upload_urls with the request."
                    )
            return _Upload(file, future, name=self._free_name(file.name))
        except BaseException:
            file.close()
            raise

    def _send(self) -> None:
        """In a thread of its own: upload what is there, until nothing is left."""
        while True:
            with self._lock:
                self._open()
                if not self._opened:
                    self._sending -= 1
                    if self._sending == 0:
                        self._spent += time.monotonic() - self._sending_since
                    return
                upload = self._opened.popleft()
                until = self._sending_since + TIMEOUT - self._spent
            try:
                self._terms.cancel.check()
                result = self._take(upload, replace(self._terms, until=until))
                upload.file.check_unchanged()
            except BaseException as error:  # whoever waits for it gets it, a bug of ours too
                upload.end(error)
            else:
                upload.end(result)
            finally:
                with self._lock:
                    self._copied -= upload.file.close()
                self._uploader.opened(-1)

    def _take(self, upload: _Upload, terms: Terms) -> str:
        file = upload.file
        if upload.url is not None:
            try:
                http_uploads.put(self._uploader.client, upload.url, file, terms, confirm=self._confirm)
            except HttpFailure as failure:
                raise http_uploads.refused(file.name, upload.url.shown, failure, upload.url) from None
            return upload.url.public
        if self._uploader.destination is None:
            content = b"".join(file.blocks())
            return f"data:{file.type};base64,{base64.b64encode(content).decode()}"
        return self._uploader.destination.store(file, upload.name, terms)

    def _free_name(self, name: str) -> str:
        """The name; of a later attempt `name-attempt2.png`; for a second file of that name `name-1.png`, and so on."""
        stem, extension = os.path.splitext(name)
        if self._attempt > 1:
            stem = f"{stem}-attempt{self._attempt}"
            name = stem + extension
        free, number = name, self._names.get(name, 0)
        while free in self._names:
            number += 1
            free = f"{stem}-{number}{extension}"
        self._names[name] = number
        self._names[free] = 0
        return free


@dataclass(frozen=True, slots=True)
class _Upload:
    """A file that is to go to this URL, or under this name."""

    file: OutputFile
    future: Future[str]
    url: HttpUrl | None = None
    name: str = ""

    def end(self, result: str | BaseException) -> None:
        if isinstance(result, str):
            self.future.set_result(result)
        else:
            self.future.set_exception(result)


def _presigned(upload_urls: Sequence[str] | None) -> list[HttpUrl]:
    parsed = []
    for url in upload_urls or ():
        try:
            parsed.append(urls.parse(url))
        except UrlError as error:
            raise UploadError(f"{urls.redact(url)} in output_upload_urls cannot be used: {error}.") from None
    return parsed
