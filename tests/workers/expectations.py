"""Whether a model's output is what its expected.json says, and where it is not.

It must not know any model. What expected.json may say beside plain JSON is in workers/README.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

RELATIVE: Final = 0.03
ABSOLUTE: Final = 0.04
"""Processors and versions of libraries round differently."""

FileType = Callable[[str], str | None]
"""The MIME type of the file that a URL of the output names; None when there is none."""


def differences(expected: Any, output: Any, file_type: FileType, at: str = "output") -> Iterator[str]:
    """A line for each place where they differ."""
    if isinstance(expected, dict) and any(key.startswith("$") for key in expected):
        for key, value in expected.items():
            yield from _RULES[key](value, output, file_type, at)
    elif isinstance(expected, dict) and isinstance(output, dict):
        if expected.keys() != output.keys():
            yield f"{at}: has {', '.join(sorted(output))}, not {', '.join(sorted(expected))}"
        for key in expected.keys() & output.keys():
            yield from differences(expected[key], output[key], file_type, f"{at}.{key}")
    elif isinstance(expected, list) and isinstance(output, list):
        yield from _length(len(expected), output, file_type, at)
        for index, (left, right) in enumerate(zip(expected, output, strict=False)):
            yield from differences(left, right, file_type, f"{at}[{index}]")
    elif _is_number(expected) and _is_number(output):
        if not math.isclose(expected, output, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield f"{at}: {output}, not about {expected}"
    elif expected != output or type(expected) is not type(output):
        yield f"{at}: {output!r}, not {expected!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _file(wanted: str, output: Any, file_type: FileType, at: str) -> Iterator[str]:
    found = file_type(output) if isinstance(output, str) else None
    if found != wanted:
        yield f"{at}: {str(output)[:80]!r} is {found or 'no file'}, not {wanted}"


def _length(wanted: int, output: Any, file_type: FileType, at: str) -> Iterator[str]:
    if not isinstance(output, list) or len(output) != wanted:
        yield f"{at}: {str(output)[:80]!r} is not a list of {wanted}"


def _each(wanted: Any, output: Any, file_type: FileType, at: str) -> Iterator[str]:
    if not isinstance(output, list):
        yield f"{at}: {str(output)[:80]!r} is not a list"
        return
    for index, item in enumerate(output):
        yield from differences(wanted, item, file_type, f"{at}[{index}]")


def _pattern(wanted: str, output: Any, file_type: FileType, at: str) -> Iterator[str]:
    if not isinstance(output, str) or not re.fullmatch(wanted, output):
        yield f"{at}: {output!r} does not match {wanted!r}"


_RULES: Final[dict[str, Callable[[Any, Any, FileType, str], Iterator[str]]]] = {
    "$file": _file,
    "$length": _length,
    "$each": _each,
    "$pattern": _pattern,
}
