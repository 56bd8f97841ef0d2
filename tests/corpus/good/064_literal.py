# Literal of str.
# {"x": "b"} -> "b"
# {"x": "c"} -> refused: invalid input value: x='c' does not match choices ['a', 'b']

from typing import Literal
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Literal["a", "b"]) -> Any:
        return x
