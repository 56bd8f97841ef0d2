"""Fetches what a model asked to fetch by itself: a URLPath or a URLFile, in the model's process.

It must not be used for any other input: those are fetched by the worker, under its rules for addresses and sizes.
"""

from __future__ import annotations

import os
from typing import Any, Optional

from .standard import import_standard

MAX_NAME = 200
"""Bytes of a local file's name."""
TIMEOUT = 30.0
"""Seconds without a byte from the server."""
SCHEMES = ("http", "https", "data")


def scheme_of(url: str) -> str:
    """A URL's scheme in lower case; empty where there is none."""
    return url.partition(":")[0].lower() if ":" in url else ""


def file_name(url: str) -> str:
    """The name that a URL gives its file, safe in every folder."""
    if scheme_of(url) == "data":
        kind = url[5:].partition(",")[0].partition(";")[0].strip().lower()
        return "file" + (import_standard("mimetypes").guess_extension(kind or "text/plain") or "")
    parse = import_standard("urllib.parse")
    name = parse.unquote(parse.urlsplit(url).path.rpartition("/")[2]).replace("/", "_").replace("\0", "_")
    name = name.encode("utf-8", "replace").decode()
    if len(name.encode()) > MAX_NAME:
        stem, extension = os.path.splitext(name)
        if len(extension.encode()) >= MAX_NAME:
            stem, extension = name, ""
        name = stem.encode()[: MAX_NAME - len(extension.encode()) - 1].decode(errors="ignore") + "~" + extension
    return "file" if name in ("", ".", "..") else name


def open_url(url: str) -> Any:
    """The response to a GET, to be read. Raises OSError, ValueError for a scheme that cannot be fetched."""
    if scheme_of(url) not in SCHEMES:
        raise ValueError(f"{scheme_of(url)!r} is not a scheme that can be fetched: give http, https or data")
    return import_standard("urllib.request").urlopen(url, timeout=TIMEOUT)


def fetch(url: str, name: str, source: Optional[Any] = None) -> str:
    """Write what a URL, or an open file, holds to a file of that name in a folder of its own. Raises OSError."""
    shutil = import_standard("shutil")
    with open_url(url) if source is None else source as response:
        path = os.path.join(import_standard("tempfile").mkdtemp(prefix="cog-url-"), name)
        with open(path, "wb") as file:
            shutil.copyfileobj(response, file)
    return path
