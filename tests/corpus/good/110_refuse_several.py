# Every field at fault is told, in order.
# {"y": "a"} -> refused: missing required input field: x | invalid input value: y='a' is not a valid int

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int, y: int) -> Any:
        return x
