# Literal of int.
# {"x": "2"} -> 2
# {"x": 3} -> refused: invalid input value: x=3 does not match choices [1, 2]

from typing import Literal
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Literal[1, 2]) -> Any:
        return x
