"""One download: tries that go on where the last one broke off, and a cache whose entries the server confirms.

It must not know whose input it is, nor how the cache is kept.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from io import FileIO
from pathlib import Path
from typing import Final

from cog_celery.errors import InputError
from cog_celery.files import http_client
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Answer, Client, HttpFailure, TooSlow
from cog_celery.files.input_cache import Entry, InputCache, Part, key_of
from cog_celery.files.urls import HttpUrl

BLOCK: Final = 112 << 10
"""Bytes that are read at once. From 128 KiB on the C library maps fresh pages for each: 1 GB costs twice the CPU."""
MAX_ETAG: Final = 1024
MADE_FREE: Final = 256 << 20
"""Bytes of the cache that go at a time when a prediction's own disk is full."""

ROUNDS: Final = 3
"""Looks at a cache in which another one is just replacing the entry, before the file is fetched on its own."""

SETTLED: Final = timedelta(seconds=60)
"""A file that was modified so long before it was sent will hardly have been modified twice in that second."""

_STRONG: Final = re.compile(r'"[\x21\x23-\x7e]+"')
_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")

log = logging.getLogger(__name__)


def download(
    url: HttpUrl, path: Path, max_bytes: int, client: Client, cancel: Cancel, cache: InputCache | None = None
) -> None:
    """Fetch the URL to a new file at `path`, whose folder is made. No file is left by InputError and Canceled."""
    transfer = _Transfer(url, max_bytes, client, cancel)
    target = _Target(path, cancel, cache)
    try:
        with stored(path, url.shown):
            try:
                if cache is None or not _Cached(url, path, cache, transfer, target, cancel).run():
                    transfer.run(lambda answer: target.begin(), target)
                    target.finish("", "")
            finally:
                target.close()
    except HttpFailure as failure:
        raise InputError(
            f"The input file {url.shown} could not be fetched: {failure.told(url)}. {_advice(failure)}"
        ) from None


@contextmanager
def stored(path: Path, shown: str) -> Iterator[None]:
    """While a file is made at `path`: its folder is there, and it is removed again if it is not completed."""
    with room_for(f"The input file {shown}"):
        try:
            path.parent.mkdir(exist_ok=True)
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            raise


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Raises InputError for what the disk refuses meanwhile: errors of sockets are urllib3's."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{what} could not be stored: {error.strerror}. Make room on the worker's disk for temporary files."
        ) from None


def write(file: FileIO, data: bytes) -> None:
    """Write all of the data. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def too_large(shown: str, max_bytes: int) -> InputError:
    """What is raised for a file above the limit."""
    return InputError(f"The input file {shown} is larger than {max_bytes} bytes, the limit. Send a smaller one.")


class _Target:
    """The prediction's file; with a part of the cache, that is written instead, and the file is a copy of it."""

    def __init__(self, path: Path, cancel: Cancel, cache: InputCache | None) -> None:
        self.size = 0
        self.part: Part | None = None
        self._path = path
        self._cancel = cancel
        self._cache = cache
        self._file: FileIO | None = None

    def begin(self, part: Part | None = None) -> bool:
        """What comes is the beginning. Raises OSError."""
        self.close()
        self.size = 0
        self.part = part
        if part is None:
            self._file = FileIO(self._path, "w")
        return True

    def write(self, data: bytes) -> None:
        if self.part is not None:
            try:
                self.part.write(data)
            except OSError as error:
                _full(error)
                self._file = self.part.give(self._path, self._cancel)
                self.part = None
        if self._file is not None:
            self._write(self._file, data)
        self.size += len(data)

    def _write(self, file: FileIO, data: bytes) -> None:
        try:
            write(file, data)
        except OSError as error:
            if error.errno != errno.ENOSPC or self._cache is None:
                raise
            # What is kept for others is not worth a prediction.
            self._cache.free(MADE_FREE, self._path.parent)
            file.seek(self.size)
            write(file, data)

    def finish(self, etag: str, source: str) -> None:
        if self.part is not None:
            self.part.keep(self._path, etag, source, self._cancel)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class _First:
    """What the answer that began the file said of it, so that another one can be asked for the rest."""

    validator: str
    total: int
    source: HttpUrl


