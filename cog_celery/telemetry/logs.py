"""Lines: how ours are written, one for each event; and those of models, split out of their bytes as a terminal would.

It must not know what happens, nor read anything into a model's line.
"""

from __future__ import annotations

import codecs
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec

model_log = logging.getLogger("cog_celery.model")
"""What models write goes to the worker's own log, too."""

# -- ours


class About(NamedTuple):
    """The delivery that is at work: what a line says of it, beside its own text."""

    prediction_id: str | None = None
    queue: str | None = None
    entry: str | None = None
    attempt: int | None = None
    slot: int | None = None
    trace_id: str | None = None


class Event(NamedTuple):
    """A line that is written later, with others. `at`: seconds since 1970; `fields`: what JSON has besides."""

    at: float
    event: str
    message: str
    about: About
    fields: dict[str, Any]


def nothing() -> About:
    """What a line is about that is about no delivery."""
    return About()


class _Subject(threading.local):
    about: Callable[[], About] = staticmethod(nothing)


subject: Final = _Subject()
"""Of this thread; asked only when a line is written. Whoever sets `subject.about` sets it back; about() does both."""


@contextmanager
def about(what: Callable[[], About]) -> Iterator[None]:
    """Lines from here, in this thread, are about this delivery."""
    before, subject.about = subject.about, what
    try:
        yield
    finally:
        subject.about = before


def set_up(level: str, format: str = "text") -> None:
    """Log to standard error; `auto` is text on a terminal, and JSON anywhere else."""
    logging.basicConfig(level=level.upper(), handlers=[logging.StreamHandler()], force=True)
    take_over(format)


def take_over(format: str) -> None:
    """Have whatever is logged to by now write our lines, in that form."""
    for name in ("", "celery.task", "multiprocessing"):  # those that Celery gives handlers
        for handler in logging.getLogger(name).handlers:
            stream = getattr(handler, "stream", None)
            text = format == "text" or (format == "auto" and stream is not None and stream.isatty())
            handler.setFormatter(TextLines() if text else JsonLines())
    # What no line of ours shows costs a third of it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


def model_lines(lines: Sequence[str], where: str = "") -> None:
    """Pass on what a model wrote, in the prediction that this thread works on or `where` else."""
    if lines and model_log.isEnabledFor(logging.INFO):
        model_log.info("%s", where, extra={"event": "model", "lines": lines})


def many(logger: logging.Logger, level: int, events: Sequence[Event]) -> None:
    """A line for each, written at once."""
    if events and logger.isEnabledFor(level):
        # The message is for handlers that are not ours.
        logger.log(level, "%s", "\n".join([one.message for one in events]), extra={"events": events})


class TextLines(logging.Formatter):
    """Time in UTC, level, module, message; what it is about, in brackets; before a model's line, its prediction."""

    def format(self, record: logging.LogRecord) -> str:
        middle = f" {record.levelname} {record.name}: "
        events: Sequence[Event] | None = getattr(record, "events", None)
        if events is not None:
            return "\n".join([f"{_time(one.at)}{middle}{_told(one.message, one.about)}" for one in events])
        head, what, message = _time(record.created) + middle, subject.about(), record.getMessage()
        lines: Sequence[str] | None = getattr(record, "lines", None)
        if lines is not None:
            head += f"[{message or what.prediction_id}] "
            return "\n".join([head + _in_one_line(line) for line in lines])
        text = head + _told(message, what)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _told(message: str, what: About) -> str:
    """The message, and of what it is about all that it does not say itself."""
    known = zip(About._fields, what, strict=True)
    told = [
        f"{name}={value}"
        for name, value in known
        if isinstance(value, int) or (value is not None and value not in message)
    ]
    text = _in_one_line(message)
    return f"{text} [{' '.join(told)}]" if told else text


class JsonLines(logging.Formatter):
    """An object for each line: time, level, logger, event, message, and what is known of the delivery."""

    def format(self, record: logging.LogRecord) -> str:
        level, logger = record.levelname.lower(), record.name
        events: Sequence[Event] | None = getattr(record, "events", None)
        if events is not None:
            return "\n".join(
                [_json(_line(one.at, level, logger, one.event, one.message, one.about) | one.fields) for one in events]
            )
        message = record.getMessage()
        line = _line(record.created, level, logger, getattr(record, "event", None), message, subject.about())
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        lines: Sequence[str] | None = getattr(record, "lines", None)
        if lines is None:
            return _json(line)
        if message:
            line["where"] = message
        return "\n".join([_json({**line, "message": text}) for text in lines])


def _line(at: float, level: str, logger: str, event: str | None, message: str, what: About) -> dict[str, Any]:
    line: dict[str, Any] = {"time": _time(at), "level": level, "logger": logger}
    if event is not None:
        line["event"] = event
    line["message"] = message
    for name, value in zip(About._fields, what, strict=True):
        if value is not None:
            line[name] = value
    return line


def _json(line: dict[str, Any]) -> str:
    try:
        text = msgspec.json.encode(line).decode()
        if text.isascii() or text.isprintable():
            return text
    except UnicodeEncodeError:  # half a surrogate pair, out of somebody's JSON
        pass
    return json.dumps(line)  # in ASCII: terminals obey some characters that JSON may have as they are


_second = (0, "")


def _time(at: float) -> str:
    """As text, of which the part that is the same for a second is kept."""
    global _second
    seconds, text = _second
    now = int(at)
    if now != seconds:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        _second = (now, text)
    return f"{text}.{int((at - now) * 1000):03d}Z"


def _in_one_line(text: str) -> str:
    """What is not to be printed is shown as Python would: a message must not forge another line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)


# -- a model's

MAX_LINE = 256 * 1024
"""Characters after which a line without an end is passed on in pieces, so that a stream without line ends stays small.
"""


class LineSplitter:
    """UTF-8 with replacement, decoded incrementally; `\\n`, `\\r\\n` and a lone `\\r` end a line."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._after_cr = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` ends, without their ends. A `\\r` ends its line at once; a `\\n` right behind it adds
        none.
        """
        return self._split(self._decode(data))

    def finish(self) -> list[str]:
        """The last line, if it has no end, and a fresh start."""
        lines = self._split(self._decode(b"", True))
        if self._rest:
            lines.append(self._rest)
        self._rest, self._after_cr = "", False
        return lines

    def _split(self, text: str) -> list[str]:
        if not text:
            return []
        if self._after_cr and text[0] == "\n":
            text = text[1:]
        # An end of line may be split across two reads: remember the \r, whose line is already out.
        self._after_cr = text.endswith("\r") if text else False
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = (self._rest + text).split("\n")
        self._rest = lines.pop()
        while len(self._rest) > MAX_LINE:
            lines.append(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]
        return lines
