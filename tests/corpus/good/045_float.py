# float.
# {"x": 3} -> 3.0
# {"x": "1e2"} -> 100.0
# {"x": [1]} -> refused: invalid input value: x=[1] is not a valid float

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: float) -> Any:
        return x
