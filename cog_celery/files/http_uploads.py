"""Files to a server of HTTP: raw with PUT, or in the form that older servers take.

It must not know which prediction a file belongs to, nor that there are other places for files.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from urllib3.fields import RequestField

from cog_celery.errors import UploadError, UrlError
from cog_celery.files import http_client, s3_errors, urls
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Answer, Client, HttpFailure, TooSlow
from cog_celery.files.output_files import OutputFile, quoted
from cog_celery.files.urls import HttpUrl

MAX_ANSWER_BYTES: Final = 1 << 20

_WANTS_A_FORM: Final = (404, 405, 415)
"""How servers that only know the multipart form answer a raw PUT."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for an upload, wherever it goes: it is over at `until` (monotonic).

    `headers` go along over HTTP; `queue`, `id` and `entry` say whose file it is where that makes a difference.
    """

    headers: Mapping[str, str]
    cancel: Cancel
    until: float
    queue: str = ""
    id: str = ""
    entry: str = ""


class Destination(Protocol):
    """Where a worker's output files go; for all its threads."""

    def store(self, file: OutputFile, name: str, terms: Terms) -> str:
        """Upload the file under `name`; the output. Raises UploadError, Canceled."""

    def close(self) -> None:
        """Let go of connections that do nothing."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A server's answer to an upload that succeeded.

    `url` is where the last redirect led; of the answer's body, `answer` is what was to be kept.
    """

    url: HttpUrl
    location: str | None
    answer: bytes


class HttpUploads:
    """Below a URL (`put`), or to it (`multipart`); `auto`: whichever the server takes, found out at the first file."""

    def __init__(self, base: HttpUrl, mode: str, client: Client) -> None:
        self._base = base
        self._client = client
        # True: multipart; None: not known yet. Two threads may find out at once; they find the same.
        self._form: bool | None = {"auto": None, "put": False, "multipart": True}[mode]

    def store(self, file: OutputFile, name: str, terms: Terms) -> str:
        """Upload the file under `name`; the output. Raises UploadError, Canceled."""
        if self._form:
            return self._store_form(file, name, terms)
        url = self._base.child(quoted(name))
        try:
            stored = put(self._client, url, file, terms)
        except HttpFailure as failure:
            # Not after a redirect: then the server takes raw files, and it is the target that does not.
            if self._form is None and failure.status in _WANTS_A_FORM and failure.url == url:
                output = self._store_form(file, name, terms, tried=failure)
                self._form = True
                return output
            raise refused(name, url.shown, failure, url) from None
        self._form = False
        return _location(name, stored)

    def close(self) -> None:
        """Let go of connections that do nothing."""
        self._client.close()

    def _store_form(self, file: OutputFile, name: str, terms: Terms, tried: HttpFailure | None = None) -> str:
        boundary = secrets.token_hex(16)
        part = RequestField("file", b"", filename=name)
        part.make_multipart(content_type=file.type)
        head = f"--{boundary}\r\n{part.render_headers()}".encode(errors="replace")
        body = _Body(file, head, f"\r\n--{boundary}--\r\n".encode())
        content_type = f"multipart/form-data; boundary={boundary}"
        try:
            stored = _send(self._client, self._base, body, content_type, terms, keep=MAX_ANSWER_BYTES)
        except HttpFailure as failure:
            if tried is not None:
                failure.reason += f" (to a form; a raw PUT to {tried.url.shown}: {tried.reason})"
            raise refused(name, self._base.shown, failure, self._base) from None
        return _answered_url(name, stored)


def put(
    client: Client,
    url: HttpUrl,
    file: OutputFile,
    terms: Terms,
    *,
    follow: frozenset[int] = http_client.REDIRECTS_OF_PUT,
    confirm: Callable[[], None] = lambda: None,
) -> Stored:
    """PUT the raw file. Raises HttpFailure, UploadError when the file changes meanwhile, Canceled, and whatever
    `confirm` does, which is called before each sending."""
    return _send(client, url, _Body(file), file.type, terms, follow=follow, confirm=confirm)


def _send(
    client: Client,
    url: HttpUrl,
    body: _Body,
    content_type: str,
    terms: Terms,
    *,
    keep: int = 0,
    follow: frozenset[int] = http_client.REDIRECTS_OF_PUT,
    confirm: Callable[[], None] = lambda: None,
) -> Stored:
    sent = {**terms.headers, "Content-Type": content_type, "Content-Length": str(body.size)}

    def attempt() -> Stored:
        confirm()
        with client.exchange(
            "PUT", url, headers=sent, body=body.blocks, follow=follow, cancel=terms.cancel, until=terms.until
        ) as answer:
            _require_success(answer, content_type)
            content = answer.read(keep) if keep else b""
            return Stored(answer.url, answer.response.headers.get("Location"), content)

    return client.trying(attempt, terms.cancel)


def _require_success(answer: Answer, content_type: str) -> None:
    """Raise HttpFailure unless the status is 2xx; that of a signed URL says what is wrong with it."""
    try:
        answer.require_success()
    except HttpFailure as failure:
        said = b""
        if not failure.retryable:
            with suppress(HttpFailure):  # the status has come; that the rest has not is no news
                said = answer.read(s3_errors.MAX_ANSWER_BYTES)
        raise s3_errors.explained(failure, said, content_type) from None


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


def _location(name: str, stored: Stored) -> str:
    """The output for a raw PUT."""
    if not stored.location:
        return stored.url.public
    try:
        return stored.url.resolve(stored.location).public
    except UrlError as error:
        raise UploadError(
            f"The output file {quoted(name)} was uploaded to {stored.url.shown}, whose Location cannot be used: "
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
        f"The output file {quoted(name)} was uploaded to {stored.url.shown} as a form, and the answer is not "
        '{"url": "…"} with the URL of the file. Correct the server, or choose the upload mode put.'
    )


def refused(name: str, where: str, failure: HttpFailure, first: HttpUrl) -> UploadError:
    """The error of an upload to `where`, which began at the URL `first`."""
    told = f"The output file {quoted(name)} could not be uploaded to {where}: {failure.told(first)}."
    return UploadError(f"{told} {_advice(failure)}".rstrip())


def _advice(failure: HttpFailure) -> str:
    match failure.status:
        case _ if isinstance(failure, s3_errors.S3Failure):
            return failure.advice
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
