"""A prediction's inputs as they are typed: `-i name=value`, `-i name=@file`, `--json`.

It must not know what a model expects: values stay text, as `cog predict` sends them.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from cog_celery.errors import UsageError
from cog_celery.files.mime import type_of

T = TypeVar("T")

MAX_INLINE_BYTES: Final = 11 << 20
"""A file of this size, as a data URI, still fits into a request of 16 MiB."""

SMALL: Final = 256 << 10
"""Bytes up to which a file is inlined although it could be uploaded: it comes with its request, without an exchange."""

_ADVICE: Final = "put it where the model can fetch it, and give its URL"


@dataclass
class Files:
    """How the files that are typed become inputs: as data URIs of `max_bytes`, or, not so small ones, by `upload`."""

    max_bytes: int = MAX_INLINE_BYTES
    upload: Callable[[Path], str] | None = None
    advice: str = _ADVICE
    """What to do about a file that is too large."""

    def take(self, file: Path) -> str:
        """A data URI or a URL. Raises UsageError, and what `upload` does."""
        if self.upload is None:
            return data_uri(file, self.max_bytes, self.advice)
        size = _opened(str(file), file.stat).st_size
        if size > min(SMALL, self.max_bytes):
            return self.upload(file)
        uri = data_uri(file, self.max_bytes, self.advice)
        self.max_bytes -= size  # all of them go into one request
        return uri


def read_inputs(pairs: Iterable[str], json_text: str | None, files: Files | None = None) -> dict[str, object]:
    """The inputs. A name that is given twice becomes a list; `-i` is laid over `--json`. Raises UsageError, and what
    an upload does.
    """
    files = files or Files()
    inputs = {} if json_text is None else _read_json(json_text)
    typed: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"-i {_short(pair)}: NAME=VALUE or NAME=@FILE is needed")
        typed.setdefault(name.strip(), []).append(_read_value(name.strip(), value, files))
    return inputs | {name: values[0] if len(values) == 1 else values for name, values in typed.items()}


def data_uri(file: Path, max_bytes: int, advice: str = _ADVICE) -> str:
    """The file as a data URI. Raises UsageError when it cannot be read or is too large."""

    def read() -> bytes:
        with file.open("rb") as stream:
            return stream.read(max_bytes + 1)

    data = _opened(str(file), read)
    if len(data) > max_bytes:
        raise UsageError(f"{file} has more than {max_bytes} bytes: {advice}")
    return f"data:{type_of(file.name)};base64,{base64.b64encode(data).decode()}"


def _read_value(name: str, value: str, files: Files) -> str:
    # As `cog predict` does: quotes around a value are taken off, so that '"@home"' is text that begins with @.
    if len(value) >= 2 and value.startswith('"') and value.endswith('"'):
        return value[1:-1]
    if not value.startswith("@"):
        return value
    if value == "@":
        raise UsageError(f"-i {name}=@: the name of a file is needed after @")
    return files.take(Path(value[1:]).expanduser())


def _read_json(text: str) -> dict[str, object]:
    source = "--json"
    if text == "-":
        source, text = "standard input", _opened("standard input", sys.stdin.read)
    elif text.startswith("@"):
        source, text = text[1:], _opened(text[1:], Path(text[1:]).expanduser().read_text)
    try:
        inputs = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not JSON: {error}") from None
    if not isinstance(inputs, dict):
        raise UsageError(f'{source}: an object of inputs is needed, like {{"text": "hello"}}')
    return inputs


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number there")


def _opened(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
