# A member of an Enum as default and choices of a str.
# {} -> "str red"
# {"x": "blue"} -> "str blue"
# {"x": "b"} -> refused: invalid input value: x='b' does not match choices ['red', 'blue']

import enum
from typing import Any

from cog import BasePredictor, Input


class Color(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


class Predictor(BasePredictor):
    def predict(self, x: str = Input(default=Color.RED, choices=[Color.RED, Color.BLUE])) -> Any:
        return f"{type(x).__name__} {x}"
