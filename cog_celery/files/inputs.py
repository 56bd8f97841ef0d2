"""Files in: the URLs among a prediction's inputs become files in its scratch folder.

It must not know which input a file belongs to, nor who removes the folder.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

from cog_celery.errors import Canceled, InputError, UrlError
from cog_celery.files import downloads, mime, urls
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client
from cog_celery.files.input_cache import InputCache
from cog_celery.files.urls import HttpUrl

MAX_BYTES: Final = 8 << 30
TIMEOUT: Final = 3600.0
"""For all files of a prediction: each of them may take as long as its server keeps up the least rate."""

PARALLEL: Final = 4
MAX_NAME_BYTES: Final = 200
MAX_EXTENSION_BYTES: Final = 20

_IN_DATA_URL: Final = "in a data: URL"
_FORBIDDEN = re.compile(r"[/\x00-\x1f\x7f]")
_DATA = re.compile(r"data:([^,]*),(.*)", re.IGNORECASE | re.DOTALL)
_WHITESPACE = b" \t\r\n\f"
_URL_SAFE_BASE64 = bytes.maketrans(b"-_", b"+/")


def fetch(
    addresses: Sequence[str],
    folder: Path,
    client: Client,
    *,
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT,
    cancel: Cancel | None = None,
    cache: InputCache | None = None,
) -> list[Path]:
    """Download or decode every URL into a file below `folder`, which must be empty; the files, in the URLs' order.

    Each file has a sub-folder of its own, so that all keep their names. `max_bytes` holds for each file, `timeout`
    (seconds) for all together; `cache` is the host's, if it has one. Raises InputError, whose message is for the
    producer, or Canceled.
    """
    cancel = cancel or Cancel()
    cancel.check()
    sources = [_source(address, max_bytes) for address in addresses]
    paths = [folder / str(index) / source.name for index, source in enumerate(sources)]
    remote = []
    for source, path in zip(sources, paths, strict=True):
        if isinstance(source, _Remote):
            remote.append((source.url, path))
        else:
            with downloads.stored(path, _IN_DATA_URL), FileIO(path, "w") as file:
                downloads.write(file, source.content)
    if remote:
        _download_all(remote, max_bytes, timeout, client, cancel, cache)
    return paths


@dataclass(frozen=True, slots=True)
class _Data:
    """A file that came within its URL."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class _Remote:
    """A file that is elsewhere."""

    name: str
    url: HttpUrl


def _source(address: str, max_bytes: int) -> _Data | _Remote:
    scheme = urls.scheme_of(address)
    if scheme == "data":
        return _decode(address, max_bytes)
    if scheme not in ("http", "https"):
        raise InputError(urls.refused_scheme(scheme))
    try:
        url = urls.parse(address)
    except UrlError as error:
        raise InputError(f"The URL {urls.redact(address)} of an input file cannot be used: {error}.") from None
    return _Remote(local_name(url.path), url)


def local_name(path: str) -> str:
    """The file name for a URL's path: its last part, unquoted, in a form that any file system takes."""
    name = _FORBIDDEN.sub("_", unquote(path.rpartition("/")[2], errors="replace"))
    if name in ("", ".", ".."):
        return "file"
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, _, last = name.rpartition(".")
    extension = f".{last}" if stem and len(last.encode()) < MAX_EXTENSION_BYTES else ""
    room = MAX_NAME_BYTES - len(f"~{extension}".encode())
    return name.removesuffix(extension).encode()[:room].decode(errors="ignore") + "~" + extension


def _decode(address: str, max_bytes: int) -> _Data:
    """The file in a `data:` URL. Parameters other than `base64` mean nothing to a file."""
    match = _DATA.fullmatch(address)
    if match is None:
        raise InputError(
            "A data: URL of an input has no comma before its data: it must be data:<type>[;base64],<data>."
        )
    kind, *parameters = match[1].split(";")
    try:
        content = unquote_to_bytes(match[2])
        if any(parameter.strip().lower() == "base64" for parameter in parameters):
            content = _from_base64(content)
    except UnicodeEncodeError:
        raise InputError("A data: URL of an input has characters that are no Unicode text.") from None
    except binascii.Error:
        raise InputError("A data: URL of an input says that it is base64, and is not: it may be cut off.") from None
    if len(content) > max_bytes:
        raise downloads.too_large(_IN_DATA_URL, max_bytes)
    return _Data("file" + mime.extension_of(kind or "text/plain"), content)


def _from_base64(text: bytes) -> bytes:
    """Base64 as it is found in the wild: white space, no padding, and the alphabet for URLs are fine."""
    text = text.translate(_URL_SAFE_BASE64, delete=_WHITESPACE).rstrip(b"=")
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def _download_all(
    remote: Sequence[tuple[HttpUrl, Path]],
    max_bytes: int,
    timeout: float,
    client: Client,
    cancel: Cancel,
    cache: InputCache | None,
) -> None:
    stop = Cancel()
    threads = ThreadPoolExecutor(min(len(remote), PARALLEL), thread_name_prefix="download")
    with threads, cancel.calling(stop.set):
        try:
            futures = [
                threads.submit(downloads.download, url, path, max_bytes, client, stop, cache) for url, path in remote
            ]
            wait(futures, timeout, FIRST_EXCEPTION)
        finally:
            stop.set()  # one failed, or the time is up: the others are of no use
    cancel.check()
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, Canceled):
            raise error
    for error, (url, _) in zip(errors, remote, strict=True):
        if error is not None:
            raise InputError(
                f"The input file {url.shown} did not arrive within {timeout:g} s. Use a faster server or smaller files."
            )
