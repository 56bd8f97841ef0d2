"""The types that a predictor may declare beyond Python's own.

It must not know how they are checked, nor how the files of a worker are fetched and uploaded. URLPath and URLFile fetch
for themselves, when they are used.
"""

from __future__ import annotations

import importlib
import io
import os
import pathlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Callable, Optional, TypeVar

from .input import FieldInfo, Input

__all__ = [
    "AsyncConcatenateIterator",
    "ConcatenateIterator",
    "ExperimentalFeatureWarning",
    "FieldInfo",
    "File",
    "Input",
    "Path",
    "Secret",
    "URLFile",
    "URLPath",
]

MASK = "**********"

Item = TypeVar("Item")


class ExperimentalFeatureWarning(FutureWarning):
    """A feature that may change. Kept for models that silence it."""


class _Field:
    """What pydantic asks a class for that is a field of one of its models. Pydantic is there when this is called."""

    __slots__ = ()

    @classmethod
    def _from_field(cls, value: Any) -> Any:
        return value if isinstance(value, cls) else cls(value)  # type: ignore[call-arg]

    @classmethod
    def __get_validators__(cls) -> Iterator[Callable[[Any], Any]]:
        yield cls._from_field

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        core_schema = importlib.import_module("pydantic_core.core_schema")
        return core_schema.no_info_plain_validator_function(
            cls._from_field, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


class Path(_Field, pathlib.PosixPath):
    """A file: as an input it was fetched already, as an output it will be uploaded."""


class URLPath(Path):
    """A file that is fetched when it is used: by convert(), open() or whatever else asks for its name.

    str() is the URL. `fileobj` is what it is read from; None: the URL. Raises OSError when it cannot be fetched.
    """

    source: str
    filename: str
    fileobj: Any
    _path: Optional[Path]

    def __new__(cls, *, source: str, filename: Optional[str] = None, fileobj: Any = None) -> URLPath:
        from ._runner.fetching import file_name

        name = filename or file_name(source)
        made = super().__new__(cls, name)
        made.source, made.filename, made.fileobj, made._path = source, name, fileobj, None
        return made

    def __init__(self, *, source: str, filename: Optional[str] = None, fileobj: Any = None) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(self.filename)

    def with_segments(self, *segments: Any) -> Path:
        """What is derived from it, its parent say, has no URL."""
        return Path(*segments)

    def convert(self) -> Path:
        """The local file; fetches it the first time."""
        if self._path is None:
            from ._runner.fetching import fetch

            self._path = Path(fetch(self.source, self.filename, self.fileobj))
        return self._path

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the local file, if it was fetched."""
        if self._path is not None:
            self._path.unlink(missing_ok=missing_ok)

    def discard(self) -> None:
        """Remove the local file and its folder, if it was fetched."""
        if self._path is not None:
            path, self._path = self._path, None
            path.unlink(missing_ok=True)
            path.parent.rmdir()

    def __fspath__(self) -> str:
        return os.fspath(self.convert())

    def __str__(self) -> str:
        return self.source

    def __repr__(self) -> str:
        return f"URLPath({self.filename!r})"  # a URL may carry credentials

    def __reduce__(self) -> Any:
        return _make_url_path, (self.source, self.filename)


def _make_url_path(source: str, filename: str) -> URLPath:
    return URLPath(source=source, filename=filename)


class File(io.IOBase):
    """An open file. Kept for old models: declare Path instead."""


class URLFile(File):
    """A file that is read from its URL as it is used, from start to end; opened at the first use, and again when it was
    pickled in between.

    Raises ValueError for a URL that is not http or https, OSError when it cannot be opened.
    """

    _opened: Any = None

    def __init__(self, url: str, filename: Optional[str] = None) -> None:
        from ._runner.fetching import file_name, scheme_of

        if scheme_of(url) not in ("http", "https"):
            raise ValueError("URLFile requires URL to conform to HTTP or HTTPS protocol")
        self.name = filename or file_name(url)
        self._url = url

    def _response(self) -> Any:
        if self._opened is None:
            from ._runner.fetching import open_url

            self._opened = open_url(self._url)
        return self._opened

    def read(self, size: Optional[int] = -1) -> bytes:
        """The next bytes; all that are left for -1 or None."""
        return bytes(self._response().read(None if size is None or size < 0 else size))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readline(self, size: Optional[int] = -1) -> bytes:
        return bytes(self._response().readline(-1 if size is None else size))

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        super().close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "name":  # not there yet: __init__() has not run
            raise AttributeError(name)
        return getattr(self._response(), name)

    def __reduce__(self) -> Any:
        return URLFile, (self._url, self.name)

    def __repr__(self) -> str:
        return f"<URLFile {self.name!r}>"  # a URL may carry credentials


class Secret(_Field):
    """A text that is shown nowhere: not by str(), repr(), outputs or errors."""

    __slots__ = ("_value",)

    def __init__(self, value: Optional[str] = None) -> None:
        self._value = value

    def get_secret_value(self) -> Optional[str]:
        """The text itself."""
        return self._value

    def __repr__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class ConcatenateIterator(Iterator[Item]):
    """Yields pieces of one text; consumers show them joined."""


class AsyncConcatenateIterator(AsyncIterator[Item]):
    """As ConcatenateIterator, yielded by an async generator."""
