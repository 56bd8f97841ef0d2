# A member of an Enum as default.
# {} -> "red"
# {"x": "blue"} -> "blue"

import enum
from typing import Any

from cog import BasePredictor


class Color(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


class Predictor(BasePredictor):
    def predict(self, x: Color = Color.RED) -> Any:
        return x
