"""Dead letters for people and for programs: a table, one letter in full, JSON.

It must not know where letters come from, and trusts nothing in them: what they hold may have been sent to harm.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cog_celery.cli.sending_view import printable, size
from cog_celery.delivery import json_limits
from cog_celery.delivery.dead import Head, Letter

MAX_LINE: Final = 500
"""Characters of one line that are shown to a person."""
MAX_LINES: Final = 500
"""Lines of one field that are shown to a person."""
PLAIN_WIDTH: Final = 2000
"""Columns of a table that goes into a file or a pipe, where nothing is folded."""


def print_table(heads: Sequence[Head]) -> None:
    """A line for each letter, on standard output; without colors or folded lines when it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("letter", "buried (UTC)", "entry", "attempts", "last owner", "size"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("attempts", "size") else "left")
    table.add_column("reason", overflow="fold", min_width=20)
    for head in heads:
        cells = (head.id, when(head), head.entry, head.attempts, head.owner, size(head.size), head.reason)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    console.print(table)


def print_letter(letter: Letter) -> None:
    """A letter in full, but for what is too long to be read, on standard output."""
    console, head = Console(highlight=False), letter.head
    rows = [
        ("letter", head.id),
        ("buried", f"{when(head)} UTC"),
        ("entry", head.entry),
        ("attempts", head.attempts),
        ("last owner", head.owner),
        ("size", size(head.size)),
        ("reason", head.reason),
    ]
    for name, value in rows:
        console.print(Text.assemble((f"{name:<12}", "dim"), one_line(value)), soft_wrap=True)
    for field, content in letter.fields:
        console.print(Text(f"\nfield {one_line(_readable(field))}:", style="bold"), soft_wrap=True)
        for line in request_lines(content):
            console.print(Text(line), soft_wrap=True)


def head_json(head: Head) -> str:
    """What is said of a letter, as JSON in one line of ASCII."""
    return _ascii(_head(head))


def letter_json(letter: Letter) -> str:
    """A letter in full: its fields are pairs of texts; what is not UTF-8 is an object with `base64`."""
    fields = [[_text_or_base64(name), _text_or_base64(value)] for name, value in letter.fields]
    return _ascii({**_head(letter.head), "fields": fields})


def request_lines(content: bytes) -> Iterator[str]:
    """A field's content in lines that are safe to show: JSON is indented, unless that would hide what is wrong."""
    text = _readable(content)
    if json_limits.fault(content) is None:
        with suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(content), indent=2, ensure_ascii=False)
    lines = text.split("\n")
    for line in lines[:MAX_LINES]:
        yield printable(line) if len(line) <= MAX_LINE else f"{printable(line[:MAX_LINE])}… ({len(line)} characters)"
    if len(lines) > MAX_LINES:
        yield f"… ({len(lines)} lines)"


def one_line(text: str) -> str:
    """The text as one line, of reasonable length, that is safe to show."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}…"


def when(head: Head) -> str:
    """When a letter was buried, UTC."""
    try:
        return datetime.fromtimestamp(head.buried_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"  # an id that somebody chose


def _head(head: Head) -> dict[str, Any]:
    return {
        "id": head.id,
        "buried_at": head.buried_at,
        "entry": head.entry,
        "attempts": int(head.attempts) if head.attempts.isascii() and head.attempts.isdecimal() else None,
        "owner": head.owner,
        "reason": head.reason,
        "size": head.size,
    }


def _ascii(value: dict[str, Any]) -> str:
    return json.dumps(value).replace("\x7f", "\\u007f")


def _readable(content: bytes) -> str:
    return content.decode(errors="backslashreplace")


def _text_or_base64(content: bytes) -> str | dict[str, str]:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}
