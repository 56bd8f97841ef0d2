"""What the runner needs of cog.yaml, read without a YAML library.

It must not judge the rest of the file. Read are top-level keys with plain or quoted scalars, and `max` below
`concurrency`. Whatever stands below other keys is passed over.
"""

from __future__ import annotations

import json
import re
from typing import Any, Optional

from .refusal import Refused

FILE = "cog.yaml"
_KEY = re.compile(
    r"""(?:"(?P<double>[^"\\]*)"|'(?P<single>[^']*)'|(?P<plain>[^\s?:,\[\]{}#&*!|>'"%@`-](?:[^:#]|:(?=\S)|(?<=\S)\#)*?))"""
    r"""[ \t]*:(?:[ \t]+(?P<value>.*))?\Z"""
)
_DOUBLE = re.compile(r'"((?:[^"\\]|\\["\\/])*)"[ \t]*(?:#.*)?\Z')
_SINGLE = re.compile(r"'((?:[^']|'')*)'[ \t]*(?:#.*)?\Z")
_FLOW_MAX = re.compile(r"""(?:^\{|,)\s*["']?max["']?\s*:\s*(\d+)\s*(?:,|\}\s*(?:#.*)?\Z)""")


class Config:
    """`predict` is the reference to the predictor, `line` where it stands; `train_line` where a `train` stands."""

    __slots__ = ("concurrency_line", "line", "max_concurrency", "predict", "train_line")

    def __init__(self, predict: str, line: int, max_concurrency: int) -> None:
        self.predict = predict
        self.line = line
        self.max_concurrency = max_concurrency
        self.concurrency_line: Optional[int] = None
        self.train_line: Optional[int] = None


def read_config(text: str) -> Config:
    """Raises Refused for text that is not understood, and when there is no predictor in it."""
    text = text.lstrip("\ufeff")
    # JSON is YAML too.
    entries = _from_json(text) if text.lstrip().startswith("{") else _top_level(text)
    references = [name for name in ("predict", "run") if name in entries]
    if not references:
        raise Refused(
            f"{FILE} does not say which predictor to load", 'write predict: "predict.py:Predictor" in it', FILE, 1
        )
    if len(references) == 2:
        raise Refused(f"{FILE} has both predict and run", "keep one of them", FILE, entries["run"].line)
    entry = entries[references[0]]
    reference = entry.scalar()
    if not reference:
        raise Refused(f"{references[0]} is empty", f'write {references[0]}: "predict.py:Predictor"', FILE, entry.line)
    concurrency = entries.get("concurrency")
    config = Config(reference, entry.line, concurrency.maximum() if concurrency else 1)
    config.concurrency_line = concurrency.line if concurrency else None
    config.train_line = entries["train"].line if "train" in entries else None
    return config


class _Entry:
    """A top-level key: its line, the text behind the colon, the lines below it."""

    __slots__ = ("below", "line", "name", "value")

    def __init__(self, name: str, value: str, line: int) -> None:
        self.name = name
        self.value = value
        self.line = line
        self.below: list[str] = []

    def scalar(self) -> Optional[str]:
        """The value as text; None for null. Raises Refused for anything but a scalar on one line."""
        for pattern in (_DOUBLE, _SINGLE):
            match = pattern.match(self.value)
            if match and not self.below:
                text = match.group(1)
                return re.sub(r"\\(.)", r"\1", text) if pattern is _DOUBLE else text.replace("''", "'")
        plain = _without_comment(self.value)
        if self.below or plain[:1] in tuple("\"'&*!|>{}[]%@`,?#"):
            raise Refused(
                f"{self.name} is not a plain string",
                f'write {self.name}: "predict.py:Predictor" on one line',
                FILE,
                self.line,
            )
        return None if plain in ("", "~", "null", "Null", "NULL") else plain

    def maximum(self) -> int:
        """`max` of a concurrency; 1 when it is not there."""
        if self.value.startswith("{"):
            match = _FLOW_MAX.search(self.value)
            return max(1, int(match.group(1))) if match else 1
        for line in self.below:
            key = _KEY.match(line.strip())
            if key and _name(key) == "max":
                number = _without_comment(key.group("value") or "").strip("\"'")
                if not number.isdigit() or int(number) < 1:
                    raise Refused(
                        f"concurrency.max is {number!r}", "write a whole number of 1 or more", FILE, self.line
                    )
                return int(number)
        return 1


def _from_json(text: str) -> dict[str, _Entry]:
    try:
        parsed: Any = json.loads(text)
    except ValueError as error:
        raise Refused(f"{FILE} is not understood: {error}", "write one `key: value` a line", FILE, 1) from None
    return {name: _Entry(name, json.dumps(value, ensure_ascii=False), 1) for name, value in parsed.items()}


def _top_level(text: str) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    current: Optional[_Entry] = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.rstrip()
        if current is not None and _is_open(current.value):  # a flow collection over several lines
            current.value += " " + _without_comment(line)
            continue
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] == "%" and current is None:
            continue
        if line == "---" or line.startswith("--- "):
            if current is not None:
                break  # a second document
            continue
        if line == "...":
            break
        if line[0] in " \t" or line == "-" or line.startswith("- "):
            if current is None:
                raise Refused(f"{FILE} is not understood: {line.strip()!r}", "begin the line with a key", FILE, number)
            current.below.append(line)
            continue
        key = _KEY.match(line)
        if key is None:
            raise Refused(f"{FILE} is not understood: {line!r}", "write one `key: value` a line", FILE, number)
        current = _Entry(_name(key), (key.group("value") or "").strip(), number)
        if current.value.startswith("#"):
            current.value = ""
        if current.name in entries:
            raise Refused(f"{FILE} has {current.name} twice", "keep one of them", FILE, number)
        entries[current.name] = current
    return entries


def _name(key: re.Match[str]) -> str:
    return next(name for name in key.group("double", "single", "plain") if name is not None)


def _without_comment(text: str) -> str:
    return re.sub(r"(?:^|[ \t]+)#.*\Z", "", text).strip()


def _is_open(value: str) -> bool:
    """Whether a flow collection has begun in this text and not ended."""
    if value[:1] not in ("{", "["):
        return False
    depth = 0
    quote = ""
    for character in value:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
    return depth > 0
