# list without a type.
# {"x": [1, "a", null]} -> [1, "a", null]
# {"x": 1} -> refused: invalid input value: x=1 is not a valid list

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: list) -> Any:
        return x
