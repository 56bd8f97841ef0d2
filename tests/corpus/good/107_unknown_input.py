# Unknown inputs are ignored.
# {"x": 1, "y": 2} -> 1

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int) -> Any:
        return x
