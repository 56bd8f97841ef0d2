# An array, by its tolist().
# {} -> [[1.5, 2.0]]

from typing import Any

from cog import BasePredictor


class Array:
    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return [Array([1.5, 2.0])]
