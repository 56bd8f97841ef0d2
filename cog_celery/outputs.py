"""Files out: each output file goes to where its prediction's files are to go, and its URL comes back.

It must not know which output a file belongs to, nor who made it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, urlsplit

from urllib3.fields import RequestField

from cog_celery import http_client, mime, urls
from cog_celery.cancel import Cancel
from cog_celery.errors import Canceled, UploadError, UrlError, UsageError
from cog_celery.http_client import Client, HttpFailure, TooSlow
from cog_celery.runtime.cog._runner.places import NotToBeGiven, real_place
from cog_celery.settings import Settings
from cog_celery.urls import AddressPolicy, HttpUrl

MODES: Final = ("auto", "put", "multipart")
MAX_DATA_URI_BYTES: Final = 64 << 20
MAX_BYTES: Final = 64 << 30
MAX_FILES: Final = 10_000
TIMEOUT: Final = 3600.0
"""Seconds that all uploads of a prediction may take: each may take as long as its server keeps up the least rate."""

BLOCK: Final = 64 << 10
"""One send, which must be done within the connect timeout: larger blocks would break slow lines."""

PARALLEL: Final = 4
"""Files of one prediction that are sent at once."""
MAX_OPEN: Final = 64
"""Files of one prediction that are held open: those may be removed, or replaced."""
MAX_COPY: Final = 1 << 20
MAX_COPIES: Final = 16 << 20
"""Bytes of a file, and of all such files of a prediction, that are copied into memory when the predictor gives them
out. Many a predictor writes each of its previews into the same file."""
MAX_THREADS: Final = 256

MAX_ANSWER_BYTES: Final = 1 << 20
MAX_ID_LENGTH: Final = 200

_WANTS_A_FORM: Final = (404, 405, 415)
"""How servers that only know the multipart form answer a raw PUT."""

_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,2046}[\x21-\x7e])?")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


class Uploader:
    """Where a worker's output files go; for all its slots and threads.

    `mode` is `put` (the raw file, to a URL below `upload_url`), `multipart` (a form, to `upload_url` itself) or `auto`:
    whichever the server takes, found out at the first file. Without an `upload_url`, files become data URIs.
    `max_bytes` and `max_files` hold for each prediction. Raises UsageError.
    """

    def __init__(
        self,
        upload_url: str | None,
        mode: str = "auto",
        *,
        client: Client,
        max_data_uri_bytes: int = MAX_DATA_URI_BYTES,
        max_bytes: int = MAX_BYTES,
        max_files: int = MAX_FILES,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"the upload mode {mode!r} is none of {', '.join(MODES)}")
        try:
            self.base = urls.parse(upload_url) if upload_url else None
        except UrlError as error:
            raise UsageError(f"the upload URL {urls.redact(upload_url or '')} cannot be used: {error}") from None
        self.client = client
        """Under the process's policy on addresses; for files in, too."""
        self.max_data_uri_bytes = max_data_uri_bytes
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="upload")
        # True: multipart; None: not known yet. Two threads may find out at once; they find the same.
        self._form: bool | None = {"auto": None, "put": False, "multipart": True}[mode]

    def close(self) -> None:
        """Let go of threads and connections that do nothing."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As a process was told. Raises UsageError."""
        return cls(
            settings.upload_url,
            settings.upload_mode,
            client=Client(AddressPolicy.of(settings)),
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
        attempt: int = 1,
        scratch: str | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> PredictionUploads:
        """The uploads of one prediction. `headers` (traceparent, tracestate) go along; those that are no header
        values are left out. `scratch` is the folder that no link in it leads out of.

        A late upload of an earlier attempt must not replace a file of this one: from the second on, names carry the
        `attempt`. `upload_urls` cannot be renamed: `confirm` is called before each sending to one of them, and raises
        if this attempt is over. Raises UploadError when one of `upload_urls` cannot be used.
        """
        sent = {name: value for name, value in (headers or {}).items() if _HEADER_VALUE.fullmatch(value)}
        if id:
            sent["X-Prediction-ID"] = quote(id[:MAX_ID_LENGTH], safe=_VISIBLE, errors="replace")
        return PredictionUploads(self, _presigned(upload_urls), sent, cancel or Cancel(), attempt, scratch, confirm)

    def store(self, file: OutputFile, name: str, terms: Terms) -> str:
        """Upload to the worker's own URL under `name`; the output. Raises UploadError, Canceled."""
        assert self.base is not None
        if self._form:
            return self._store_form(self.base, file, name, terms)
        url = self.base.child(_quoted(name))
        try:
            stored = self.put(url, file, terms)
        except HttpFailure as failure:
            # Not after a redirect: then the server takes raw files, and it is the target that does not.
            if self._form is None and failure.status in _WANTS_A_FORM and failure.url == url:
                output = self._store_form(self.base, file, name, terms, tried=failure)
                self._form = True
                return output
            raise _refused(name, url, failure) from None
        self._form = False
        return _location(name, stored)

    def put(self, url: HttpUrl, file: OutputFile, terms: Terms, confirm: Callable[[], None] = lambda: None) -> Stored:
        """PUT the raw file. Raises HttpFailure, UploadError when the file changes meanwhile, Canceled, and whatever
        `confirm` does, which is called before each sending."""
        return self._send(url, _Body(file), {"Content-Type": file.type}, terms, keep=0, confirm=confirm)

    def _store_form(
        self,
        url: HttpUrl,
        file: OutputFile,
        name: str,
        terms: Terms,
        tried: HttpFailure | None = None,
    ) -> str:
        boundary = secrets.token_hex(16)
        part = RequestField("file", b"", filename=name)
        part.make_multipart(content_type=file.type)
        head = f"--{boundary}\r\n{part.render_headers()}".encode(errors="replace")
        body = _Body(file, head, f"\r\n--{boundary}--\r\n".encode())
        content_type = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        try:
            stored = self._send(url, body, content_type, terms, keep=MAX_ANSWER_BYTES)
        except HttpFailure as failure:
            if tried is not None:
                failure.reason += f" (to a form; a raw PUT to {tried.url.shown}: {tried.reason})"
            raise _refused(name, url, failure) from None
        return _answered_url(name, stored)

    def _send(
        self,
        url: HttpUrl,
        body: _Body,
        headers: Mapping[str, str],
        terms: Terms,
        keep: int,
        confirm: Callable[[], None] = lambda: None,
    ) -> Stored:
        sent = {**terms.headers, **headers, "Content-Length": str(body.size)}
        follow = http_client.REDIRECTS_OF_PUT

        def attempt() -> Stored:
            confirm()
            with self.client.exchange(
                "PUT", url, headers=sent, body=body.blocks, follow=follow, cancel=terms.cancel, until=terms.until
            ) as answer:
                answer.require_success()
                content = answer.read(keep) if keep else b""
                return Stored(answer.url, answer.response.headers.get("Location"), content)

        return self.client.trying(attempt, terms.cancel)


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for an upload, wherever it goes: it is over at `until` (monotonic)."""

    headers: Mapping[str, str]
    cancel: Cancel
    until: float


class PredictionUploads:
    """The uploads of one prediction: names and limits in the order of its output, several on their way at once.

    start() is called from one thread.
    """

    def __init__(
        self,
        uploader: Uploader,
        presigned: Sequence[HttpUrl],
        headers: Mapping[str, str],
        cancel: Cancel,
        attempt: int,
        scratch: str | None,
        confirm: Callable[[], None],
    ) -> None:
        self._uploader = uploader
        self._presigned = presigned
        self._headers = headers
        self._cancel = cancel
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
        return not self._unopened

    def _open(self) -> None:
        """Open as many files as may be open. With the lock."""
        while self._unopened and len(self._opened) + self._sending < MAX_OPEN:
            path, future = self._unopened.popleft()
            try:
                self._cancel.check()
                self._opened.append(self._admit(path, future))
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
                    f"The output files up to {_quoted(file.name)} have {self._size} bytes together, and those of a "
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
            if self._uploader.base is None:
                limit = self._uploader.max_data_uri_bytes
                if file.size > limit:
                    raise UploadError(
                        f"The output file {_quoted(file.name)} has {file.size} bytes, and a data URI may have {limit}. "
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
                self._cancel.check()
                result = self._take(upload, Terms(self._headers, self._cancel, until))
                upload.file.check_unchanged()
            except BaseException as error:  # whoever waits for it gets it, a bug of ours too
                upload.end(error)
            else:
                upload.end(result)
            finally:
                with self._lock:
                    self._copied -= upload.file.close()

    def _take(self, upload: _Upload, terms: Terms) -> str:
        file = upload.file
        if upload.url is not None:
            try:
                self._uploader.put(upload.url, file, terms, self._confirm)
            except HttpFailure as failure:
                raise _refused(file.name, upload.url, failure) from None
            return upload.url.public
        if self._uploader.base is None:
            content = b"".join(file.blocks())
            return f"data:{file.type};base64,{base64.b64encode(content).decode()}"
        return self._uploader.store(file, upload.name, terms)

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


class OutputFile:
    """An open output file: exactly the `size` bytes that it had when it was opened. Read by one thread or several."""

    def __init__(self, name: str, type: str, descriptor: int) -> None:
        self.name = name
        self.type = type
        self.descriptor = descriptor
        status = os.fstat(descriptor)
        self.size = status.st_size
        self._version = (status.st_size, status.st_mtime_ns)
        self._content: bytes | None = None

    def copy(self) -> None:
        """Keep the content in memory: whatever happens to the file. Raises UploadError."""
        self._content = b"".join(self.blocks())

    def read(self, position: int, most: int) -> bytes:
        """The bytes from `position` on, at least one. Raises UploadError if there are none any more."""
        if self._content is not None:
            return self._content[position : position + most]
        try:
            block = os.pread(self.descriptor, min(most, self.size - position), position)
        except OSError as error:
            raise UploadError(f"The output file {_quoted(self.name)} could not be read: {error.strerror}.") from None
        if not block:
            raise UploadError(
                f"The output file {_quoted(self.name)} became shorter while it was uploaded. {_HANDS_OFF}"
            )
        return block

    def blocks(self) -> Iterator[bytes]:
        """The content, from the start, at every call. Raises UploadError if the file became shorter."""
        position = 0
        while position < self.size:
            block = self.read(position, BLOCK)
            position += len(block)
            yield block

    def check_unchanged(self) -> None:
        """Raise UploadError if something else may have been read than what was given out."""
        if self._content is None:
            status = os.fstat(self.descriptor)
            if (status.st_size, status.st_mtime_ns) != self._version:
                raise UploadError(
                    f"The output file {_quoted(self.name)} was changed while it was uploaded. {_HANDS_OFF}"
                )

    def close(self) -> int:
        """Let go of it; the bytes of memory that are free now."""
        os.close(self.descriptor)
        freed = 0 if self._content is None else len(self._content)
        self._content = None
        return freed


_HANDS_OFF = "The predictor must not change a file that it has given out: give each output a file of its own."


def open_output(path: str, scratch: str | None = None) -> OutputFile:
    """The file that a predictor gave out, under the last part of its path; to be closed.

    Raises UploadError unless it is a regular file that can be read and given out; `scratch` is the runner's temporary
    folder.
    """
    name = _quoted(os.path.basename(path))
    if not os.path.isabs(path):
        raise UploadError(f"The output file {name} was not given as an absolute path.")
    try:
        # O_NONBLOCK: nobody may ever open the other end of a FIFO. O_NOFOLLOW: the links have been followed.
        descriptor = os.open(real_place(path, scratch), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except NotToBeGiven as error:
        raise UploadError(f"The output file {name} {error}.") from None
    except FileNotFoundError:
        raise UploadError(
            f"The output file {name} does not exist. The predictor must leave its files until predict() has returned."
        ) from None
    except OSError as error:
        raise UploadError(f"The output file {name} could not be opened: {error.strerror}.") from None
    except ValueError:  # a NUL, or characters that are no file name
        raise UploadError(f"The output file {name} has a name that no file can have.") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UploadError(f"The output file {name} is {what}. Only regular files can be uploaded.")
        base = os.path.basename(path)
        return OutputFile(base, mime.type_of(base), descriptor)
    except BaseException:
        os.close(descriptor)
        raise


@dataclass(frozen=True, slots=True)
class Stored:
    """A server's answer to an upload that succeeded.

    `url` is where the last redirect led; of the answer's body, `answer` is what was to be kept.
    """

    url: HttpUrl
    location: str | None
    answer: bytes


@dataclass(frozen=True, slots=True)
class _Body:
    """A file, and what a form puts around it."""

    file: OutputFile
    head: bytes = b""
    tail: bytes = b""

    @property
    def size(self) -> int:
        return len(self.head) + self.file.size + len(self.tail)

    def blocks(self) -> Iterator[bytes]:
        if self.head:
            yield self.head
        yield from self.file.blocks()
        if self.tail:
            yield self.tail


def _presigned(upload_urls: Sequence[str] | None) -> list[HttpUrl]:
    parsed = []
    for url in upload_urls or ():
        try:
            parsed.append(urls.parse(url))
        except UrlError as error:
            raise UploadError(f"{urls.redact(url)} in output_upload_urls cannot be used: {error}.") from None
    return parsed


def _location(name: str, stored: Stored) -> str:
    """The output for a raw PUT."""
    if not stored.location:
        return stored.url.public
    try:
        return stored.url.resolve(stored.location).public
    except UrlError as error:
        raise UploadError(
            f"The output file {_quoted(name)} was uploaded to {stored.url.shown}, whose Location cannot be used: "
            f"{error}. Correct the server, or let it send none."
        ) from None


def _answered_url(name: str, stored: Stored) -> str:
    """The output for a form: what the server's JSON says, as it says it."""
    try:
        url = json.loads(stored.answer)["url"]
        if isinstance(url, str) and url.isprintable() and len(url) <= urls.MAX_URL_LENGTH and urlsplit(url).netloc:
            return url
    except (ValueError, RecursionError, TypeError, KeyError):
        pass
    raise UploadError(
        f"The output file {_quoted(name)} was uploaded to {stored.url.shown} as a form, and the answer is not "
        '{"url": "…"} with the URL of the file. Correct the server, or choose the upload mode put.'
    )


def _refused(name: str, url: HttpUrl, failure: HttpFailure) -> UploadError:
    return UploadError(
        f"The output file {_quoted(name)} could not be uploaded to {url.shown}: {failure.told(url)}. {_advice(failure)}"
    )


def _advice(failure: HttpFailure) -> str:
    match failure.status:
        case 401 | 403:
            return "Check that the upload URL has not expired and allows a PUT."
        case 404 | 405 | 415:
            return "Check the upload URL and the upload mode."
        case 413:
            return "The server takes smaller files only."
        case status if status is not None and 300 <= status < 400:
            return "Only redirects with 307 or 308 keep the file: let the server answer one of them."
        case _ if isinstance(failure, TooSlow):
            return "Use a faster server."
        case _ if failure.retryable:
            return "Check that the server is up and can be reached from the worker."
        case _:
            return "Check the upload URL."


def _quoted(name: str) -> str:
    """A file name for URLs and messages: percent-encoded, and different for different names of whatever bytes."""
    return quote(name.encode("utf-8", "surrogatepass"), safe="")
