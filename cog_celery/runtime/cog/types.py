"""The types that a predictor may declare beyond Python's own.

It must not know how they are checked, fetched or uploaded.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Optional, TypeVar

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
    "URLPath",
]

MASK = "**********"

Item = TypeVar("Item")


class ExperimentalFeatureWarning(Warning):
    """A feature that may change."""


class Path(pathlib.PosixPath):
    """A file: as an input it was fetched already, as an output it will be uploaded."""


class URLPath(Path):
    """As Path; the file was given by URL."""


class File(io.IOBase):
    """An open file. Kept for old models: declare Path instead."""


class Secret:
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
