# A return type that is only there for type checkers.
# {} -> 1

from __future__ import annotations

from typing import TYPE_CHECKING

from cog import BasePredictor

if TYPE_CHECKING:
    from nowhere import Tensor


class Predictor(BasePredictor):
    def predict(self) -> Tensor:
        return 1