class _Transfer:
    """The exchanges for one file."""

    def __init__(self, url: HttpUrl, max_bytes: int, client: Client, cancel: Cancel) -> None:
        self.max_bytes = max_bytes
        self.shown = url.shown
        self._url = url
        self._client = client
        self._cancel = cancel
        self._first: _First | None = None

    def run(self, begin: Callable[[Answer], bool], target: _Target, condition: Mapping[str, str] | None = None) -> None:
        """GET until the whole body is in `target`. `begin` is told of every answer that starts at its first byte, and
        says whether its body is wanted; only with a `condition` it may be a 304.

        Raises HttpFailure, InputError when it is too large, Canceled, OSError.
        """
        self._first = None
        self._client.trying(lambda: self._attempt(begin, target, condition or {}), self._cancel)

    def _attempt(self, begin: Callable[[Answer], bool], target: _Target, condition: Mapping[str, str]) -> None:
        first, headers = self._first, {"Accept": "*/*", **condition}
        if first is not None and target.size:
            headers = {"Accept": "*/*", "Range": f"bytes={target.size}-", "If-Range": first.validator}
        with self._client.exchange(
            "GET", self._url, headers=headers, follow=http_client.REDIRECTS_OF_GET, cancel=self._cancel
        ) as answer:
            status = answer.response.status
            if first is not None and "Range" in headers and status in (206, 416):
                if status == 416 or not _is_the_rest(answer, first, target.size):
                    self._first = None
                    raise HttpFailure(answer.url, "the rest of it cannot be had on its own", retryable=True)
            else:
                if status != 304 or "If-None-Match" not in headers:
                    answer.require_success()
                if (answer.response.length_remaining or 0) > self.max_bytes:
                    raise too_large(self.shown, self.max_bytes)
                self._first = first = _first(answer)
                if not begin(answer):
                    return
            self._save(answer, target, first)

    def _save(self, answer: Answer, target: _Target, first: _First | None) -> None:
        while block := answer.read(BLOCK):
            if target.size + len(block) > self.max_bytes:
                raise too_large(self.shown, self.max_bytes)
            target.write(block)
        if first is not None and target.size != first.total:  # of a part whose own length was wrong, or not told
            if target.size > first.total:
                self._first = None
            missing = f"{target.size} bytes came of {first.total}"
            raise HttpFailure(answer.url, f"the connection broke off: {missing}", retryable=True)


class _Cached:
    """A download by way of the cache. Its server is asked every time, with the very URL that was sent: who may not have
    the file does not get it from here."""

    def __init__(
        self, url: HttpUrl, path: Path, cache: InputCache, transfer: _Transfer, target: _Target, cancel: Cancel
    ) -> None:
        self._key = key_of(url)
        self._path = path
        self._cache = cache
        self._transfer = transfer
        self._target = target
        self._cancel = cancel
        self._entry: Entry | None = None
        self._part: Part | None = None
        self._answered: Answer | None = None

    def run(self) -> bool:
        """Whether the file is there; else it is for another way to fetch it."""
        for number in range(ROUNDS):
            try:
                if self._round(wait=number > 0):
                    return True
            finally:
                self._let_go()
        return False

    def _round(self, wait: bool) -> bool:
        """With an entry, ask whether it holds; without, fetch one as the only one who does. False: once more."""
        self._entry = None if wait else self._cache.find(self._key)
        if self._entry is None:
            self._part = self._cache.claim(self._key, self._cancel)
            self._entry = self._cache.find(self._key)  # another one may have fetched it while we waited
            if self._entry is not None:
                self._drop_part()
        condition = {"If-None-Match": self._entry.etag} if self._entry is not None else {}
        self._transfer.run(self._begin, self._target, condition)
        answer = self._answered
        if answer is None:
            return False
        if answer.response.status == 304:
            return self._entry is not None and self._use(self._entry, answer)
        self._target.finish(_strong_etag(answer), key_of(answer.url))
        return True

    def _begin(self, answer: Answer) -> bool:
        if answer.response.status == 304:
            self._answered = answer
            return False
        if self._entry is not None and self._part is None:
            self._part = self._cache.claim(self._key, self._cancel, wait=False)
            if self._part is None:
                return False  # another one is fetching what is new
        length = None if _encoding(answer) else answer.response.length_remaining
        kept = self._part is not None and bool(_strong_etag(answer)) and _may_be_kept(answer)
        if self._part is not None and not (kept and self._part.begin(length)):
            self._drop_part()
        self._answered = answer
        return self._target.begin(self._part)

    def _use(self, entry: Entry, answer: Answer) -> bool:
        """Whether the entry was meant by a 304, and is a file for the prediction now."""
        told = answer.response.headers.get("ETag", entry.etag)
        if key_of(answer.url) != entry.source or told.removeprefix("W/") != entry.etag:
            # Another server than the one whose file it is may use the same ETag for something else.
            entry.forget()
            return False
        if entry.size > self._transfer.max_bytes:
            raise too_large(self._transfer.shown, self._transfer.max_bytes)
        try:
            entry.copy(self._path, self._cancel)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            log.warning("the input cache could not be read: %s", error.strerror)
            entry.forget()
            return False
        if not _may_be_kept(answer):
            entry.forget()
        return True

    def _drop_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def _let_go(self) -> None:
        self._drop_part()
        self._answered = None
        if self._entry is not None:
            self._entry.close()
            self._entry = None


