# int: numbers must be equal after conversion.
# {"x": 3} -> 3
# {"x": 3.0} -> 3
# {"x": "3"} -> 3
# {"x": 3.5} -> refused: invalid input value: x=3.5 is not a valid int

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int) -> Any:
        return x
