"""The classes that a model's predictor extends. They must not know how it is loaded or run."""

from __future__ import annotations

__all__ = ["BasePredictor", "BaseRunner"]


class BasePredictor:
    """A model. setup() runs once in each process, predict() once for each prediction."""

    def setup(self) -> None:
        """Prepare what all predictions share. A `weights` argument gets the path or URL of the weights."""


class BaseRunner(BasePredictor):
    """As BasePredictor; its method is called run()."""