def _first(answer: Answer) -> _First | None:
    """None when the rest could not be asked for, or would not fit: unpacked bytes have other numbers."""
    total, validator = answer.response.length_remaining, _strong_etag(answer) or _settled_time(answer)
    if answer.response.status != 200 or total is None or not validator or _encoding(answer):
        return None
    if "none" in answer.response.headers.get("Accept-Ranges", "").lower():
        return None
    return _First(validator, total, answer.url)


def _is_the_rest(answer: Answer, first: _First, position: int) -> bool:
    match = _RANGE.fullmatch(answer.response.headers.get("Content-Range", "").strip())
    return (
        match is not None
        and (int(match[1]), int(match[2]), int(match[3])) == (position, first.total - 1, first.total)
        and answer.response.length_remaining in (None, first.total - position)
        and not _encoding(answer)
        and key_of(answer.url) == key_of(first.source)
        and (not first.validator.startswith('"') or _strong_etag(answer) in ("", first.validator))
    )


def _encoding(answer: Answer) -> str:
    encoding = answer.response.headers.get("Content-Encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def _strong_etag(answer: Answer) -> str:
    """The ETag, if it stands for the bytes themselves; else nothing."""
    etag = answer.response.headers.get("ETag", "").strip()
    return etag if len(etag) <= MAX_ETAG and _STRONG.fullmatch(etag) else ""


def _settled_time(answer: Answer) -> str:
    """Last-Modified, if it stands for the bytes; else nothing. That is enough for the rest of a file, which a server
    sends at exactly this time only, and not for a cache: to an older file, moved there later, servers say 304."""
    modified, date = (answer.response.headers.get(name, "") for name in ("Last-Modified", "Date"))
    try:
        settled = parsedate_to_datetime(date) - parsedate_to_datetime(modified) >= SETTLED
    except (ValueError, TypeError, OverflowError):
        return ""
    return modified if settled else ""


def _may_be_kept(answer: Answer) -> bool:
    """`private` may: the server is asked on behalf of each who gets it. Nothing that we send is ever varied upon.

    A body that ends with its connection may not: it may have been cut.
    """
    headers = answer.response.headers
    words = re.split(r"[\s,]+", headers.get("Cache-Control", "").lower())
    whole = answer.response.length_remaining is not None or "Transfer-Encoding" in headers
    return (
        (answer.response.status == 304 or (answer.response.status == 200 and whole))
        and "no-store" not in words
        and "*" not in headers.get("Vary", "")
        and "Set-Cookie" not in headers
    )


def _full(error: OSError) -> None:
    level = logging.INFO if error.errno == errno.ENOSPC else logging.WARNING
    log.log(level, "an input file is not kept in the cache: %s", error.strerror)


def _advice(failure: HttpFailure) -> str:
    match failure.status:
        case 401 | 403:
            return "Send a URL that needs no credentials and has not expired."
        case 404 | 410:
            return "Check that the file is still there."
        case _ if isinstance(failure, TooSlow):
            return "Send one from a faster server."
        case _ if failure.retryable:
            return "Try again later."
        case _:
            return "Check the URL."
