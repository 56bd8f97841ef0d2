# Set with a type.
# {"x": ["2", 1, 2]} -> [1, 2]
# {"x": ["a"]} -> refused: invalid input value: x=['a'] is not a valid int

from typing import Set
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Set[int]) -> Any:
        return sorted(x)
