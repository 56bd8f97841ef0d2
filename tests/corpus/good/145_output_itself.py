# What contains itself.
# {} -> failed: The output is more than 200 levels deep, or contains itself.

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        xs = []
        xs.append(xs)
        return xs
