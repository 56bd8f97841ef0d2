"""A coder for pydantic's models, of release 1 or 2. It must not import pydantic: the model does."""

from __future__ import annotations

from typing import Any, Optional

from .._runner.structures import is_pydantic
from . import Coder

__all__ = ["BaseModelCoder"]


class BaseModelCoder(Coder):
    """An object with a model's fields, which pydantic checks."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    @staticmethod
    def factory(tpe: Any) -> Optional[Coder]:
        return BaseModelCoder(tpe) if isinstance(tpe, type) and is_pydantic(tpe) else None

    def encode(self, x: Any) -> Any:
        return x.model_dump() if hasattr(x, "model_dump") else x.dict()

    def decode(self, x: Any) -> Any:
        return self._kind.model_validate(x) if hasattr(self._kind, "model_validate") else self._kind.parse_obj(x)
