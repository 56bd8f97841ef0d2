"""From the JSON of an input to the value that predict() gets: conversions and constraints.

It must not know about predictors. A converter takes what was given, returns the value, or raises Unfit with the kind
and the limit of docs/runner-protocol.md.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Optional

Converter = Callable[[Any], Any]

MAX_DIGITS = 4300
"""The longest text that is read as a number: longer ones cost time that grows with their square."""

BOOLEANS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off"), False),
}
URL_SCHEMES = ("http", "https", "data")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")


class Unfit(Exception):
    """A value that an input cannot have. `at` are the keys that lead to it in a structure."""

    def __init__(self, kind: str, limit: Any = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.limit = limit
        self.at: tuple[str, ...] = ()

    def within(self, name: str) -> Unfit:
        """Itself, seen from the structure that has the value under that name."""
        self.at = (name, *self.at)
        return self


def to_any(value: Any) -> Any:
    """Anything as it is."""
    return value


def to_bool(value: Any) -> bool:
    """true, false, 1, 0, and the words that forms send."""
    if value is True or value is False:
        return value
    if isinstance(value, str):
        known = BOOLEANS.get(value.lower())
        if known is not None:
            return known
    elif isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    raise Unfit("bool")


def to_int(value: Any) -> int:
    """A whole number, as a number or as text."""
    if type(value) is int:
        return value
    number = None
    try:
        if isinstance(value, (int, float)):
            number = int(value)
            if number == value:
                return number
        elif isinstance(value, str) and len(value) <= MAX_DIGITS:
            return int(value)
    except (ValueError, OverflowError):
        pass  # no number, or an infinite one
    raise Unfit("integer")


def to_float(value: Any) -> float:
    """A number, as a number or as text; a whole one that no float equals is refused."""
    if type(value) is float:
        return value
    try:
        if isinstance(value, (int, float)):
            number = float(value)
            if number == value:
                return number
        elif isinstance(value, str) and len(value) <= MAX_DIGITS:
            return float(value)
    except (ValueError, OverflowError):
        pass  # no number, or one beyond all floats
    raise Unfit("float")


def to_str(value: Any) -> str:
    """A text; numbers become theirs."""
    if type(value) is str:
        return value
    if isinstance(value, (str, int, float)):
        return str(value)
    raise Unfit("str")


def to_dict(value: Any) -> dict[str, Any]:
    """An object."""
    if isinstance(value, dict):
        return value
    raise Unfit("dict")


def to_url(value: Any) -> str:
    """The URL of a file, of a scheme that can be fetched."""
    if not isinstance(value, str):
        raise Unfit("str")
    match = _SCHEME.match(value)
    scheme = match.group(1).lower() if match else ""
    if scheme not in URL_SCHEMES:
        raise Unfit("url_scheme", scheme)
    return value


def to_list(element: Converter) -> Converter:
    """A list whose elements are all fit."""

    def convert(value: Any) -> Any:
        if not isinstance(value, list):
            raise Unfit("list")
        return [element(item) for item in value]

    return convert


def to_set(element: Converter) -> Converter:
    """A list of different elements, all of them fit, as a set."""

    def convert(value: Any) -> Any:
        if not isinstance(value, list):
            raise Unfit("list")
        try:
            return {element(item) for item in value}
        except TypeError:
            raise Unfit("invalid", "the elements of a set cannot be lists or objects") from None

    return convert


def to_mapping(key: Converter, element: Converter) -> Converter:
    """An object whose keys and values are all fit."""

    def convert(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Unfit("dict")
        made = {}
        for name, item in value.items():
            try:
                made[key(name)] = element(item)
            except Unfit as unfit:
                raise unfit.within(name) from None
        return made

    return convert


def to_optional(convert: Converter) -> Converter:
    """A fit value, or null."""
    return lambda value: None if value is None else convert(value)


def to_made(convert: Converter, make: Callable[[Any], Any]) -> Converter:
    """What `make` makes of a fit value."""
    return lambda value: make(convert(value))


def to_choice(convert: Converter, choices: list[Any]) -> Converter:
    """One of the choices; `convert` None: without any conversion."""

    def check(value: Any) -> Any:
        value = convert(value)
        if value not in choices:
            raise Unfit("choices", choices)
        return value

    return check


def to_text_choice(choices: list[str]) -> Converter:
    """One of these texts, and nothing that only turns into one."""
    known = frozenset(choices)

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in known:
            return value
        raise Unfit("choices", choices)

    return check


def constrained(
    convert: Converter,
    ge: Optional[float] = None,
    le: Optional[float] = None,
    min_length: Optional[int] = None,
    max_length: Optional[int] = None,
    regex: Optional[str] = None,
) -> Converter:
    """A converter that holds its value to limits; `regex` has to match from the start."""
    if ge is None and le is None and min_length is None and max_length is None and regex is None:
        return convert
    matches = None if regex is None else re.compile(regex).match

    def check(value: Any) -> Any:
        value = convert(value)
        # Written so that a value that is no number (NaN) is beyond every limit.
        if ge is not None and not value >= ge:
            raise Unfit("ge", ge)
        if le is not None and not value <= le:
            raise Unfit("le", le)
        if min_length is not None and len(value) < min_length:
            raise Unfit("min_length", min_length)
        if max_length is not None and len(value) > max_length:
            raise Unfit("max_length", max_length)
        if matches is not None and not matches(value):
            raise Unfit("regex", regex)
        return value

    return check
