# T | None.
# python: 3.10
# {} -> null
# {"x": "a"} -> "a"

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: str | None = None) -> Any:
        return x
