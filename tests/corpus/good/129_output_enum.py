# Members of an Enum, as values and as keys.
# {} -> {"red": 1, "one": "red"}

import enum
from typing import Any

from cog import BasePredictor


class Color(enum.Enum):
    RED = "red"


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return {Color.RED: 1, "one": Color.RED}
