"""A coder for sets. It must not know what is in them."""

from __future__ import annotations

from typing import Any, Optional, get_origin

from .._runner.structures import Structures
from . import Coder

__all__ = ["SetCoder"]


class SetCoder(Coder):
    """A list, each element converted to the set's type."""

    def __init__(self, kind: Any) -> None:
        self._decode = Structures().converter(kind)

    @staticmethod
    def factory(tpe: Any) -> Optional[Coder]:
        return SetCoder(tpe) if tpe is set or get_origin(tpe) is set else None

    def encode(self, x: Any) -> Any:
        return list(x)

    def decode(self, x: Any) -> Any:
        return self._decode(x)
