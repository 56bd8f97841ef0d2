"""A coder for what JSON can say by itself. It must not know any other type."""

from __future__ import annotations

from typing import Any, Optional, get_origin

from . import Coder

__all__ = ["JsonCoder"]


class JsonCoder(Coder):
    """dict and its generic forms, as they are."""

    @staticmethod
    def factory(tpe: Any) -> Optional[Coder]:
        return JsonCoder() if tpe is dict or get_origin(tpe) is dict else None

    def encode(self, x: Any) -> Any:
        return x

    def decode(self, x: Any) -> Any:
        return x
