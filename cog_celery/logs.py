"""Lines out of bytes: what a process writes to a file descriptor, split as a terminal would.

It must not know whose lines they are.
"""

from __future__ import annotations

import codecs
import logging

model_log = logging.getLogger("cog_celery.model")
"""What models write goes to the worker's own log, too."""
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
