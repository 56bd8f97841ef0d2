"""A coder for dataclasses. It must not know what their fields mean."""

from __future__ import annotations

from typing import Any, Optional

from .._runner.structures import Structures
from . import Coder

__all__ = ["DataclassCoder"]


class DataclassCoder(Coder):
    """An object with a dataclass's fields, each converted to its type."""

    def __init__(self, kind: Any) -> None:
        self._decode = Structures().structure(kind)

    @staticmethod
    def factory(tpe: Any) -> Optional[Coder]:
        return DataclassCoder(tpe) if isinstance(tpe, type) and hasattr(tpe, "__dataclass_fields__") else None

    def encode(self, x: Any) -> Any:
        return {name: getattr(x, name) for name in x.__dataclass_fields__}

    def decode(self, x: Any) -> Any:
        return self._decode(x)
