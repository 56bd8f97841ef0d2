"""The classes that a model's predictor extends. They must not know how it is loaded or run."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Optional

from .scope import Scope, current_scope

__all__ = ["BasePredictor", "BaseRunner"]


class _CurrentScope:
    """An attribute that a model may still use for something of its own."""

    def __get__(self, predictor: Any, kind: Any = None) -> Scope:
        return current_scope()


class BasePredictor:
    """A model. setup() runs once in each process, predict() once for each prediction."""

    def setup(self) -> Optional[Awaitable[None]]:
        """Prepare what all predictions share. A `weights` argument gets the path or URL of the weights."""
        return None

    scope = _CurrentScope()
    """The scope of the prediction that runs; outside one, a scope that does nothing."""

    def record_metric(self, key: str, value: Any, mode: str = "replace") -> None:
        """As current_scope().record_metric()."""
        current_scope().record_metric(key, value, mode)


class BaseRunner(BasePredictor):
    """As BasePredictor; its method is called run()."""
