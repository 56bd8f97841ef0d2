# List with a type.
# {"x": [1, "2"]} -> [1, 2]
# {"x": [1, "b"]} -> refused: invalid input value: x=[1, 'b'] is not a valid int

from typing import List
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: List[int]) -> Any:
        return x
