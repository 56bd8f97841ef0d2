# A list of objects.
# {"x": [{"a": 1}]} -> [{"a": 1}]
# {"x": [1]} -> refused: invalid input value: x=[1] is not a valid dict

from typing import List
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: List[dict]) -> Any:
        return x
