"""Looks at a JSON text without building it: how deep it is, how much of what there is in it, which keys come twice.

It must not know what a request is, nor whether the text is JSON at all: whoever decodes it tells. Every expression here
takes time in proportion to the text whatever is in it (no backtracking, and no match ever fails), and no memory to
speak of.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_DEPTH: Final = 100
"""Arrays and objects within each other. Python's own reader gives up at about 1,000, and models sooner."""
MAX_KEYS: Final = 1_000_000
"""In all objects together."""
MAX_CONTAINERS: Final = 1_000_000
"""Arrays and objects in all. A pair of brackets takes two bytes here and more than fifty in the model's process."""
MAX_DIGITS: Final = 640
"""Of one number: what every Python reads, however it is set (sys.int_info.str_digits_check_threshold)."""
MAX_SHOWN: Final = 40
"""Characters of a text that may be repeated in what is said about it."""

_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# `(?!)` never matches: until Python 3.11.5, a possessive loop whose last round failed went on from where that round had
# got to, and not from where it began, as it does after an alternative that takes nothing.
#
# A string behind which comes no colon is a value; what is open until the end of the text is swallowed whole.
_KEY: Final = re.compile(rb'[^"]*+(?:%b(?!\s*+:)[^"]*+|(?!))*+(?:(%b)|".*+)?' % (_STRING, _STRING), re.DOTALL)
_TOKEN: Final = re.compile(
    rb'[^"\[\]{}]*+(?:%b(?!\s*+:)[^"\[\]{}]*+|(?!))*+(?:([\[\]{}])|(%b)|".*+)?' % (_STRING, _STRING), re.DOTALL
)
_SHORT_NUMBERS: Final = re.compile(rb'(?:[^"0-9]++|%b|[0-9]{1,%d}+(?![0-9])|(?!))*+' % (_STRING, MAX_DIGITS), re.DOTALL)
_VALUE: Final = re.compile(rb"\s*+:\s*+(%b)" % _STRING, re.DOTALL)
_OPENING: Final = (b"{", b"[")


def fault(text: bytes) -> str | None:
    """What is wrong with the text, as a part of a sentence; None when nothing is.

    A text whose brackets and colons are few, and whose keys all differ, needs no closer look: that is all there is to
    a usual request.
    """
    if len(text) > MAX_DIGITS and text[_end_of_short_numbers(text) :][:1].isdigit():
        return f"it has a number of more than {MAX_DIGITS} digits"
    if text.count(b"{") + text.count(b"[") <= MAX_DEPTH and text.count(b":") <= MAX_KEYS:
        keys = _KEY.findall(text)
        # What follows the last key is found as empty keys, once or twice. An escape may spell a key in another way.
        if len(set(keys)) + keys.count(b"") - 1 == len(keys) and not (b"\\" in text and b"\\" in b"".join(keys)):
            return None
    return _closely(text)


def _end_of_short_numbers(text: bytes) -> int:
    match = _SHORT_NUMBERS.match(text)
    return 0 if match is None else match.end()


def _closely(text: bytes) -> str | None:
    open: list[set[bytes]] = []
    containers = keys = 0
    for match in _TOKEN.finditer(text):
        bracket, key = match.groups()
        if key is not None:
            keys += 1
            if keys > MAX_KEYS:
                return f"it has more than {MAX_KEYS} keys"
            name = _spelled(key)
            if open:
                if name in open[-1]:
                    return f"the key {_shown(name)} comes twice in the same object"
                open[-1].add(name)
        elif bracket in _OPENING:
            containers += 1
            if containers > MAX_CONTAINERS:
                return f"it has more than {MAX_CONTAINERS} arrays and objects"
            open.append(set())
            if len(open) > MAX_DEPTH:
                return f"it is more than {MAX_DEPTH} levels deep"
        elif bracket is not None and open:
            open.pop()
    return None


def top_level_string(text: bytes, name: str) -> str | None:
    """The string that an object has under this key, as far as it can be told: the text may be broken elsewhere.

    None if there is none, if it is there twice, or behind more than a text within the limits can have.
    """
    wanted, found, depth = name.encode(), None, 0
    for count, match in enumerate(_TOKEN.finditer(text)):
        bracket, key = match.groups()
        if count > 2 * MAX_CONTAINERS + MAX_KEYS or (count == 0 and bracket != b"{"):
            break
        if bracket is not None:
            depth += 1 if bracket in _OPENING else -1
            if not depth:
                break
        elif key is not None and depth == 1 and _spelled(key) == wanted:
            value = _VALUE.match(text, match.end())
            if value is None or found is not None:
                return None
            found = value[1]
    if found is None:
        return None
    try:
        return msgspec.json.decode(found, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _spelled(key: bytes) -> bytes:
    """The key that a string spells; a broken one is whatever it is."""
    if b"\\" not in key:
        return key[1:-1]
    try:
        return msgspec.json.decode(key, type=str).encode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return key


def _shown(key: bytes) -> str:
    text = key[: 4 * MAX_SHOWN].decode(errors="replace")
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…")
