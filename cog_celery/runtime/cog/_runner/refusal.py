"""Why a predictor cannot be loaded, said with its place and what to write instead.

It must not know who shows it.
"""

from __future__ import annotations

from typing import Optional


class Refused(Exception):
    """`text` says what is wrong, `hint` what to write instead; `file` and `line` say where."""

    def __init__(self, text: str, hint: str, file: Optional[str] = None, line: Optional[int] = None) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.file = file
        self.line = line

    def __str__(self) -> str:
        place = "" if self.file is None else self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.text}\n{self.hint}" if place else f"{self.text}\n{self.hint}"
