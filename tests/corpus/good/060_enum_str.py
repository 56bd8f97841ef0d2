# An Enum of str.
# {"x": "red"} -> "Color.RED"
# {"x": "green"} -> refused: invalid input value: x='green' does not match choices ['red', 'blue']

import enum
from typing import Any

from cog import BasePredictor


class Color(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


class Predictor(BasePredictor):
    def predict(self, x: Color) -> str:
        return f"{type(x).__name__}.{x.name}"
